"""Bytes to pixels: every readable image becomes 8-bit RGB, every other one a BrokenImage with its reason."""

import io
import os
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

# Only what folders are searched for: PIL alone would also start Ghostscript for a PostScript file.
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF", "PPM")
MAX_PIXELS = 178_956_970
"""Largest image that is decoded, pixels: 512 MiB as RGB, the size at which PIL itself refuses."""


class BrokenImage(Exception):  # noqa: N818  (a condition of the data that loaders count, not a fault of ours)
    """An image that cannot be decoded.

    Args:
        path: path or other description of the image.
        reason: a few words for people.
    """

    def __init__(self, path: str, reason: str) -> None:
        self.path = path
        self.reason = reason
        super().__init__(path, reason)  # both, so that it can be sent from a worker process

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


def read(path: Path) -> Image.Image:
    """Decode an image file into 8-bit RGB.

    Raises:
        BrokenImage: the file has gone, cannot be opened, or is no image; see `decode`.
    """
    try:
        data = path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
        raise BrokenImage(printable(path), _unreadable(error)) from None
    return decode(data, printable(path))


def decode(data: bytes, name: str) -> Image.Image:
    """Decode an encoded image into 8-bit RGB, as `convert("RGB")` does: alpha and orientation are ignored.

    16-bit grey is the exception: it is scaled by 255/65535, where PIL would clip it. Of several frames the
    first counts.

    Raises:
        BrokenImage: empty, no image in one of `FORMATS`, damaged, above `MAX_PIXELS`, or pixels without a
            known range (floating point, 32-bit).

    Source: the original reads with torchvision's `pil_loader`, which transposes nothing either.
    """
    if not data:
        raise BrokenImage(name, "empty file (0 bytes)")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")  # what matters of them is raised below
        try:
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                return _rgb(image)
        except MemoryError:
            raise  # the machine's trouble, not the image's: its size was checked
        except Exception as error:  # decoders of damaged bytes raise whatever their parser stumbles over
            raise BrokenImage(name, _reason(error)) from None


def printable(path: Path) -> str:
    """The path as text that can be written anywhere: bytes that are no UTF-8 are shown as escapes."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _rgb(image: Image.Image) -> Image.Image:
    if image.width * image.height > MAX_PIXELS:
        raise Image.DecompressionBombError
    if image.mode == "F":
        raise ValueError("floating-point pixels have no known range; save it with 8 or 16 bits")
    if image.mode.startswith("I"):
        image = _eight_bits(image)
    return image.convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """16-bit grey (mode I;16, or I for PGM and older versions of PIL) scaled to 0..255 and rounded."""
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise ValueError("32-bit pixels outside 0..65535 have no known range; save it with 8 or 16 bits")
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))


def _reason(error: Exception) -> str:
    match error:
        case UnidentifiedImageError():
            return f"not an image, or its header is damaged (read are {', '.join(FORMATS)})"
        case Image.DecompressionBombError():
            return f"larger than {MAX_PIXELS:,} pixels"
        case _:
            return f"damaged: {error}" if str(error) else f"damaged ({type(error).__name__})"


def _unreadable(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "the file does not exist (any more)"
    return f"cannot be opened: {error.strerror if isinstance(error, OSError) else error}"
