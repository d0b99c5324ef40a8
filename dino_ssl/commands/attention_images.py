"""The pictures that `dino-ssl attention` writes for one image."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from dino_ssl.commands.attention_inputs import Input
from dino_ssl.commands.attention_wish import Reader, Wish
from dino_ssl.data.decoding import decode, printable, read
from dino_ssl.data.whole_image import as_rgb, resized
from dino_ssl.evaluation import heat
from dino_ssl.evaluation.attention_index import Entry
from dino_ssl.evaluation.attention_sheet import Look, heads_sheet, layers_sheet
from dino_ssl.evaluation.masks import mass_mask
from dino_ssl.evaluation.queries import attention_from, default_query, num_shown_blocks
from dino_ssl.evaluation.query import Query

SHARPNESS = 4
"""Pixels that are decoded for one that the network sees; JPEGs decode faster to fewer."""


@dataclass(frozen=True)
class Seen:
    """An image as the network sees it.

    Attributes:
        pixels: for the network.
        shown: the same as RGB.
    """

    item: Input
    pixels: UInt8[Tensor, "c y x"]

    @property
    def shown(self) -> UInt8[np.ndarray, "y x 3"]:
        return as_rgb(self.pixels.permute(1, 2, 0).numpy())


def see(item: Input, reader: Reader, wish: Wish) -> Seen:
    """Read an image.

    Raises:
        BrokenImage: it cannot be read.
    """
    enough = float(SHARPNESS * reader.side(wish) ** 2)
    image = decode(read(item.path), printable(item.path), channels=reader.encoder.channels, enough_pixels=enough)
    return Seen(item, resized(image.pixels, *reader.input_size(image.width, image.height, wish)))


@dataclass(frozen=True)
class Read:
    """The attention of one image.

    Attributes:
        maps: of each block.
        heads: of each block their numbers.
        query: who looks.
        note: where there is no attention.
    """

    maps: list[Float[Tensor, "_heads h w"]]
    heads: list[list[int]]
    query: Query
    note: str

    @property
    def grid(self) -> tuple[int, int]:
        rows, columns = self.maps[0].shape[1:]
        return rows, columns

    @property
    def patch(self) -> tuple[int, int] | None:
        """Row and column of the patch that looks, if one does."""
        return self.query.patch(self.grid)

    def looking(self) -> str:
        """Who looks, for people."""
        if self.patch is not None:
            return f"patch in row {self.patch[0]}, column {self.patch[1]}"
        match self.query.text:
            case "mean":
                return "mean over all patches"
            case "cls":
                return "mean of the features" if self.note else "class token"
            case _:
                return f"register {self.query.register}"


def read_attention(seen: Seen, reader: Reader, wish: Wish) -> Read:
    """The weights of the chosen blocks and heads.

    Raises:
        UsageError: a block, a head or the query is not there.
        RunError: the image does not go through the network.
    """
    maps, heads = [], []
    for block in wish.blocks:
        attention, note = reader.attention(seen.pixels[None], block)
        query = wish.query or default_query(attention)
        heads.append(wish.heads_of(attention))
        maps.append(attention_from(attention, query)[0, heads[-1]].float().cpu())
    return Read(maps, heads, query, note)


def draw_image(item: Input, reader: Reader, wish: Wish) -> Entry:
    """Write everything about one image into a folder of its own; raises as `see` and `read_attention`."""
    seen = see(item, reader, wish)
    read = read_attention(seen, reader, wish)
    folder = wish.folder / seen.item.name
    folder.mkdir(parents=True, exist_ok=True)
    _save(seen.shown, folder / "img.png")
    several = len(wish.blocks) > 1
    for block, maps, heads in zip(wish.blocks, read.maps, read.heads, strict=True):
        below = folder / f"block{block}" if several else folder
        below.mkdir(exist_ok=True)
        _draw_maps(seen.shown, maps, heads, below, wish)
        heads_sheet(_look(seen, read, reader, wish, [block]), maps, heads).save(below / "heads.png")
    shown = folder / ("layers.png" if several else "heads.png")
    if several:
        layers_sheet(_look(seen, read, reader, wish, wish.blocks), read.maps, wish.blocks, read.heads).save(shown)
    _save_numbers(seen, read, reader, wish, folder / "attention.npz")
    others = sorted(path for path in folder.rglob("*") if path.is_file() and path not in (shown, folder / "img.png"))
    return Entry(str(seen.item.name), [shown], [path for path in others if path.name in ("heads.png", "attention.npz")])


def _draw_maps(
    pixels: UInt8[np.ndarray, "y x 3"], maps: Float[Tensor, "heads h w"], heads: list[int], folder: Path, wish: Wish
) -> None:
    """A map, an overlay and a mask for each head and for their mean, with the original's names."""
    size = pixels.shape[:2]
    names = [f"head{head}" for head in heads]
    if len(heads) > 1:
        maps, names = torch.cat([maps, maps.mean(0, keepdim=True)]), [*names, "mean"]
    values = heat.enlarged(heat.unit_range(maps), size, wish.upsampling)
    for name, value in zip(names, values, strict=True):
        _save(heat.coloured(value), folder / f"attn-{name}.png")
        _save(heat.overlaid(pixels, value), folder / f"overlay-{name}.png")
    if wish.threshold is not None:
        line = heat.line_width(size[1] / maps.shape[2])
        masks = heat.enlarged(mass_mask(maps, wish.threshold).float(), size, "nearest").bool().numpy()
        for name, mask in zip(names, masks, strict=True):
            _save(heat.masked(pixels, mask, line), folder / f"mask_th{wish.threshold:g}_{name}.png")


def _save_numbers(seen: Seen, read: Read, reader: Reader, wish: Wish, path: Path) -> None:
    heads = max(read.heads, key=len)
    maps = np.full((len(read.maps), len(heads), *read.grid), np.nan, np.float32)  # NaN: a block has fewer heads
    for block, found in zip(maps, read.maps, strict=True):
        block[: len(found)] = found.numpy()
    np.savez_compressed(
        path,
        maps=maps,  # [blocks, heads, rows, columns]
        grid=np.array(read.grid),
        blocks=np.array(wish.blocks),
        heads=np.array(heads),
        query=np.array(read.query.text),
        patch=np.array(read.patch or (-1, -1)),  # row and column of the patch that looks; -1: none does
        size=np.array(seen.pixels.shape[1:]),  # height and width in pixels of what the network saw
        network=np.array(f"{reader.encoder.name} {reader.encoder.digest}"),
    )


def _look(seen: Seen, read: Read, reader: Reader, wish: Wish, blocks: list[int]) -> Look:
    network = reader.encoder
    last = num_shown_blocks(network.backbone) - 1
    one = f"block {blocks[0]}" + (", the last" if blocks[0] == last else f" of 0 to {last}")
    rows, columns = read.grid
    height, width = seen.pixels.shape[1:]
    about = [
        f"{network.name}  ·  {one if len(blocks) == 1 else f'{len(blocks)} blocks'}  ·  query: {read.looking()}  ·  "
        f"{columns} x {rows} patches in {width} x {height} pixels",
        *([read.note] if read.note else []),
    ]
    return Look(seen.shown, str(seen.item.name), about, read.patch, wish.threshold, wish.upsampling)


def _save(pixels: UInt8[np.ndarray, "y x 3"], path: Path) -> None:
    Image.fromarray(pixels).save(path)
