"""The images below a folder, without holding more than one folder's names as Python strings."""

import os
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Int64

from dino_ssl.data.compact_names import CompactNames

EXTENSIONS = ("jpg", "jpeg", "png", "bmp", "webp", "tif", "tiff", "gif", "ppm", "pgm")
"""What an image file's name ends with, in either case."""


@dataclass(frozen=True, eq=False)
class Scan:
    """What lies below a folder."""

    names: CompactNames
    """Of the images: paths relative to the folder, with forward slashes, sorted."""
    num_files: int
    """Images and other visible files."""
    folders: CompactNames
    """Every folder that was read, relative, with a slash at its end; the first is the folder itself, without."""
    times: Int64[np.ndarray, " f"]
    """When each of `folders` was last changed, nanoseconds, from before it was read."""


def scan(folder: Path) -> Scan:
    """Find all images below a folder.

    Hidden files and folders are left out. Linked folders are followed; a folder that can be reached in several
    ways is read once, links last.

    Raises:
        OSError: a folder that cannot be listed.
    """
    contents: dict[str, str] = {}  # of each folder: names, sorted, joined by zeros
    times, num_files = [], 0
    pending, visited = deque([""]), set()
    while pending:
        below = pending.popleft()
        status = (folder / below).stat()
        if (status.st_dev, status.st_ino) in visited:
            continue
        visited.add((status.st_dev, status.st_ino))
        names = []
        for name, kind in _entries(folder / below):
            num_files += kind == "file"
            # Real folders before any link: an image that a link reaches as well keeps its real class.
            if kind == "folder":
                pending.appendleft(f"{below}{name}/")
            elif kind == "link":
                pending.append(f"{below}{name}/")
            if kind != "file" or is_image(name):
                names.append(name if kind == "file" else name + "/")
        contents[below] = "\0".join(sorted(names))
        times.append(status.st_mtime_ns)
    return Scan(CompactNames.of(_in_order(contents)), num_files, CompactNames.of(contents), np.array(times, np.int64))


def is_image(name: str) -> bool:
    """Whether a file of that name is taken for an image."""
    return name.rpartition(".")[2].lower() in EXTENSIONS


def _in_order(contents: dict[str, str]) -> Iterator[str]:
    """All images' names, sorted: as every folder's name ends with the slash, its files follow in its place."""
    pending = [""]
    while pending:
        name = pending.pop()
        if name and not name.endswith("/"):
            yield name
        elif inside := contents.get(name):
            pending += [name + entry for entry in reversed(inside.split("\0"))]


def _entries(folder: Path) -> Iterator[tuple[str, Literal["file", "folder", "link"]]]:
    """What is in one folder, without hidden entries, sockets and the like."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_symlink():
                yield entry.name, "link" if _leads_to_folder(entry) else "file"
            elif entry.is_dir():
                yield entry.name, "folder"
            elif entry.is_file():
                yield entry.name, "file"


def _leads_to_folder(link: os.DirEntry[str]) -> bool:
    # A link named like an image is taken for one: asking would cost a stat for each image of a linked set.
    try:
        return not is_image(link.name) and link.is_dir()
    except OSError:  # a link to itself
        return False
