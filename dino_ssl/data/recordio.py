"""RecordIO, MXNet's file of records, read and written without MXNet.

A record is the magic number (4 bytes), a word of 3 bits kind and 29 bits length, the payload, and zeros up to a
multiple of 4. A payload that holds the magic where a header could stand is cut there into parts (first, middle, last),
and the magic itself is left out. A second file, the index, has a line `key<TAB>offset` for each record.

Layout: dmlc-core's recordio. Offsets are bytes from the start of the file, everywhere in this module.
"""

import os
import re
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from dino_ssl.data.decoding import MAX_BYTES
from dino_ssl.data.tar.tar_members import read_at
from dino_ssl.errors import UsageError

MAGIC = 0xCED7230A
MAGIC_BYTES = struct.pack("<I", MAGIC)
HEADER = struct.Struct("<II")
LONGEST_PART = 2**29 - 1  # bytes
MAX_PARTS = 2**16
"""Parts of one record; a photograph is cut once in thousands."""
WHOLE, FIRST, MIDDLE, LAST = range(4)
LINES = re.compile(rb"(?:\d{1,18}\t\d{1,18}\r?\n)*+")  # possessive: nothing is kept to go back to


class DamagedRecord(Exception):  # noqa: N818  (a condition of the data, not a fault of ours)
    """A record that cannot be read.

    Args:
        offset: of the header that is wrong.
        reason: a few words for people.
    """

    def __init__(self, offset: int, reason: str) -> None:
        self.offset = offset
        self.reason = reason
        super().__init__(offset, reason)

    def __str__(self) -> str:
        return f"the record at byte {self.offset:,} {self.reason}"


class RecordFile:
    """A file of records, read at the places that an index names, by several threads and forked processes at once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.descriptor = os.open(path, os.O_RDONLY)
        self.num_bytes = os.fstat(self.descriptor).st_size

    def __reduce__(self) -> tuple[type["RecordFile"], tuple[Path]]:
        return RecordFile, (self.path,)

    def __del__(self) -> None:
        if "descriptor" in vars(self):  # not where the file could not be opened
            os.close(self.descriptor)

    def read(self, offset: int) -> bytes:
        """The payload of a record, put together where it is in parts.

        Raises:
            DamagedRecord: no record begins there, it goes beyond the file, or is longer than `decoding.MAX_BYTES`.
            OSError: the disk refuses.
        """
        kind, payload, end = self._part(offset, self.num_bytes)
        if kind == WHOLE:
            return payload
        if kind != FIRST:
            raise DamagedRecord(offset, "begins in the middle of another one")
        parts, length, start = [payload], len(payload), offset
        while kind != LAST:
            start = end
            kind, payload, end = self._part(start, MAX_BYTES - length)
            if kind not in (MIDDLE, LAST):
                raise DamagedRecord(start, f"should be a further part of the one at byte {offset:,}, and is none")
            parts.append(payload)
            length += len(MAGIC_BYTES) + len(payload)
            if len(parts) > MAX_PARTS:
                raise DamagedRecord(offset, f"is in more than {MAX_PARTS:,} parts")
        return MAGIC_BYTES.join(parts)

    def _part(self, offset: int, longest: int) -> tuple[int, bytes, int]:
        """Kind and payload of the part at an offset, and where the next header stands."""
        header = read_at(self.descriptor, offset, HEADER.size)
        if len(header) < HEADER.size:
            raise DamagedRecord(offset, f"lies beyond the end of the file, at byte {self.num_bytes:,}")
        magic, word = HEADER.unpack(header)
        if magic != MAGIC:
            raise DamagedRecord(offset, f"has no magic number 0x{MAGIC:08x} but 0x{magic:08x}")
        kind, length = word >> 29, word & LONGEST_PART
        if kind > LAST:
            raise DamagedRecord(offset, f"is of the kind {kind}, which does not exist")
        start = offset + HEADER.size
        if start + length > self.num_bytes:
            missing = start + length - self.num_bytes
            raise DamagedRecord(offset, f"is cut: {missing:,} of its {length:,} bytes are missing")
        if length > longest:
            raise DamagedRecord(offset, f"is longer than {MAX_BYTES:,} bytes")
        payload = read_at(self.descriptor, start, length)
        if len(payload) < length:
            raise DamagedRecord(offset, "has become shorter while the file was open")
        return kind, payload, start + -(-length // 4) * 4


def read_index(file: Path, num_bytes: int) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " n"]]:
    """Keys, rising, and offsets of the records that an index names.

    Args:
        num_bytes: length of the file of records, which bounds the index, too.
    Raises:
        UsageError: the index is missing, empty or damaged, names a key twice, or a place where no record can begin.
    """
    try:
        longest = (num_bytes // HEADER.size + 1) * 2 * len("9" * 18 + "\t")
        if file.stat().st_size > longest:
            raise UsageError(
                f"{file} is longer than an index of {num_bytes:,} bytes of records can be: one of them is cut"
            )
        content = file.read_bytes()
    except OSError as error:
        raise UsageError(f"{file}, the index of the records beside it, cannot be opened: {error.strerror}") from None
    content += b"" if content.endswith(b"\n") else b"\n"
    match = LINES.match(content)
    assert match  # also of nothing
    if match.end() < len(content) or len(content) == 1:
        line = content.count(b"\n", 0, match.end()) + 1
        raise UsageError(f"{file}, line {line}: it must be a key, a tab and an offset in bytes; make the index anew")
    numbers = np.fromstring(content.decode("ascii"), np.int64, sep=" ").reshape(-1, 2)
    keys, offsets = numbers[np.argsort(numbers[:, 0], kind="stable")].T
    _check_index(file, keys, offsets, num_bytes)
    return np.ascontiguousarray(keys), np.ascontiguousarray(offsets)


def _check_index(file: Path, keys: Int64[np.ndarray, " n"], offsets: Int64[np.ndarray, " n"], num_bytes: int) -> None:
    problems = []
    if (twice := np.flatnonzero(keys[1:] == keys[:-1])).size:
        problems.append(f"{file}: key {keys[twice[0]]} comes twice")
    if (crooked := np.flatnonzero(offsets % 4)).size:
        key, offset = keys[crooked[0]], offsets[crooked[0]]
        problems.append(f"{file}: key {key} is at byte {offset:,}, and records begin at multiples of 4")
    if (beyond := np.flatnonzero(offsets > num_bytes - HEADER.size)).size:
        first = beyond[np.argmin(offsets[beyond])]
        where = f"from key {keys[first]} at byte {offsets[first]:,} on"
        problems.append(
            f"{file}: {len(beyond):,} of {len(keys):,} records lie beyond the end of their file, {where}, which has "
            f"{num_bytes:,} bytes: it is cut, or the index belongs to another one; fetch both again"
        )
    if problems:
        raise UsageError(*problems)


class RecordWriter:
    """Writes records and their index, as MXNet would read them. Nothing is overwritten.

    Args:
        path: of the records; the index lies beside it, with .idx for its suffix.
    Raises:
        FileExistsError: one of the two is there.
    """

    def __init__(self, path: Path) -> None:
        self._records = path.open("xb")
        self._index = path.with_suffix(".idx").open("x", encoding="ascii", newline="\n")

    def add(self, key: int, payload: bytes) -> None:
        """Write a record.

        Raises:
            ValueError: a part is longer than the format allows.
        """
        parts = list(parts_of(payload))
        if any(len(part) > LONGEST_PART for part in parts):
            raise ValueError(f"record {key} has a part of more than {LONGEST_PART:,} bytes")
        self._index.write(f"{key}\t{self._records.tell()}\n")
        for number, part in enumerate(parts):
            kind = WHOLE if len(parts) == 1 else FIRST if number == 0 else LAST if number == len(parts) - 1 else MIDDLE
            self._records.write(HEADER.pack(MAGIC, kind << 29 | len(part)) + part + bytes(-len(part) % 4))

    def close(self) -> None:
        """Put both on the disk."""
        for file in (self._records, self._index):
            file.flush()
            os.fsync(file.fileno())
            file.close()

    def __enter__(self) -> "RecordWriter":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def parts_of(payload: bytes) -> Iterator[bytes]:
    """A payload cut where the magic stands at a multiple of 4 from the start of the part before it, without it."""
    start = look = 0
    while (found := payload.find(MAGIC_BYTES, look)) >= 0:
        if found % 4:
            look = found + 1
        else:
            yield payload[start:found]
            start = look = found + len(MAGIC_BYTES)
    yield payload[start:]
