"""Where a transformer looks: attention of the class token over the patches, as numbers and as a picture."""

from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from dino_ssl.models.attention_map import AttentionMap

MAX_HEADS = 6
QUERIES_AT_ONCE = 256
DPI = 100
# Pixels of the picture.
WIDTH = 1000
MAX_CELL = 192
GAP = 8
TITLE = 28


def cls_attention(attention: AttentionMap) -> Float[Tensor, "b heads h w"]:
    """The class token's weights over the patches; without one, the mean over all patches as queries."""
    has_class_token = attention.has_class_token and attention.num_prefix_tokens > 0
    row = attention.rows(slice(0, 1))[:, :, 0] if has_class_token else mean_over_patches(attention)
    return row[..., attention.num_prefix_tokens :].reshape(*row.shape[:2], *attention.grid)


def mean_over_patches(attention: AttentionMap) -> Float[Tensor, "b heads keys"]:
    """The mean of the weights over all queries but the prefix tokens.

    In parts: the table of all weights of a large image would not fit into memory.
    """
    queries = torch.arange(attention.num_prefix_tokens, attention.query.shape[2], device=attention.query.device)
    parts = [attention.rows(part).sum(2) for part in queries.split(QUERIES_AT_ONCE)]
    return torch.stack(parts).sum(0) / len(queries)


def attention_figure(images: UInt8[Tensor, "b c y x"], maps: Float[Tensor, "b heads h w"], path: Path) -> None:
    """Draw a row for each image: the image, the mean over heads, then up to `MAX_HEADS` heads, if more than one.

    Each map is coloured from its own smallest weight (dark) to its own largest (bright). Images that are not RGB are
    shown grey, as the mean of their channels.
    """
    num_heads = maps.shape[1]
    shown = maps[:, : MAX_HEADS if num_heads > 1 else 0].float().cpu()
    mean = f"mean of {num_heads} heads" if num_heads > 1 else "map"
    titles = ["image", mean, *(f"head {head}" for head in range(shown.shape[1]))]
    layout = _Layout(len(images), len(titles), images.shape[-2], images.shape[-1])
    figure = Figure(figsize=layout.inches(), dpi=DPI, facecolor="white")
    for row, image in enumerate(images):
        tiles = [_as_rgb(image).permute(1, 2, 0), maps[row].float().mean(0).cpu(), *shown[row]]
        for column, tile in enumerate(tiles):
            axes = figure.add_axes(layout.box(row, column))
            axes.set_axis_off()
            # "auto" enlarges pixels and patches as squares, and smooths what it has to make smaller.
            axes.imshow(tile.numpy(), cmap="inferno", interpolation="auto", aspect="auto")
            if row == 0:
                axes.set_title(titles[column], fontsize=9, pad=5)
    path.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure)
    figure.savefig(path, format="png")


def _as_rgb(image: UInt8[Tensor, "c y x"]) -> UInt8[Tensor, "3 y x"]:
    if len(image) == 3:
        return image.cpu()
    return image.float().mean(0).byte().cpu().expand(3, -1, -1)


@dataclass(frozen=True)
class _Layout:
    """Tiles at whole pixels of the picture, so that the pixels of a tiny image all get the same size."""

    rows: int
    columns: int
    image_height: int
    image_width: int

    @property
    def tile(self) -> tuple[int, int]:
        """Width and height, pixels: a multiple of the image's where the image is smaller."""
        width = min(MAX_CELL, (WIDTH - GAP) // self.columns - GAP)
        if width >= self.image_width:
            width -= width % self.image_width
        return width, round(width * self.image_height / self.image_width)

    @property
    def picture(self) -> tuple[int, int]:
        """Width and height, pixels."""
        width, height = self.tile
        return GAP + self.columns * (width + GAP), TITLE + self.rows * (height + GAP)

    def inches(self) -> tuple[float, float]:
        width, height = self.picture
        return width / DPI, height / DPI

    def box(self, row: int, column: int) -> tuple[float, float, float, float]:
        """Left, bottom, width and height of a tile as shares of the picture."""
        (width, height), (all_width, all_height) = self.tile, self.picture
        left, bottom = GAP + column * (width + GAP), all_height - TITLE - row * (height + GAP) - height
        return left / all_width, bottom / all_height, width / all_width, height / all_height
