"""Pages of pictures: a title, then rows of tiles with captions, on whole pixels."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from dino_ssl.data.decoding import escaped
from dino_ssl.evaluation.heat import coloured

# Pixels of the page.
MARGIN = 32
GAP = 12
LINE = 22
CAPTION = 26
HEADING = 40
PAPER, INK, QUIET = "#ffffff", "#16181d", "#6a6f7a"


@dataclass(frozen=True)
class Tile:
    """A picture and a few words below it."""

    pixels: UInt8[np.ndarray, "h w 3"]
    caption: str = ""


@dataclass(frozen=True)
class Row:
    """Tiles side by side, aligned at the top.

    Attributes:
        heading: above the row; a row without one moves up.
        columns: a name above each tile.
        label: to the left of the row.
    """

    tiles: Sequence[Tile]
    heading: str = ""
    columns: Sequence[str] = ()
    label: str = ""

    @property
    def above(self) -> int:
        return (HEADING if self.heading else 0) + (LINE if self.columns else 0)

    @property
    def height(self) -> int:
        captions = CAPTION if any(tile.caption for tile in self.tiles) else 0
        return self.above + max(len(tile.pixels) for tile in self.tiles) + captions

    @property
    def width(self) -> int:
        widths: list[int] = [tile.pixels.shape[1] for tile in self.tiles]
        return sum(widths) + GAP * (len(widths) - 1)


def page(title: str, lines: Sequence[str], rows: Sequence[Row], *, legend: tuple[str, str] | None) -> Image.Image:
    """Draw rows of tiles below a title and lines about it.

    Args:
        title: cut at the left where it is too long.
        legend: what the darkest and the brightest colour of the maps mean; None draws no scale.
    """
    label_width = max((round(_font(14).getlength(row.label)) + GAP for row in rows if row.label), default=0)
    width = max(max(row.width for row in rows) + label_width, 480)
    lines = [_cut(part, width, _font(14)) for line in lines for part in _wrapped(escaped(line), width)]
    top = MARGIN + 34 + LINE * len(lines) + GAP
    legend_height = LINE + GAP if legend else 0
    height = top + sum(row.height + GAP for row in rows) - GAP + legend_height + MARGIN
    sheet = Image.new("RGB", (width + 2 * MARGIN, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN, MARGIN), _cut(escaped(title), width, _font(22, bold=True)), INK, _font(22, bold=True))
    for number, line in enumerate(lines):
        draw.text((MARGIN, MARGIN + 34 + LINE * number), line, QUIET, _font(14))
    for row in rows:
        _draw_row(sheet, row, MARGIN + label_width, top)
        top += row.height + GAP
    if legend:
        _draw_legend(sheet, top + 6, legend)
    return sheet


def fitted(pixels: UInt8[np.ndarray, "h w 3"], height: int, width: int) -> UInt8[np.ndarray, "{height} {width} 3"]:
    """The image at another size; few pixels are enlarged as squares."""
    kind = Image.Resampling.NEAREST if width >= 4 * pixels.shape[1] else Image.Resampling.LANCZOS
    return np.asarray(Image.fromarray(pixels).resize((width, height), kind))


def marked(pixels: UInt8[np.ndarray, "h w 3"], box: tuple[float, float, float, float]) -> UInt8[np.ndarray, "h w 3"]:
    """The image with a frame around a box: left, top, right and bottom as shares of width and height."""
    picture = Image.fromarray(pixels)
    draw = ImageDraw.Draw(picture)
    left, top, right, bottom = (
        round(share * side) for share, side in zip(box, (picture.width, picture.height) * 2, strict=True)
    )
    # White between two dark lines shows on every ground.
    for grow, colour in ((4, "black"), (3, "white"), (2, "white"), (1, "black")):
        draw.rectangle((left - grow, top - grow, right - 1 + grow, bottom - 1 + grow), outline=colour)
    return np.asarray(picture)


def _draw_row(sheet: Image.Image, row: Row, left: int, top: int) -> None:
    draw = ImageDraw.Draw(sheet)
    if row.heading:
        draw.text((left, top + 14), row.heading, INK, _font(15, bold=True))
    if row.label:
        middle = top + row.above + row.tiles[0].pixels.shape[0] // 2
        draw.text((MARGIN, middle), row.label, QUIET, _font(14), anchor="lm")
    top += row.above
    for number, tile in enumerate(row.tiles):
        height, width, _ = tile.pixels.shape
        if row.columns:
            draw.text((left, top - 6), row.columns[number], QUIET, _font(12), anchor="ls")
        sheet.paste(Image.fromarray(tile.pixels), (left, top))
        draw.text((left, top + height + 6), _cut(escaped(tile.caption), width, _font(12)), QUIET, _font(12))
        left += width + GAP


def _draw_legend(sheet: Image.Image, top: int, legend: tuple[str, str]) -> None:
    low, high = legend
    draw, font = ImageDraw.Draw(sheet), _font(12)
    draw.text((MARGIN, top + 6), low, QUIET, font, anchor="lm")
    left = MARGIN + round(font.getlength(low)) + 8
    sheet.paste(Image.fromarray(coloured(torch.linspace(0, 1, 160).expand(12, -1))), (left, top))
    draw.text((left + 168, top + 6), high, QUIET, font, anchor="lm")


def _wrapped(text: str, width: int) -> list[str]:
    """Lines of at most `width` pixels, where words allow."""
    lines = [""]
    for word in text.split(" "):
        longer = f"{lines[-1]} {word}".strip()
        if _font(14).getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return [line for line in lines if line]


def _cut(text: str, width: int, font: ImageFont.FreeTypeFont) -> str:
    """The end of a text: of a path it says most."""
    if font.getlength(text) <= width:
        return text
    dropped = bisect_left(range(len(text)), True, key=lambda dropped: font.getlength("…" + text[dropped:]) <= width)
    return "…" + text[dropped:]


@cache
def _font(size: int, *, bold: bool = False) -> ImageFont.FreeTypeFont:
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name, size)
