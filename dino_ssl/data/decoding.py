"""Bytes to pixels: every readable image becomes 8-bit [h, w, c], every other one a BrokenImage with its reason."""

import io
import os
import re
import stat
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import simplejpeg
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

from dino_ssl.data import exif, png

# Only what folders are searched for: PIL alone would also start Ghostscript for a PostScript file.
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF", "PPM")
MAX_PIXELS = 178_956_970
"""Largest image that is decoded, pixels: 512 MiB as RGB, the size at which PIL itself refuses."""
MAX_BYTES = 2**30
"""Largest file that is read; `MAX_PIXELS` in RGB with 16 bits are less."""
LARGEST_SHRINK = 8  # what JPEG's own scaling offers
COLORSPACES = {1: "GRAY", 3: "RGB"}
JPEG = b"\xff\xd8"

Raw = bytes | UInt8[np.ndarray, "h w c"]
"""An image as its source holds it: encoded, or pixels already."""


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


@dataclass(frozen=True)
class Decoded:
    """Pixels, and the width and height that the image had before it was shrunk."""

    pixels: UInt8[np.ndarray, "h w c"]
    width: int
    height: int

    def scale(self) -> tuple[float, float]:
        """Decoded pixels per pixel of the whole image, across and down."""
        height, width, _ = self.pixels.shape
        return width / self.width, height / self.height


def read(path: Path) -> bytes:
    """The bytes of an image file.

    Raises:
        BrokenImage: the file has gone, cannot be opened, is no file, or is above `MAX_BYTES`.
    """
    try:
        with open(path, "rb", buffering=0, opener=_open_without_waiting) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise BrokenImage(printable(path), "no file but a folder, a pipe or a device")
            if status.st_size > MAX_BYTES:
                raise BrokenImage(printable(path), f"larger than {MAX_BYTES:,} bytes")
            return file.readall()
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
        raise BrokenImage(printable(path), _unreadable(error)) from None


def _open_without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # a named pipe would wait for somebody who writes to it


def decode(data: Raw, name: str, *, channels: int = 3, enough_pixels: float = float("inf")) -> Decoded:
    """Decode an image as a viewer shows it: upright, and on white where it is transparent.

    16-bit grey is scaled by 255/65535, where PIL would clip it. Of several frames the first counts.

    Args:
        channels: 3 for RGB, 1 for luma; any other number must be what the image has.
        enough_pixels: an image that still has as many pixels after it is halved, perhaps several times, is
            (JPEGs while they are decoded, which is faster).
    Raises:
        BrokenImage: empty, no image in one of `FORMATS`, damaged, above `MAX_PIXELS`, of another number of
            channels, or pixels without a known range (floating point, 32-bit).
    """
    if not isinstance(data, bytes):
        pixels = with_channels(data, channels, name)
        return Decoded(pixels, pixels.shape[1], pixels.shape[0])
    if not data:
        raise BrokenImage(name, "empty file (0 bytes)")
    return _decode_jpeg(data, channels, enough_pixels) or _decode_with_pil(data, name, channels, enough_pixels)


def with_channels(pixels: UInt8[np.ndarray, "h w c"], channels: int, name: str) -> UInt8[np.ndarray, "h w _"]:
    """Pixels with the number of channels that is asked for: grey is repeated, RGB reduced to luma.

    Raises:
        BrokenImage: there is no rule for that pair of numbers.
    """
    match pixels.shape[2], channels:
        case found, wanted if found == wanted:
            return pixels
        case 1, 3:
            return np.repeat(pixels, 3, axis=2)
        case 3, 1:
            return np.asarray(Image.fromarray(pixels).convert("L"))[..., None]
        case found, _:
            raise BrokenImage(name, f"{found} channels where crops.channels={channels}")


def bands(pixels: UInt8[np.ndarray, "h w c"]) -> list[Image.Image]:
    """One RGB image for PIL; of other numbers of channels a grey image for each."""
    if pixels.shape[2] == 3:
        return [Image.fromarray(pixels)]
    return [Image.fromarray(np.ascontiguousarray(pixels[..., channel])) for channel in range(pixels.shape[2])]


def printable(path: Path | str) -> str:
    """A path, or text that holds some, as text that can be written anywhere: bytes that are no UTF-8 become escapes."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def escaped(text: str) -> str:
    """`printable`, on one line and without tabs, whatever characters a name has: a cell of a list."""
    return re.sub(r"[\x00-\x1f\x7f\x85\u2028\u2029]", lambda found: repr(found[0])[1:-1], printable(text))


def shrink_factor(width: int, height: int, enough_pixels: float) -> int:
    """The largest power of two up to 8 that leaves an image `enough_pixels`."""
    factor = 1
    while factor < LARGEST_SHRINK and width * height >= enough_pixels * (2 * factor) ** 2:
        factor *= 2
    return factor


def _decode_jpeg(data: bytes, channels: int, enough_pixels: float) -> Decoded | None:
    """The fast way for the plain JPEG; None leaves everything unusual, damage included, to PIL's judgement."""
    if not data.startswith(JPEG) or channels not in COLORSPACES:
        return None
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
        if colorspace not in ("YCbCr", "RGB", "Gray") or width * height > MAX_PIXELS:
            return None
        factor = shrink_factor(width, height, enough_pixels)
        smallest = {"min_width": -(-width // factor), "min_height": -(-height // factor)} if factor > 1 else {}
        pixels = simplejpeg.decode_jpeg(data, COLORSPACES[channels], **smallest)
    except ValueError:
        return None
    return _turned(pixels, width, height, exif.orientation_of_jpeg(data))


def _turned(pixels: UInt8[np.ndarray, "h w c"], width: int, height: int, orientation: int) -> Decoded:
    turned = exif.upright(pixels, orientation)
    return Decoded(turned, height, width) if 5 <= orientation <= 8 else Decoded(turned, width, height)


def _decode_with_pil(data: bytes, name: str, channels: int, enough_pixels: float) -> Decoded:
    _ignore_warnings_of_pil()
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise Image.DecompressionBombError
            if damage := png.damage_of(data):
                raise ValueError(damage)
            image.load()
            orientation = exif.orientation_of_jpeg(data) if data.startswith(JPEG) else _orientation(image)
            whole = _with_bands(_eight_bits(image), channels)
            pixels = _shrunk(whole, shrink_factor(*whole.size, enough_pixels))
    except MemoryError:
        raise  # the machine's trouble, not the image's: its size was checked
    except Exception as error:  # decoders of damaged bytes raise whatever their parser stumbles over
        raise BrokenImage(name, _reason(error)) from None
    return _turned(with_channels(pixels, channels, name), *whole.size, orientation)


def _shrunk(image: Image.Image, factor: int) -> UInt8[np.ndarray, "h w c"]:
    """The means of blocks; band by band, as PIL would weight the others by a fourth one, taking it for alpha."""
    return np.stack([np.asarray(band.reduce(factor)) for band in image.split()], axis=-1)


def _orientation(image: Image.Image) -> int:
    """Of a loaded image: PIL has turned TIFF by then, and forgotten its orientation."""
    try:
        return int(image.getexif().get(exif.ORIENTATION, 1))
    except Exception:  # damaged metadata, of which PIL says so in many ways, harm no pixel
        return 1


# What matters of PIL's warnings is raised above. The filter is the process's: `catch_warnings` is not for threads.
_PIL_FILTER = ("ignore", None, Warning, re.compile(r"PIL\."), 0)


def _ignore_warnings_of_pil() -> None:
    if _PIL_FILTER not in warnings.filters:
        warnings.filterwarnings("ignore", module=r"PIL\.")


def _with_bands(image: Image.Image, channels: int) -> Image.Image:
    """RGB or L; for other numbers of channels the bands that the image has."""
    if channels not in COLORSPACES:
        # Without an argument PIL turns a palette into its colours, and nothing else.
        return image.convert("L") if image.mode == "1" else image.convert()
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("L" if channels == 1 else "RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """16-bit grey (mode I;16, or I for PGM and older versions of PIL) scaled to 0..255 and rounded."""
    if image.mode == "F":
        raise ValueError("floating-point pixels have no known range; save it with 8 or 16 bits")
    if not image.mode.startswith("I"):
        return image
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
