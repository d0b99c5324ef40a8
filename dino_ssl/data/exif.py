"""How a camera was held, and pixels turned upright."""

import struct
from collections.abc import Iterator

import numpy as np
from jaxtyping import UInt8

ORIENTATION = 0x0112
SHORT = 3  # a type of value
START_OF_SCAN = 0xDA
APP1 = 0xE1
SIGNATURE = b"Exif\0\0"


def orientation_of_jpeg(data: bytes) -> int:
    """1 to 8 as EXIF numbers them; 1, upright, where the file does not say or is damaged.

    Source: CIPA DC-008 (EXIF 2.32), sections 4.5.2, 4.5.4 and 4.6.4.
    """
    for marker, content in _segments(data):
        if marker == APP1 and content.startswith(SIGNATURE):
            return _orientation_in(content[len(SIGNATURE) :])
    return 1


def upright(pixels: UInt8[np.ndarray, "_h _w c"], orientation: int) -> UInt8[np.ndarray, "_h2 _w2 c"]:
    """Mirror and turn pixels as an orientation of 1 to 8 asks for; others leave them."""
    if not 2 <= orientation <= 8:
        return pixels
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    down = -1 if orientation in (3, 4, 7, 8) else 1
    across = -1 if orientation in (2, 3, 6, 7) else 1
    return np.ascontiguousarray(pixels[::down, ::across])


def _segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Marker and content of what stands before the pixels of a JPEG."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != START_OF_SCAN:
        if data[at + 1] == 0xFF:  # fill
            at += 1
            continue
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        yield data[at + 1], data[at + 4 : end]
        at = end


def _orientation_in(tiff: bytes) -> int:
    """Of the first directory of a TIFF header."""
    order = "<" if tiff.startswith(b"II") else ">"
    try:
        (directory,) = struct.unpack_from(f"{order}I", tiff, 4)
        (num_entries,) = struct.unpack_from(f"{order}H", tiff, directory)
        for entry in range(num_entries):
            tag, kind, _, value = struct.unpack_from(f"{order}HHIH", tiff, directory + 2 + 12 * entry)
            if tag == ORIENTATION and kind == SHORT:
                return int(value)
    except struct.error:  # the block is cut
        pass
    return 1
