"""What stands before the image in a record of InsightFace's: flag, labels, identifiers.

The flag is the number of labels that follow the header as an array; 0 leaves one label in the header itself. Three
headers are about, and nothing in a file says which it has: the image behind it does.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

SIGNATURES = (b"\xff\xd8", b"\x89PNG\r\n\x1a\n", b"BM", b"RIFF", b"GIF8", b"II*\0", b"MM\0*")
"""What encoded images begin with."""
LARGEST_FLOAT32 = 2**24
"""Up to here every integer is a float32; above it, neighbours share one."""
MAX_LABELS = 2**12
"""Labels of one image; more is damage."""


class DamagedHeader(Exception):  # noqa: N818  (a condition of the data, not a fault of ours)
    """A payload that does not begin as one of `HEADERS`."""


@dataclass(frozen=True)
class Header:
    """One form of header.

    Attributes:
        layout: of flag, label, and two identifiers, as `struct` writes it.
        label: type of the labels, also of those in an array.
        label_at: where the one in the header stands, bytes.
    """

    layout: str
    label: np.dtype[np.floating]
    label_at: int

    @property
    def size(self) -> int:
        """Bytes of the header, without an array of labels."""
        return struct.calcsize(self.layout)

    def labels(self, payload: bytes) -> Sequence[float]:
        """The labels of a payload.

        Raises:
            DamagedHeader: it is shorter than that, or has more than `MAX_LABELS`.
        """
        flag, label, _, _ = self._fields(payload)
        if not flag:
            return [label]
        found: list[float] = np.frombuffer(payload[self.size : self.start(payload)], self.label).tolist()
        return found

    def image(self, payload: bytes) -> bytes:
        """What follows the labels; empty in records that are about others.

        Raises:
            DamagedHeader: see `labels`.
        """
        return payload[self.start(payload) :]

    def start(self, payload: bytes) -> int:
        """Where the image begins."""
        flag, *_ = self._fields(payload)
        start: int = self.size + flag * self.label.itemsize
        if flag > MAX_LABELS or start > len(payload):
            raise DamagedHeader(f"promises {flag:,} labels in {len(payload):,} bytes")
        return start

    def payload(self, labels: Sequence[int | float], image: bytes, identifier: int, *, in_array: bool) -> bytes:
        """A payload; several labels always go into the array.

        Raises:
            ValueError: a label that the header's type cannot hold.
        """
        values = np.array(labels, self.label)
        if values.tolist() != [float(label) for label in labels]:
            raise ValueError(f"labels {list(labels)} are no {self.label}; above {LARGEST_FLOAT32:,} write WIDE headers")
        if in_array or len(labels) != 1:
            return struct.pack(self.layout, len(labels), 0.0, identifier, 0) + values.tobytes() + image
        return struct.pack(self.layout, 0, values[0], identifier, 0) + image

    def _fields(self, payload: bytes) -> tuple[int, float, int, int]:
        if len(payload) < self.size:
            raise DamagedHeader(f"has {len(payload):,} bytes, fewer than its header")
        flag, label, first, second = struct.unpack_from(self.layout, payload)
        return flag, label, first, second


NARROW = Header("<IfQQ", np.dtype("<f4"), 4)
"""MXNet's own, 24 bytes."""
WIDE = Header("<I4xdQQ", np.dtype("<f8"), 8)
"""With labels of double precision as DeepGlint writes them, 32 bytes."""
PACKED = Header("<IdQQ", np.dtype("<f8"), 4)
"""The same without a gap, 28 bytes."""
HEADERS = (NARROW, WIDE, PACKED)


def header_of(payload: bytes) -> Header | None:
    """The form behind which an image begins; None where that is none of them."""
    for header in HEADERS:
        try:
            if header.image(payload).startswith(SIGNATURES):
                return header
        except DamagedHeader:
            continue
    return None
