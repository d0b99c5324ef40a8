"""An image as a source holds it -> the file that goes into a shard."""

import io
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from dino_ssl.data.decoding import FORMATS, BrokenImage, Raw, decode
from dino_ssl.errors import UsageError

SUBSAMPLING = "4:2:0"
"""Of the colours of JPEGs: every second pixel across and down, as cameras and most data sets have them."""
LONGEST_SIDE = 65_535  # pixels, of a JPEG
EXTENSIONS = {"PNG": "png", "BMP": "bmp", "WEBP": "webp", "TIFF": "tif", "GIF": "gif", "PPM": "ppm"}
"""Of the formats besides JPEG, as PIL calls them."""


@dataclass(frozen=True)
class ImageFile:
    """An encoded image.

    Attributes:
        extension: of its format, without a dot.
    """

    extension: str
    data: bytes


def unchanged(raw: Raw, name: str) -> ImageFile:
    """The encoded bytes as they are, after a look whether they can be decoded; pixels as PNG.

    Raises:
        BrokenImage: they cannot be decoded.
        UsageError: pixels with more channels than PNG has.
    """
    if not isinstance(raw, bytes):
        return ImageFile("png", _png(raw, name))
    # JPEGs are decoded at an eighth of their size: all bytes are read, in half the time.
    decode(raw, name, enough_pixels=1.0)
    return ImageFile(extension(raw), raw)


def reduced(raw: Raw, name: str, short_side: int, quality: int) -> ImageFile:
    """The upright image as JPEG, its short side reduced to `short_side` pixels (antialiased bicubic).

    Smaller images keep their size, and those that are JPEGs their bytes.

    Args:
        quality: 1 to 100, of the JPEG.
    Raises:
        BrokenImage: it cannot be decoded, or is longer than a JPEG can be.
        UsageError: pixels with neither one nor three channels.
    """
    if not isinstance(raw, bytes) and raw.shape[2] not in (1, 3):
        raise UsageError(f"{name} has {raw.shape[2]} channels, JPEG has 1 or 3: leave --short-side out")
    pixels = decode(raw, name, channels=3 if isinstance(raw, bytes) else raw.shape[2]).pixels
    height, width, _ = pixels.shape
    shrink = max(1.0, min(height, width) / short_side)
    if shrink == 1 and isinstance(raw, bytes) and extension(raw) == "jpg":
        return ImageFile("jpg", raw)
    size = max(1, round(width / shrink)), max(1, round(height / shrink))
    if max(size) > LONGEST_SIDE:
        raise BrokenImage(name, f"{size[0]} x {size[1]} pixels; a JPEG has at most {LONGEST_SIDE:,} on a side")
    return ImageFile("jpg", _jpeg(_image(pixels).resize(size, Image.Resampling.BICUBIC), quality))


def extension(data: bytes) -> str:
    """What the name of a file with these contents ends with; it has to be an image that can be decoded."""
    if data.startswith(b"\xff\xd8"):
        return "jpg"
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        return EXTENSIONS[image.format or ""]


def _image(pixels: UInt8[np.ndarray, "h w c"]) -> Image.Image:
    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)


def _jpeg(image: Image.Image, quality: int) -> bytes:
    pixels = np.asarray(image)
    if pixels.ndim == 3 and (pixels == pixels[..., :1]).all():
        image = Image.fromarray(pixels[..., 0])  # grey is stored as grey
    stream = io.BytesIO()
    # Not simplejpeg: its encoder always takes the fast, less exact cosine transform.
    image.save(stream, "JPEG", quality=quality, subsampling=SUBSAMPLING)
    return stream.getvalue()


def _png(pixels: UInt8[np.ndarray, "h w c"], name: str) -> bytes:
    if pixels.shape[2] > 4:
        raise UsageError(f"{name} has {pixels.shape[2]} channels, PNG has 1 to 4: train on the arrays themselves")
    stream = io.BytesIO()
    _image(pixels).save(stream, "PNG")
    return stream.getvalue()
