"""Files that are either the old or the new version, whenever the process or the machine dies."""

import os
import shutil
from pathlib import Path


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


def write_atomically(path: Path, data: bytes) -> None:
    """Replace `path` by `data` in one step."""
    temporary = path.with_name(path.name + ".tmp")
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
