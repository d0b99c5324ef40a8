"""A picture of what the model will see: a few images, and the views that the recipe draws of each."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import Image, ImageDraw, ImageFont

from dino_ssl.data.crops import MultiCrop
from dino_ssl.data.decoding import printable
from dino_ssl.data.render_pil import render
from dino_ssl.data.sources import Source, load
from dino_ssl.data.streams import Purpose, stream
from dino_ssl.data.whole_image import as_rgb

# Pixels of the sheet.
ROOM = 224
"""Height of a row, and side of a global view."""
SMALL_ROOM = 96
"""Side of a local view: two lie on each other."""
IMAGE_WIDTH = 320
GAP = 12
LINE = 15
GLOBAL_COLOURS = ("#d62728", "#1f77b4")
LOCAL_COLOUR = "#f2c800"
INK = "#202020"
COARSE = 4
"""Magnification from which on an image is shown pixel by pixel."""


def contact_sheet(source: Source, indices: Sequence[int], crops: MultiCrop, *, channels: int, seed: int) -> Image.Image:
    """Draw a row for each image: the image with the boxes of its views, the global views, the local views.

    The views are those that training with this seed sees in its first epoch.

    Raises:
        BrokenImage: an image cannot be read.
    """
    num_local = len(crops.recipes) - 2
    width = IMAGE_WIDTH + 2 * (ROOM + GAP) + -(-num_local // 2) * (SMALL_ROOM + 2 * GAP) + 2 * GAP
    row_height = ROOM + 2 * LINE + GAP
    sheet = Image.new("RGB", (width, len(indices) * row_height + 2 * LINE + 2 * GAP), "white")
    _write(sheet, (GAP, GAP), _legend(crops), width)
    for row, index in enumerate(indices):
        decoded = load(source, index, channels=channels)
        views = crops.draw(stream(seed, Purpose.CROPS, 0, index), decoded.width, decoded.height)
        top = 2 * GAP + LINE + row * row_height
        _draw_image(sheet, top, decoded.pixels, views)
        _write(sheet, (GAP, top + ROOM), source.describe(index), IMAGE_WIDTH - GAP, keep_end=True)
        _write(sheet, (GAP, top + ROOM + LINE), _about(source, index, decoded.pixels), IMAGE_WIDTH - GAP)
        _draw_views(sheet, top, views, _rendered(decoded.pixels, views, crops))
    return sheet


def _legend(crops: MultiCrop) -> str:
    texts = []
    for name, group in (("global", crops.recipes[:2]), ("local", crops.recipes[2:3])):
        texts += [f"{name}: {r.size} px of {r.scale[0]:.0%} to {r.scale[1]:.0%} of the image" for r in group[:1]]
    return "   ".join([*texts, "red, blue: global views 1 and 2", *["yellow: local views"][: len(texts) - 1]])


def _rendered(
    pixels: UInt8[np.ndarray, "h w c"], views: Shaped[np.ndarray, " v"], crops: MultiCrop
) -> list[Image.Image]:
    shown = []
    for which, size in crops.groups:
        out = np.empty((len(views[which]), pixels.shape[2], size, size), np.uint8)
        render(pixels, views[which], out)
        shown += [Image.fromarray(as_rgb(view.transpose(1, 2, 0))) for view in out]
    return shown


def _draw_image(
    sheet: Image.Image, top: int, pixels: UInt8[np.ndarray, "h w c"], views: Shaped[np.ndarray, " v"]
) -> None:
    """The image in its room, with the box of each view; small images are magnified."""
    height, width, _ = pixels.shape
    scale = min((IMAGE_WIDTH - GAP) / width, ROOM / height)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    kind = Image.Resampling.NEAREST if scale >= COARSE else Image.Resampling.BICUBIC
    sheet.paste(Image.fromarray(as_rgb(pixels)).resize(size, kind), (GAP, top))
    draw = ImageDraw.Draw(sheet)
    for number in (*range(2, len(views)), 0, 1):  # the global boxes on top
        x, y, w, h = views["box"][number] * scale
        left, upper = GAP + x, top + y
        right, lower = left + max(w - 1, 1), upper + max(h - 1, 1)
        # A dark line beside the coloured one, so that it shows on every ground.
        draw.rectangle((left + 1, upper + 1, right + 1, lower + 1), outline="black")
        draw.rectangle((left, upper, right, lower), outline=_colour(number), width=2 if number < 2 else 1)
        if number >= 2:
            draw.rectangle((left, upper, left + 8, upper + 11), fill=_colour(number))
            draw.text((left + 2, upper), str(number - 1), "black", _font(10))


def _draw_views(sheet: Image.Image, top: int, views: Shaped[np.ndarray, " v"], rendered: list[Image.Image]) -> None:
    for number, (view, image) in enumerate(zip(views, rendered, strict=True)):
        if number < 2:
            room, left, upper, label = ROOM, IMAGE_WIDTH + GAP + number * (ROOM + GAP), top, ""
        else:
            column, line = divmod(number - 2, 2)
            room, label = SMALL_ROOM, f"{number - 1}:  "
            left = IMAGE_WIDTH + GAP + 2 * (ROOM + GAP) + column * (SMALL_ROOM + 2 * GAP)
            upper = top + line * (SMALL_ROOM + 2 * LINE)
        sheet.paste(_fitted(image, room), (left, upper))
        ImageDraw.Draw(sheet).rectangle((left - 1, upper - 1, left + room, upper + room), outline=_colour(number))
        _write(sheet, (left, upper + room + 1), label + _operations(view), room + 2 * GAP - 4 if number >= 2 else room)


def _fitted(image: Image.Image, room: int) -> Image.Image:
    """As large as its room; the model's pixels show where it has few."""
    kind = Image.Resampling.NEAREST if image.width <= room else Image.Resampling.LANCZOS
    return image.resize((room, room), kind) if image.width != room else image


def _operations(view: np.void) -> str:
    """What was done to a view, in a few words."""
    done = {
        "flip": view["flip"],
        "jitter": (view["order"] >= 0).any(),
        "grey": view["grayscale"],
        f"blur {view['blur_radius']:.1f}": view["blur_radius"] > 0,
        "solarize": view["solarize"],
    }
    return "  ".join(name for name, happened in done.items() if happened) or "plain"


def _about(source: Source, index: int, pixels: UInt8[np.ndarray, "h w c"]) -> str:
    height, width, _ = pixels.shape
    named = "" if source.labels is None else f"   class {source.classes[source.labels[index]]}"
    return f"{width} x {height}{named}"


def _colour(number: int) -> str:
    return GLOBAL_COLOURS[number] if number < 2 else LOCAL_COLOUR


def _write(sheet: Image.Image, at: tuple[int, int], text: str, width: int, *, keep_end: bool = False) -> None:
    """One line of text, cut to a width."""
    font, text, dropped = _font(11), printable(text), 0
    shown = text
    while dropped < len(text) and font.getlength(shown) > width:
        dropped += 1
        shown = f"...{text[dropped:]}" if keep_end else f"{text[:-dropped]}..."
    ImageDraw.Draw(sheet).text(at, shown, INK, font)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
