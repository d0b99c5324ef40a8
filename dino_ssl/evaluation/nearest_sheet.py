"""A page of queries, each with the images that are nearest to it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from dino_ssl.data.decoding import escaped

# Pixels.
TILE = 144
GAP = 10
LINE = 16
MARGIN = 24
INK, QUIET = "#16181d", "#6a6f7a"


@dataclass(frozen=True)
class Found:
    """An image and a line below it: a name, a similarity."""

    pixels: UInt8[np.ndarray, "h w 3"]
    caption: str


def nearest_sheet(rows: Sequence[Sequence[Found]]) -> Image.Image:
    """Draw rows of images, each seen whole in a square: the query first, apart, then what was found."""
    columns = max(len(row) for row in rows)
    width = 2 * MARGIN + columns * (TILE + GAP) + GAP
    page = Image.new("RGB", (width, 2 * MARGIN + LINE + len(rows) * (TILE + LINE + GAP)), "white")
    draw = ImageDraw.Draw(page)
    _write(draw, (MARGIN, MARGIN - 6), "query", INK)
    _write(draw, (_left(1), MARGIN - 6), "nearest first, with cosine similarity", INK)
    for number, row in enumerate(rows):
        top = MARGIN + LINE + number * (TILE + LINE + GAP)
        for column, found in enumerate(row):
            _paste(page, found.pixels, _left(column), top)
            _write(draw, (_left(column), top + TILE + 2), found.caption, QUIET, TILE)
    return page


def _left(column: int) -> int:
    """The query stands two gaps before the others."""
    return MARGIN + column * (TILE + GAP) + (GAP if column else 0)


def _paste(page: Image.Image, pixels: UInt8[np.ndarray, "h w 3"], left: int, top: int) -> None:
    image = Image.fromarray(pixels)
    scale = TILE / max(image.size)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    kind = Image.Resampling.NEAREST if scale >= 4 else Image.Resampling.LANCZOS
    page.paste(image.resize(size, kind), (left + (TILE - size[0]) // 2, top + (TILE - size[1]) // 2))


def _write(draw: ImageDraw.ImageDraw, at: tuple[int, int], text: str, colour: str, room: int = 10 * TILE) -> None:
    """One line, cut to a width."""
    font, text = ImageFont.load_default(11), escaped(text)
    while font.getlength(text) > room:
        text = text[:-2] + "."
    draw.text(at, text, colour, font)
