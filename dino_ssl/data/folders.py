"""Images that lie as files on a disk: folders and class folders."""

import hashlib
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from dino_ssl.data import decoding
from dino_ssl.data.compact_names import CompactNames
from dino_ssl.data.decoding import Raw
from dino_ssl.data.folder_index import indexed
from dino_ssl.data.folder_scan import EXTENSIONS
from dino_ssl.errors import UsageError


@dataclass(frozen=True, eq=False)
class Files:
    """Image files, read when they are asked for."""

    folder: Path
    names: CompactNames
    """Paths relative to the folder, with forward slashes; a list file may hold absolute ones."""
    labels: Int64[np.ndarray, " n"] | None
    """Indices into `classes`; None where nothing is known."""
    classes: tuple[str, ...]
    name: str

    def __len__(self) -> int:
        return len(self.names)

    def path(self, index: int) -> Path:
        """Where the image lies."""
        return self.folder / self.names[index]

    @property
    def shard_sizes(self) -> None:
        """Any order of files reads equally fast."""

    def raw(self, index: int) -> Raw:
        """The file's bytes.

        Raises:
            BrokenImage: the file cannot be read.
        """
        return decoding.read(self.path(index))

    def describe(self, index: int) -> str:
        """The image's path."""
        return decoding.printable(self.path(index))

    def fingerprint(self) -> str:
        """16 hexadecimal digits over number and relative names, which stay when the folder moves."""
        digest = hashlib.sha256(f"{len(self)}\0".encode())
        digest.update(self.names.blob[:-1].data)
        return digest.hexdigest()[:16]

    def stamp(self, indices: Iterable[int]) -> str:
        """16 hexadecimal digits over sizes and times of change, which a copy may keep, of some files."""
        digest = hashlib.sha256()
        for index in indices:
            try:
                status = self.path(index).stat()
            except (OSError, ValueError):  # gone, or a name that no file can have
                digest.update(b"-")
            else:
                digest.update(f"{status.st_size} {status.st_mtime_ns},".encode())
        return digest.hexdigest()[:16]


def read_folder(folder: Path) -> Files:
    """Find all images below a folder, in the order of their names; see `folder_scan.scan` for what counts.

    Where all images lie in two or more sub-folders, the sub-folders of the first level are the classes, in
    the order of their names; otherwise there are no labels.

    Raises:
        UsageError: no image, or a folder that cannot be listed.
    """
    try:
        found = indexed(folder)
    except OSError as error:
        raise UsageError(f"data source '{error.filename}' cannot be listed: {error.strerror}") from None
    if not found.names:
        raise UsageError(
            f"data source '{folder}': no image among {found.num_files:,} files; choose a folder that holds some "
            f"({', '.join(EXTENSIONS)})"
        )
    labels, classes = _class_folders(found.names)
    return Files(folder, found.names, labels, classes, str(folder))


def _class_folders(names: CompactNames) -> tuple[Int64[np.ndarray, " n"] | None, tuple[str, ...]]:
    """Labels and classes. Names are sorted, so that each class is one run of them."""
    runs: dict[str, int] = {}  # class -> number of images
    start = 0
    while start < len(names):
        parent, slash, _ = names[start].partition("/")
        if not slash:
            return None, ()
        # "0" follows "/": behind everything that begins with parent/.
        end = bisect_left(names, parent + "0", lo=start)
        runs[parent], start = end - start, end
    if len(runs) < 2:
        return None, ()
    classes = tuple(sorted(runs))
    places = {name: place for place, name in enumerate(classes)}
    return np.repeat(np.array([places[parent] for parent in runs], np.int64), list(runs.values())), classes
