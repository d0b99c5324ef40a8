"""The members of an uncompressed tar: names, places and lengths, from the headers alone.

Where a tar is cut or damaged, the standard library's tarfile ends as if it were whole; and it builds an object for
each member.
"""

import os
import zlib
from collections.abc import Iterator
from typing import NamedTuple

BLOCK = 512  # bytes: headers and contents begin at multiples of this
END_MARK = bytes(BLOCK)
RECORD = 10240  # bytes to which writers fill up the last block with zeros
LONGEST_EXTENSION = 2**20  # bytes of a name or a list of pax records; more is damage
AHEAD = 4096  # bytes read with a header: a label and the next header often follow at once

COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
"""What compressed files begin with."""

REGULAR = (b"0", b"\0", b"7")
LINKS = (b"1", b"2")
WITHOUT_BYTES = (*LINKS, b"3", b"4", b"5", b"6")  # devices, folders, pipes: whatever their header says
LONG_NAME, LONG_LINK, PAX, GLOBAL_PAX, SPARSE = b"L", b"K", b"x", b"g", b"S"


class Member(NamedTuple):
    """A file in a tar.

    Attributes:
        name: as it is stored; any bytes.
        start: of the contents, bytes from the start of the tar.
        size: of the contents, bytes.
        kind: the header's type flag.
    """

    name: bytes
    start: int
    size: int
    kind: bytes


class DamagedTar(Exception):  # noqa: N818  (a condition of the data, not a fault of ours)
    """The tar cannot be followed any further.

    Args:
        reason: a few words for people.
        member: name of the member whose contents are cut, if that is the damage.
    """

    def __init__(self, reason: str, member: bytes | None = None) -> None:
        self.reason = reason
        self.member = member
        super().__init__(reason)


class Window:
    """Positioned reads of a file, a little ahead."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._start = 0
        self._bytes = b""

    def read(self, start: int, length: int) -> bytes:
        """Bytes from `start` on; fewer than `length` at the end of the file."""
        begin = start - self._start
        if begin < 0 or begin + length > len(self._bytes):
            self._start, self._bytes, begin = start, read_at(self.descriptor, start, max(length, AHEAD)), 0
        return self._bytes[begin : begin + length]


def read_at(descriptor: int, start: int, length: int) -> bytes:
    """Bytes from `start` on, without moving the file's position; fewer than `length` at the end of the file."""
    data = os.pread(descriptor, length, start)
    while len(data) < length and (more := os.pread(descriptor, length - len(data), start + len(data))):
        data += more  # network disks, and Linux above 2 GiB, give less at a time
    return data


def members(window: Window, num_bytes: int) -> Iterator[Member]:
    """Every member with its own name, in order; GNU's and pax's long names are put in.

    Args:
        num_bytes: length of the tar.
    Raises:
        DamagedTar: empty, no tar, cut, or damaged; after the members before the damage.
    """
    if num_bytes == 0:
        raise DamagedTar("empty file (0 bytes)")
    start, name, size = 0, None, None  # name and size of the next member, where an extension says them
    while (block := window.read(start, BLOCK)) != END_MARK:
        member = _header(block, start, num_bytes)
        if member.kind in (LONG_NAME, PAX):
            said = window.read(member.start, _checked(member, num_bytes))
            name, size = (said.rstrip(b"\0"), size) if member.kind == LONG_NAME else _pax(said, start)
        elif member.kind not in (LONG_LINK, GLOBAL_PAX):
            member = _with(member, name, size)
            _checked(member, num_bytes)
            yield member
            name = size = None
        start = member.start + -(-member.size // BLOCK) * BLOCK
    if num_bytes - start > 2 * RECORD and _goes_on(window, start, num_bytes):
        raise DamagedTar(f"{num_bytes - start:,} bytes follow its end mark and are not read; write one tar, not two")


def _header(block: bytes, start: int, num_bytes: int) -> Member:
    if len(block) < BLOCK or not _sum_holds(block):
        if start == 0:
            raise DamagedTar(_what_else(block))
        if len(block) < BLOCK:
            raise DamagedTar(f"cut after {num_bytes:,} bytes: it has no end mark")
        raise DamagedTar(f"damaged at byte {start:,}: what follows cannot be read")
    name, kind = _text(block[:100]), block[156:157]
    if block[257:263] == b"ustar\0" and (prefix := _text(block[345:500])):
        name = prefix + b"/" + name
    if kind in REGULAR and name.endswith(b"/"):
        kind = b"5"  # how tars of 1979 write a folder
    return Member(name, start + BLOCK, 0 if kind in WITHOUT_BYTES else _number(block[124:136], start), kind)


def header_before(descriptor: int, start: int) -> Member | None:
    """The member whose contents begin at `start`, with at most 100 bytes of its name if that is a long one."""
    try:
        return _header(read_at(descriptor, start - BLOCK, BLOCK), start - BLOCK, start)
    except (DamagedTar, OSError):
        return None


def _what_else(block: bytes) -> str:
    for magic, program in COMPRESSED.items():
        if block.startswith(magic):
            return f"compressed with {program}, so that no single image can be read; decompress it"
    return "not a tar file"


def _with(member: Member, name: bytes | None, size: int | None) -> Member:
    """The member with what an extension said about it."""
    if size is None or member.kind in WITHOUT_BYTES:
        size = member.size
    return Member(member.name if name is None else name, member.start, size, member.kind)


def _sum_holds(block: bytes) -> bool:
    """Whether the header's check sum, in which its own field counts as blanks, is right."""
    try:
        stored = _number(block[148:156], 0)
    except DamagedTar:
        return False
    field = block[148:156]
    unsigned = stored - 8 * ord(" ") + sum(field)
    # The low half of Adler-32 is 1 + the sum of the bytes, modulo 65521: ten times as fast as sum().
    if zlib.adler32(block) & 0xFFFF == (unsigned + 1) % 65521:
        return True
    signed = sum(block) - 256 * sum(byte > 127 for byte in block[:148] + block[156:])  # of some old writers
    return signed == unsigned


def _text(field: bytes) -> bytes:
    return field.partition(b"\0")[0]


def _number(field: bytes, start: int) -> int:
    """Octal digits, or GNU's binary form for what has too many of them."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    try:
        return _natural(_text(field).strip() or b"0", 8)
    except ValueError:
        raise DamagedTar(f"damaged at byte {start:,}: what follows cannot be read") from None


def _natural(digits: bytes, base: int) -> int:
    if not digits.isdigit():
        raise ValueError(digits)
    return int(digits, base)


def _pax(records: bytes, start: int) -> tuple[bytes | None, int | None]:
    """Name and size among the records "LENGTH KEY=VALUE\\n"."""
    name = size = None
    try:
        while digits := records.partition(b" ")[0].strip(b"\0"):
            record, records = records[: _natural(digits, 10)], records[_natural(digits, 10) :]
            key, _, value = record[len(digits) + 1 : -1].partition(b"=")
            if not record.endswith(b"\n"):
                raise ValueError(record)
            name = value if key == b"path" else name
            size = _natural(value, 10) if key == b"size" else size
    except ValueError:
        raise DamagedTar(f"damaged at byte {start:,}: what follows cannot be read") from None
    return name, size


def _checked(member: Member, num_bytes: int) -> int:
    """The member's size, if the tar is long enough for it."""
    if member.kind in (LONG_NAME, PAX) and member.size > LONGEST_EXTENSION:
        raise DamagedTar(f"damaged at byte {member.start - BLOCK:,}: what follows cannot be read")
    if member.start + member.size > num_bytes:
        raise DamagedTar(f"cut after {num_bytes:,} bytes, inside '{shown(member.name)}'", member.name)
    return member.size


def _goes_on(window: Window, start: int, num_bytes: int) -> bool:
    """Whether another member follows the end mark: two tars that somebody joined with `cat`."""
    while start < num_bytes:
        block = window.read(start, BLOCK)
        if block != END_MARK[: len(block)]:
            return len(block) == BLOCK and _sum_holds(block)
        start += BLOCK
    return False


def shown(name: bytes) -> str:
    """The name as text that can be written anywhere: bytes that are no UTF-8 are shown as escapes."""
    return name.decode("utf-8", "backslashreplace")
