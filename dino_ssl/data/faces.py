"""Records of faces as InsightFace distributes them (train.rec, train.idx, perhaps property), without MXNet.

Record 0 may say how many images there are; behind the images, records without one then say which of them belong to an
identity. What is an image shows in each record: numbers in record 0 are float32, and so exact up to 2^24 only.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int64

from dino_ssl.data import decoding
from dino_ssl.data.decoding import BrokenImage
from dino_ssl.data.face_headers import LARGEST_FLOAT32, NARROW, WIDE, DamagedHeader, Header, header_of
from dino_ssl.data.record_labels import Labels, read_labels
from dino_ssl.data.recordio import DamagedRecord, RecordFile, RecordWriter, read_index
from dino_ssl.errors import UsageError

PROPERTY = "property"
"""A file beside the records: `number of identities,height,width`."""
LOOKED_AT = 64
"""Records by which the form of the headers is told."""


@dataclass(frozen=True, eq=False)
class Records:
    """Images in a file of records, read by their offsets."""

    file: RecordFile
    keys: Int64[np.ndarray, " n"]
    """By which the index names them."""
    offsets: Int64[np.ndarray, " n"]
    header: Header
    labels: Int64[np.ndarray, " n"]
    """Indices into `classes`."""
    classes: tuple[str, ...]
    """The numbers of the identities as the records have them, rising; those without an image are left out."""
    problems: tuple[str, ...]
    """Records that cannot be read, a line; everything else is used."""

    @property
    def name(self) -> str:
        return str(self.file.path)

    def __len__(self) -> int:
        return len(self.offsets)

    @property
    def shard_sizes(self) -> None:
        """Any order of records reads as fast as any order of files."""

    def raw(self, index: int) -> bytes:
        """The image as it is stored.

        Raises:
            BrokenImage: the record is damaged; says at which byte.
        """
        offset = int(self.offsets[index])
        try:
            return self.header.image(self.file.read(offset))
        except DamagedRecord as error:
            raise BrokenImage(self.describe(index), str(error)) from None
        except DamagedHeader as error:
            raise BrokenImage(self.describe(index), f"the record at byte {offset:,} {error}") from None
        except OSError as error:
            raise BrokenImage(self.describe(index), f"cannot be read: {error.strerror or error}") from None

    def describe(self, index: int) -> str:
        """The file and the record's key: `train.rec[12]`."""
        return f"{decoding.printable(self.file.path)}[{self.keys[index]}]"

    def fingerprint(self) -> str:
        """16 hexadecimal digits over places and labels."""
        digest = hashlib.sha256(self.offsets.tobytes() + self.labels.tobytes() + " ".join(self.classes).encode())
        return digest.hexdigest()[:16]


def read_records(file: Path) -> Records:
    """Open a .rec; its .idx lies beside it. Empty records are left out.

    Of several labels of an image the first counts.

    Raises:
        UsageError: the file or its index is missing, damaged or cut, no record holds an image, or labels are no
            identities; names the offset.
    """
    try:
        records = RecordFile(file)
    except OSError as error:
        raise UsageError(f"data source '{file}' cannot be opened: {error.strerror}") from None
    keys, offsets = read_index(file.with_suffix(".idx"), records.num_bytes)
    header = _header(records, offsets)
    found = read_labels(records, offsets, header)
    _check_number(records, header, keys, offsets)
    _check_labels(file, header, offsets, found)
    kept = np.flatnonzero(found.is_image)
    if not len(kept):
        raise UsageError(f"data source '{file}': no image in {len(keys):,} records")
    numbers, labels = np.unique(found.labels[kept].astype(np.int64), return_inverse=True)
    classes = tuple(str(number) for number in numbers.tolist())
    problems = _problems(keys, found)
    return Records(records, keys[kept], offsets[kept], header, labels.astype(np.int64), classes, problems)


def _header(records: RecordFile, offsets: Int64[np.ndarray, " n"]) -> Header:
    """The form of all headers, told by some records that hold images.

    Raises:
        UsageError: none does, or they have several forms.
    """
    found: dict[Header, int] = {}
    last: object = "they hold no image that is known"
    for offset in offsets[np.linspace(0, len(offsets) - 1, min(len(offsets), LOOKED_AT)).astype(np.int64)].tolist():
        try:
            header = header_of(records.read(offset))
        except DamagedRecord as error:
            last = error
            continue
        if header is not None:
            found.setdefault(header, offset)
    if len(found) != 1:
        where = ", ".join(f"{header.size} bytes at byte {offset:,}" for header, offset in found.items())
        reason = f"headers of several sizes: {where}" if found else last
        raise UsageError(f"data source '{records.path}' holds no faces as InsightFace writes them: {reason}")
    return next(iter(found))


def _check_number(
    records: RecordFile, header: Header, keys: Int64[np.ndarray, " n"], offsets: Int64[np.ndarray, " n"]
) -> None:
    """Whether the index has all that record 0 promises, if it does: it could have been cut at the end of a line."""
    if keys[0] != 0:
        return
    try:
        payload = records.read(int(offsets[0]))
        labels = header.labels(payload)
    except (DamagedRecord, DamagedHeader):
        return  # among the problems, as any other
    if header.image(payload) or len(labels) < 2:
        return
    promised, there = labels[1], header.label.type(keys[-1] + 1)
    if np.isfinite(promised) and promised > there:
        raise UsageError(
            f"{records.path.with_suffix('.idx')} ends with key {keys[-1]}, and record 0 promises keys up to "
            f"{promised - 1:.0f}: it is cut; fetch it again"
        )


def _check_labels(file: Path, header: Header, offsets: Int64[np.ndarray, " n"], found: Labels) -> None:
    with np.errstate(invalid="ignore"):
        odd = ~((found.labels >= 0) & (found.labels < 2**53) & (found.labels == np.floor(found.labels)))
    _refuse(file, offsets, found, odd, "is no number of an identity, which are whole and from 0 on")
    if header is NARROW:
        rule = f"may be another's: float32 tells them apart below {LARGEST_FLOAT32:,}; write headers with 8-byte labels"
        _refuse(file, offsets, found, found.labels >= LARGEST_FLOAT32, rule)
    number = _num_identities(file.with_name(PROPERTY))
    if number is not None:
        rule = f"is not below {number:,}, the number of identities in {PROPERTY}; mend that file or remove it"
        _refuse(file, offsets, found, found.labels >= number, rule)


def _refuse(
    file: Path, offsets: Int64[np.ndarray, " n"], found: Labels, wrong: Bool[np.ndarray, " n"], rule: str
) -> None:
    places = np.flatnonzero(wrong & found.is_image)
    if len(places):
        where, label = offsets[places[0]], found.labels[places[0]]
        raise UsageError(f"data source '{file}': the label {label:.10g} of the record at byte {where:,} {rule}")


def _num_identities(file: Path) -> int | None:
    try:
        text = file.read_bytes()[:100].decode("ascii", "replace").partition(",")[0].strip()
    except OSError:
        return None
    if not text.isdecimal():
        raise UsageError(f"{file} must begin with the number of identities and a comma; mend it or remove it")
    return int(text)


def _problems(keys: Int64[np.ndarray, " n"], found: Labels) -> tuple[str, ...]:
    if not found.damaged:
        return ()
    place, error = next(iter(found.damaged.items()))
    number = f"{len(found.damaged):,} of {len(keys):,} records are left out"
    return (f"{number}: they cannot be read; the first has key {keys[place]}: {error}",)


def write_records(file: Path, samples: Iterable[tuple[bytes, int]], *, header: Header | None = None) -> None:
    """Write a .rec, its .idx and `property`, as InsightFace's sets are laid out: identities one after the other.

    Args:
        samples: encoded images with numbers of identities.
        header: None takes the common one, or where float32 cannot hold the numbers, the wide one.
    Raises:
        FileExistsError: one of the files is there.
    """
    ordered = sorted(samples, key=lambda sample: sample[1])
    identities = [(label, len(list(group))) for label, group in groupby(label for _, label in ordered)]
    first, end = len(ordered) + 1, len(ordered) + 1 + len(identities)
    header = header or (NARROW if max(end, identities[-1][0] + 1) <= LARGEST_FLOAT32 else WIDE)
    with RecordWriter(file) as writer:
        writer.add(0, header.payload([first, end], b"", 0, in_array=True))
        for key, (image, label) in enumerate(ordered, 1):
            writer.add(key, header.payload([label], image, key, in_array=False))
        start = 1
        for key, (_, number) in enumerate(identities, first):
            writer.add(key, header.payload([start, start + number], b"", key, in_array=True))
            start += number
