"""Masks of numbered objects: palette PNGs as DAVIS and Pascal VOC write them, and whatever else people draw."""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from dino_ssl.data.decoding import MAX_PIXELS, printable
from dino_ssl.data.png import damage_of
from dino_ssl.errors import UsageError

VOID = 255
"""Pixels that belong to nothing for sure; they count as background, as in DAVIS's own code."""
MOST_OBJECTS = 200


@dataclass(frozen=True)
class Mask:
    """Which object each pixel shows.

    Attributes:
        numbers: from 1 on, 0 for the background.
        palette: colour of each number.
    """

    numbers: UInt8[np.ndarray, "h w"]
    palette: UInt8[np.ndarray, "256 3"]


def default_palette() -> UInt8[np.ndarray, "256 3"]:
    """The colours of Pascal VOC and DAVIS: the bits of a number go to red, green and blue in turn, high ones first."""
    numbers = np.arange(256)
    colours = np.zeros((256, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            colours[:, channel] |= ((numbers >> channel & 1) << (7 - bit)).astype(np.uint8)
        numbers >>= 3
    return colours


def read_mask(path: Path, *, colours: bool = False) -> Mask:
    """Read a PNG of object numbers; 255 is void, but in a grey image where nothing else is set it is the one object.

    Args:
        colours: also take colour images: each colour but black is an object, in the order of their values.
    Raises:
        UsageError: the file cannot be read, is a colour image unasked, or has too many colours to be a mask.
    """
    name = printable(path)
    try:
        data = path.read_bytes()
        if damage := damage_of(data):
            raise ValueError(damage)
        with Image.open(io.BytesIO(data), formats=("PNG", "BMP", "TIFF", "GIF")) as image:
            if image.width * image.height > MAX_PIXELS:
                raise UsageError(f"{name}: larger than {MAX_PIXELS:,} pixels")
            image.load()
            if image.mode == "P":
                return Mask(_without_void(np.array(image)), _palette_of(image))
            if image.mode in ("1", "L"):
                return Mask(_of_grey(np.array(image.convert("L"))), default_palette())
            pixels = np.array(image.convert("RGB"))
    except FileNotFoundError:
        raise UsageError(f"{name} does not exist; write a PNG with a number for each object") from None
    except UsageError:
        raise
    except Exception as error:  # decoders of damaged bytes raise whatever their parser stumbles over
        raise UsageError(f"{name} is no mask that can be read ({error}); write a PNG") from None
    if not colours:
        raise UsageError(f"{name} is a colour image ({image.mode}); masks here are palette PNGs or grey ones")
    return _mask_of_colours(pixels, name)


def write_mask(path: Path, mask: Mask) -> None:
    """Write a palette PNG, as the evaluation of DAVIS reads it."""
    image = Image.fromarray(mask.numbers)
    image.putpalette(mask.palette.tobytes())
    image.save(path, format="PNG")


def _without_void(values: UInt8[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w"]:
    return np.where(values == VOID, 0, values).astype(np.uint8)


def _of_grey(values: UInt8[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w"]:
    if np.isin(values, (0, VOID)).all():
        return np.asarray(values == VOID, np.uint8)
    return _without_void(values)


def _palette_of(image: Image.Image) -> UInt8[np.ndarray, "256 3"]:
    """A file may have fewer colours than 256."""
    palette = default_palette()
    own = np.array(image.getpalette(), np.uint8).reshape(-1, 3)
    palette[: len(own)] = own
    return palette


def _mask_of_colours(pixels: UInt8[np.ndarray, "h w 3"], name: str) -> Mask:
    codes = pixels.astype(np.int32) @ np.array([1 << 16, 1 << 8, 1], np.int32)
    found, inverse = np.unique(codes, return_inverse=True)
    objects = found[found > 0]
    if len(objects) > MOST_OBJECTS:
        raise UsageError(
            f"{name} has {len(found):,} colours; a mask has black and one colour for each object, and no smooth edges"
        )
    palette = default_palette()
    palette[1 : len(objects) + 1] = objects[:, None] >> np.array([16, 8, 0]) & 255
    first = 1 - int(len(found) > len(objects))  # black, if it is there, is the smallest of all
    return Mask((inverse.reshape(pixels.shape[:2]) + first).astype(np.uint8), palette)
