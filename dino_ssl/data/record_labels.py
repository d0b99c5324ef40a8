"""The first label of every record of faces, many at once: a file has millions of them."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int64, Shaped, UInt8

from dino_ssl.data.face_headers import MAX_LABELS, DamagedHeader, Header
from dino_ssl.data.recordio import HEADER, LONGEST_PART, MAGIC, WHOLE, DamagedRecord, RecordFile

CHUNK = 2**16
"""Records at once: 4 MiB of headers."""


@dataclass(frozen=True)
class Labels:
    """What the records at so many offsets say.

    Attributes:
        labels: the first of each; nan where there is none.
        is_image: something follows the labels.
        damaged: by place, what is wrong; these are no images.
    """

    labels: Float64[np.ndarray, " n"]
    is_image: Bool[np.ndarray, " n"]
    damaged: dict[int, str]


def read_labels(records: RecordFile, offsets: Int64[np.ndarray, " n"], header: Header) -> Labels:
    """Read the headers of all records; the images themselves stay on the disk."""
    found = Labels(np.full(len(offsets), np.nan), np.zeros(len(offsets), bool), {})
    content = np.memmap(records.path, np.uint8, "r")
    for begin in range(0, len(offsets), CHUNK):
        chunk = slice(begin, begin + CHUNK)
        alone = _fill(found, content, offsets[chunk], header, chunk)
        for place in (begin + np.flatnonzero(alone)).tolist():
            _fill_one(found, records, int(offsets[place]), header, place)
    return found


def _fill(
    found: Labels, content: UInt8[np.ndarray, " bytes"], offsets: Int64[np.ndarray, " c"], header: Header, chunk: slice
) -> Bool[np.ndarray, " c"]:
    """Enter what is whole and plain; true where a record has to be looked at by itself."""
    fields, item = header.size, header.label.itemsize
    length = HEADER.size + fields + item
    # Behind the end of the file the last byte is repeated; these records are too short to be taken below.
    places = np.minimum(offsets[:, None] + np.arange(length), len(content) - 1)
    heads = np.asarray(content)[places]
    magic, word, flag = (_column(heads, start, "<u4") for start in (0, 4, HEADER.size))
    size = (word & LONGEST_PART).astype(np.int64)
    start = fields + flag.astype(np.int64) * item
    is_whole = (magic == MAGIC) & (word >> 29 == WHOLE) & (offsets + HEADER.size + size <= len(content))
    is_plain = is_whole & (size >= start) & (flag <= MAX_LABELS)
    in_header = _column(heads, HEADER.size + header.label_at, header.label.str)
    in_array = _column(heads, HEADER.size + fields, header.label.str)
    labels = np.where(flag == 0, in_header, in_array).astype(np.float64)
    found.labels[chunk] = np.where(is_plain, labels, np.nan)
    found.is_image[chunk] = is_plain & (size > start)
    alone: Bool[np.ndarray, " c"] = ~is_plain & ~(is_whole & (size == 0))
    return alone


def _column(heads: UInt8[np.ndarray, "c bytes"], start: int, kind: str) -> Shaped[np.ndarray, " c"]:
    width = np.dtype(kind).itemsize
    column: Shaped[np.ndarray, " c"] = np.ascontiguousarray(heads[:, start : start + width]).view(kind)[:, 0]
    return column


def _fill_one(found: Labels, records: RecordFile, offset: int, header: Header, place: int) -> None:
    """A record in parts, or a damaged one."""
    try:
        payload = records.read(offset)
        found.labels[place] = header.labels(payload)[0]
        found.is_image[place] = bool(header.image(payload))
    except DamagedRecord as error:
        found.damaged[place] = str(error)
    except DamagedHeader as error:
        found.damaged[place] = f"the record at byte {offset:,} {error}"
