"""Photographs of faces with five points each, as a source of aligned faces."""

import csv
import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float64, Int64, UInt8

from dino_ssl.data import decoding
from dino_ssl.data.alignment import aligned
from dino_ssl.data.decoding import BrokenImage
from dino_ssl.data.folders import Files
from dino_ssl.data.tables import read_list
from dino_ssl.errors import UsageError

COLUMNS = tuple(f"{axis}{point}" for point in range(1, 6) for axis in "xy")
"""Left eye, right eye, nose, left and right corner of the mouth, as seen; pixels of the upright image."""


@dataclass(frozen=True, eq=False)
class AlignedFaces:
    """Faces, aligned when they are asked for."""

    photographs: Files
    points: Float64[np.ndarray, "n 5 2"]

    @property
    def name(self) -> str:
        return self.photographs.name

    @property
    def labels(self) -> Int64[np.ndarray, " n"] | None:
        return self.photographs.labels

    @property
    def classes(self) -> tuple[str, ...]:
        return self.photographs.classes

    @property
    def shard_sizes(self) -> None:
        """Any order reads equally fast."""

    def __len__(self) -> int:
        return len(self.photographs)

    def raw(self, index: int) -> UInt8[np.ndarray, "112 112 3"]:
        """The aligned face.

        Raises:
            BrokenImage: the photograph cannot be read, or the points lie on one place.
        """
        pixels = decoding.decode(self.photographs.raw(index), self.describe(index)).pixels
        try:
            return aligned(pixels, self.points[index])
        except ValueError as error:
            raise BrokenImage(self.describe(index), str(error)) from None

    def describe(self, index: int) -> str:
        """The photograph's path."""
        return self.photographs.describe(index)

    def fingerprint(self) -> str:
        """16 hexadecimal digits over names and points."""
        return hashlib.sha256(self.photographs.fingerprint().encode() + self.points.tobytes()).hexdigest()[:16]


def open_aligned(file: Path) -> AlignedFaces:
    """Read a list with a column `path`, perhaps `label`, and those of `COLUMNS`.

    Raises:
        UsageError: as of `read_list`; or a column is missing, or a value is no number.
    """
    if file.suffix.lower() not in (".csv", ".tsv"):
        raise UsageError(f"--align needs a .csv or .tsv with columns path, {', '.join(COLUMNS)}; '{file}' is none")
    photographs = read_list(file)
    with file.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as lines:
        rows = list(csv.DictReader(lines, delimiter="\t" if file.suffix.lower() == ".tsv" else ","))
    if missing := [name for name in COLUMNS if name not in rows[0]]:
        raise UsageError(f"{file}: there is no column {', '.join(missing)}; --align needs {', '.join(COLUMNS)}")
    points = [[_number(file, place, name, row[name]) for name in COLUMNS] for place, row in enumerate(rows, 1)]
    return AlignedFaces(photographs, np.array(points).reshape(-1, 5, 2))


def _number(file: Path, place: int, column: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = np.nan
    if not np.isfinite(value):
        raise UsageError(f"{file}, image {place}: {column} is '{text}'; it must be a number of pixels")
    return value
