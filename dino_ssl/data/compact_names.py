"""Millions of names in one block of bytes.

A list of strings takes about 100 bytes per name of 40 characters, and every forked worker soon has a copy of its
own: counting references writes to each string. This takes 45 bytes, and nothing writes to it.
"""

import os
from array import array
from collections.abc import Iterable, Sequence
from typing import overload

import numpy as np
from jaxtyping import UInt, UInt8

END = b"\0"


class CompactNames(Sequence[str]):
    """Names, read-only; bytes that are no UTF-8 come back as `os.fsdecode` shows them.

    Args:
        blob: the names as bytes, each with a zero behind it.
        starts: where each name begins, and the length of the blob.
    """

    def __init__(self, blob: UInt8[np.ndarray, " bytes"], starts: UInt[np.ndarray, " starts"]) -> None:
        self.blob = blob
        self.starts = starts

    @staticmethod
    def of(names: Iterable[str]) -> "CompactNames":
        """Store the names one by one; a generator is never held as a whole."""
        blob, starts = bytearray(), array("Q", [0])
        for name in names:
            blob += os.fsencode(name)
            blob += END
            starts.append(len(blob))
        # Without the room that both keep for more.
        width = np.uint32 if len(blob) < 2**32 else np.uint64
        return CompactNames(np.frombuffer(bytes(blob), np.uint8), np.array(starts, width))

    def __len__(self) -> int:
        return len(self.starts) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        position = range(len(self))[index]
        start, end = self.starts[position : position + 2].tolist()
        return os.fsdecode(self.blob[start : end - 1].tobytes())

    @property
    def nbytes(self) -> int:
        """Memory that the names take, bytes."""
        return self.blob.nbytes + self.starts.nbytes
