"""Images that lie as files on a disk: folders, class folders and list files."""

import hashlib
import os
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int64
from PIL import Image

from dino_ssl.data import decoding
from dino_ssl.errors import UsageError

EXTENSIONS = ("jpg", "jpeg", "png", "bmp", "webp", "tif", "tiff", "gif", "ppm", "pgm")
"""What an image file's name ends with, in either case."""


@dataclass(frozen=True, eq=False)
class Files:
    """Image files, decoded when they are asked for."""

    folder: Path
    names: list[str]
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

    def image(self, index: int) -> Image.Image:
        """The image in RGB.

        Raises:
            BrokenImage: the file cannot be decoded.
        """
        return decoding.read(self.path(index))

    def describe(self, index: int) -> str:
        """The image's path."""
        return decoding.printable(self.path(index))

    def fingerprint(self) -> str:
        """16 hexadecimal digits over number and relative names, which stay when the folder moves."""
        text = "\0".join([str(len(self.names)), *self.names])
        return hashlib.sha256(os.fsencode(text)).hexdigest()[:16]


def read_folder(folder: Path) -> Files:
    """Find all images below a folder, in the order of their names.

    Where all images lie in two or more sub-folders, the sub-folders of the first level are the classes, in
    the order of their names; otherwise there are no labels. Hidden files and folders are left out. Linked
    folders are followed; a folder that can be reached in several ways is read once, links last.

    Raises:
        UsageError: no image, or a folder that cannot be listed.
    """
    try:
        files = list(_walk(folder))
    except OSError as error:
        raise UsageError(f"data source '{error.filename}' cannot be listed: {error.strerror}") from None
    names = sorted(name for name in files if _is_image(name))
    if not names:
        known = ", ".join(EXTENSIONS)
        raise UsageError(
            f"data source '{folder}': no image among {len(files):,} files; choose a folder that holds some ({known})"
        )
    parents = ["" if "/" not in name else name.partition("/")[0] for name in names]
    classes = tuple(sorted(set(parents)))
    if len(classes) < 2 or "" in classes:
        return Files(folder, names, None, (), str(folder))
    return Files(folder, names, _ids(parents, classes), classes, str(folder))


def read_list(file: Path) -> Files:
    """Read a list of images: a path per line, relative to the list's folder, optionally a tab and a class.

    Classes are numbered in the order of their names. Whether the files exist shows when they are read.

    Raises:
        UsageError: no line, or a class on some lines only.
    """
    try:
        text = file.read_text(encoding="utf-8-sig", errors="surrogateescape")
    except OSError as error:
        raise UsageError(f"data source '{file}' cannot be opened: {error.strerror}") from None
    rows = [line.partition("\t") for line in text.split("\n") if line.strip()]
    if not rows:
        raise UsageError(f"data source '{file}' is empty; write one path per line, optionally a tab and a class")
    names, tabs, labels = (list(column) for column in zip(*rows, strict=True))
    if not any(tabs):
        return Files(file.parent, names, None, (), str(file))
    if not all(labels):
        without = names[labels.index("")]
        raise UsageError(f"data source '{file}': '{without}' has no class, other lines have; add a tab and a class")
    classes = tuple(sorted(set(labels)))
    return Files(file.parent, names, _ids(labels, classes), classes, str(file))


def _ids(labels: list[str], classes: tuple[str, ...]) -> Int64[np.ndarray, " n"]:
    ids = {name: index for index, name in enumerate(classes)}
    return np.array([ids[label] for label in labels], np.int64)


def _walk(folder: Path) -> Iterator[str]:
    """Names of all files below the folder; one stat per folder, none per file."""
    pending, visited = deque([""]), set()
    while pending:
        below = pending.popleft()
        status = (folder / below).stat()
        if (status.st_dev, status.st_ino) in visited:
            continue
        visited.add((status.st_dev, status.st_ino))
        for entry in _entries(folder / below):
            name = below + entry.name
            if not _is_folder(entry):
                yield name
            elif entry.is_symlink():
                pending.append(name + "/")
            else:
                # Before any link: an image that a link reaches as well keeps its real class.
                pending.appendleft(name + "/")


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """What is in one folder, by name, without hidden entries, sockets and the like."""
    with os.scandir(folder) as entries:
        visible = [entry for entry in entries if not entry.name.startswith(".")]
    usable = [entry for entry in visible if entry.is_symlink() or entry.is_dir() or entry.is_file()]
    return sorted(usable, key=lambda entry: entry.name)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    # A link named like an image is taken for one: asking would cost a stat for each image of a linked set.
    if entry.is_symlink() and _is_image(entry.name):
        return False
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _is_image(name: str) -> bool:
    return name.rpartition(".")[2].lower() in EXTENSIONS
