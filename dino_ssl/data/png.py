"""The checksums of PNG, of which Pillow looks at some."""

import zlib
from collections.abc import Iterator

SIGNATURE = b"\x89PNG\r\n\x1a\n"


def damage_of(data: bytes) -> str:
    """A few words if a chunk's checksum is wrong; empty where all are right, or the file is no PNG or is cut."""
    if not data.startswith(SIGNATURE):
        return ""
    wrong = (kind for kind, begin, end in _chunks(data) if zlib.crc32(data[begin:end]) != _number(data[end : end + 4]))
    kind = next(wrong, None)
    return "" if kind is None else f"wrong checksum of {kind!r}"


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Kind of each whole chunk up to the last, and where what its checksum covers begins and ends."""
    begin, kind = len(SIGNATURE) + 4, b""
    while kind != b"IEND":
        end = begin + 4 + _number(data[begin - 4 : begin])
        if end + 4 > len(data):
            return
        kind = data[begin : begin + 4]
        yield kind, begin, end
        begin = end + 8


def _number(field: bytes) -> int:
    return int.from_bytes(field, "big")
