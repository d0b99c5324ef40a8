"""Files that are either the old or the new version, whenever the process or the machine dies."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dino_ssl.errors import RunError


def sync_folder(folder: Path) -> None:
    """Put the names in `folder` on the disk: a rename alone may be lost with the power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_file(path: Path) -> None:
    """Put the bytes of `path` on the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def write_atomically(path: Path, data: bytes, suffix: str = ".tmp") -> None:
    """Replace `path` by `data` in one step.

    Args:
        suffix: of the file that lies beside it meanwhile; one of its own where several processes write the same.
    """
    temporary = path.with_name(path.name + suffix)
    temporary.write_bytes(data)
    sync_file(temporary)
    temporary.replace(path)
    sync_folder(path.parent)


def link_or_copy(source: Path, target: Path) -> None:
    """Give `source` the second name `target` in one step; a copy where the disk has no hard links."""
    temporary = target.with_name(target.name + ".tmp")
    temporary.unlink(missing_ok=True)
    try:
        temporary.hardlink_to(source)
    except OSError:  # FAT, some network disks, another disk
        shutil.copyfile(source, temporary)
        sync_file(temporary)
    temporary.replace(target)
    # POSIX renames nothing where both names are one file already.
    temporary.unlink(missing_ok=True)
    sync_folder(target.parent)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Turn what the system says about a file into an error that a user can act on.

    Raises:
        RunError: names the file that the system named, or `path`.
    """
    try:
        yield
    except OSError as error:
        raise RunError(
            f"cannot use {error.filename or path}: {error.strerror or error}; make room or mend that path, "
            "then run the same command again to resume"
        ) from error


def also_name(path: Path, other: Path) -> None:
    """Let `other` be a second name of `path` if it is not yet.

    Raises:
        RunError: the disk refuses.
    """
    with naming(other):
        if not other.exists() or not other.samefile(path):
            link_or_copy(path, other)
