"""One picture of an image's attention for a person to look at: over the heads of a block, or over the blocks."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from dino_ssl.evaluation.heat import BRIGHTEST, Upsampling, coloured, enlarged, line_width, masked, overlaid, unit_range
from dino_ssl.evaluation.masks import mass_mask
from dino_ssl.evaluation.tiles import GAP, Row, Tile, fitted, marked, page

# Pixels of the page.
WIDTH = 1400
NARROWEST_PAGE = 1100
NARROWEST_MAP, WIDEST_MAP = 96, 320
HIGHEST_PICTURE = 720
LEGEND = ("each map: its smallest weight", f"its largest {100 * BRIGHTEST:g} %")


@dataclass(frozen=True)
class Look:
    """What the pages of an image have in common.

    Attributes:
        pixels: what the network saw, as RGB.
        title: the image's name.
        about: network, query, grid and notes, a line each.
        patch: row and column of the patch that looks, if one does.
        threshold: share of the attention that the masks hold; None draws none.
    """

    pixels: UInt8[np.ndarray, "h w 3"]
    title: str
    about: Sequence[str]
    patch: tuple[int, int] | None = None
    threshold: float | None = None
    upsampling: Upsampling = "nearest"


def heads_sheet(look: Look, maps: Float[Tensor, "heads h w"], heads: Sequence[int]) -> Image.Image:
    """The image, the mean over heads as a map, an overlay and a mask; below it the map and mask of each head.

    Args:
        heads: the numbers of those in `maps`.
    """
    columns = _columns(len(heads))
    height, width = _map_size(look, maps, columns)
    rows = [
        Row(_first_row(look, maps, max(columns * (width + GAP) - GAP, NARROWEST_PAGE) if len(heads) > 1 else WIDTH))
    ]
    if len(heads) > 1:
        tiles = [
            Tile(_map(look, head, height, width), f"head {number}") for number, head in zip(heads, maps, strict=True)
        ]
        rows += _rows("attention of each head", tiles, columns)
    if len(heads) > 1 and look.threshold is not None:
        tiles = [_mask(look, head, height, width, f"head {number}: ") for number, head in zip(heads, maps, strict=True)]
        rows += _rows(f"{_percent(look.threshold)} of the attention of each head", tiles, columns)
    return page(look.title, look.about, rows, legend=LEGEND)


def layers_sheet(
    look: Look, maps: Sequence[Float[Tensor, "_heads h w"]], blocks: Sequence[int], heads: Sequence[Sequence[int]]
) -> Image.Image:
    """A row for each block: the mean over heads as an overlay and as a map, then each head.

    Args:
        heads: of each block the numbers of those in `maps`; the longest list begins with the others.
    """
    most = max(heads, key=len)
    shown = list(most) if len(most) > 1 else []
    names = ["overlay", "mean of heads" if shown else "map", *(f"head {head}" for head in shown)]
    height, width = _map_size(look, maps[0], len(names))
    rows = []
    for number, block in zip(blocks, maps, strict=True):
        mean = block.mean(0)
        pictures = [_overlay(look, mean, height, width), _map(look, mean, height, width)]
        pictures += [_map(look, head, height, width) for head in block[: len(shown)]]
        pictures += [np.full((height, width, 3), 255, np.uint8)] * (len(names) - len(pictures))
        columns = names if number == blocks[0] else ()
        rows.append(Row([Tile(picture) for picture in pictures], columns=columns, label=f"block {number}"))
    return page(look.title, look.about, rows, legend=LEGEND)


def _first_row(look: Look, maps: Float[Tensor, "heads h w"], whole: int) -> list[Tile]:
    """Pictures that fill a width to the pixel: image, map, overlay, mask."""
    count = 3 if look.threshold is None else 4
    edges = [round(place * (whole + GAP) / count) for place in range(count + 1)]
    widths = [right - left - GAP for left, right in pairwise(edges)]
    height = round(widths[0] * look.pixels.shape[0] / look.pixels.shape[1])
    if height > HIGHEST_PICTURE:
        height, widths = HIGHEST_PICTURE, [max(1, round(HIGHEST_PICTURE * widths[0] / height))] * count
    mean, name = maps.mean(0), f"mean of {len(maps)} heads" if len(maps) > 1 else "map"
    image = "image" if look.patch is None else "image, and the patch that looks"
    tiles = [
        Tile(_image(look, maps, height, widths[0]), image),
        Tile(_map(look, mean, height, widths[1]), name),
        Tile(_overlay(look, mean, height, widths[2]), "overlay"),
    ]
    return tiles if look.threshold is None else [*tiles, _mask(look, mean, height, widths[3], "")]


def _rows(heading: str, tiles: list[Tile], columns: int) -> list[Row]:
    return [
        Row(tiles[start : start + columns], heading="" if start else heading) for start in range(0, len(tiles), columns)
    ]


def _columns(num_heads: int) -> int:
    """Six in a row, or what leaves no gap in the last one."""
    return num_heads if num_heads <= 6 else next((c for c in (6, 8, 5, 7) if num_heads % c == 0), 6)


def _map_size(look: Look, maps: Float[Tensor, "heads h w"], columns: int) -> tuple[int, int]:
    """Height and width in pixels at which all patches are squares of one size."""
    rows, patches = maps.shape[-2:]
    room = max(NARROWEST_MAP, min(WIDEST_MAP, (WIDTH + GAP) // columns - GAP))
    side = max(1, min(room // patches, HIGHEST_PICTURE // rows))
    return rows * side, patches * side


def _image(
    look: Look, maps: Float[Tensor, "heads h w"], height: int, width: int
) -> UInt8[np.ndarray, "{height} {width} 3"]:
    picture = fitted(look.pixels, height, width)
    if look.patch is None:
        return picture
    (row, column), (rows, columns) = look.patch, maps.shape[-2:]
    return marked(picture, (column / columns, row / rows, (column + 1) / columns, (row + 1) / rows))


def _map(look: Look, weights: Float[Tensor, "h w"], height: int, width: int) -> UInt8[np.ndarray, "{height} {width} 3"]:
    return coloured(enlarged(unit_range(weights), (height, width), look.upsampling))


def _overlay(
    look: Look, weights: Float[Tensor, "h w"], height: int, width: int
) -> UInt8[np.ndarray, "{height} {width} 3"]:
    values = enlarged(unit_range(weights), (height, width), look.upsampling)
    return overlaid(fitted(look.pixels, height, width), values)


def _mask(look: Look, weights: Float[Tensor, "h w"], height: int, width: int, name: str) -> Tile:
    assert look.threshold is not None
    mask = mass_mask(weights, look.threshold)
    large = enlarged(mask.float(), (height, width), "nearest").bool().numpy()
    share = 100 * float(mask.float().mean())
    area = f"{share:.{0 if share >= 10 else 1}f} % of the image"
    caption = f"{name}{area}" if name else f"{_percent(look.threshold)} of the attention in {area}"
    line = line_width(width / mask.shape[1])
    return Tile(masked(fitted(look.pixels, height, width), large, line), caption)


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
