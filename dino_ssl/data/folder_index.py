"""The index of a large folder, kept between runs.

Even a fast disk takes more than a second to list a million files; loading the index takes a sixtieth of that.
"""

import hashlib
import os
import time
from contextlib import suppress
from pathlib import Path
from tempfile import NamedTemporaryFile

import numpy as np
from safetensors.numpy import save

from dino_ssl.data.cache_folder import cache_folder
from dino_ssl.data.compact_names import CompactNames
from dino_ssl.data.decoding import printable
from dino_ssl.data.folder_scan import Scan, scan
from dino_ssl.data.mapped_arrays import Arrays, map_arrays, sealed

LEAST_IMAGES = 10_000
"""Smaller folders are listed each time, which takes less than a second."""
SETTLED = 2.0
"""Seconds after which a second change of a folder is sure to show in its time."""
FORMAT = "2"


def indexed(folder: Path) -> Scan:
    """`folder_scan.scan`, or what it found earlier if no folder below has changed since.

    The index lies in ${XDG_CACHE_HOME:-~/.cache}/dino_ssl and is mapped, not read: the ranks of a machine share it.

    Raises:
        OSError: a folder that cannot be listed.
    """
    file = _index_file(folder)
    if file and (found := _load(file, folder)):
        return found
    started = time.time_ns()
    fresh = scan(folder)
    settled = fresh.times.max() < started - SETTLED * 1e9
    if file and settled and len(fresh.names) >= LEAST_IMAGES:
        with suppress(OSError):  # a full disk or a read-only home costs time only
            _save(file, folder, fresh)
    return fresh


def _index_file(folder: Path) -> Path | None:
    cache = cache_folder("folders")
    name = hashlib.sha256(os.fsencode(folder.absolute())).hexdigest()[:32]
    return cache and cache / f"{name}.safetensors"


def _save(file: Path, folder: Path, found: Scan) -> None:
    """Write the index under its name in one step, however many ranks do so."""
    arrays: Arrays = {
        "names.blob": found.names.blob,
        "names.starts": found.names.starts,
        "folders.blob": found.folders.blob,
        "folders.starts": found.folders.starts,
        "folders.times": found.times,
    }
    about = {"format": FORMAT, "folder": printable(folder.absolute()), "num_files": str(found.num_files)}
    with NamedTemporaryFile(dir=file.parent, prefix=f"{file.name}.", delete=False) as temporary:
        try:
            temporary.write(save(sealed(arrays), about))
            temporary.flush()
            os.fsync(temporary.fileno())
            # Not over one that another rank has just written and others have mapped: on some network disks a
            # process dies whose mapped file is replaced by another machine.
            if not _load(file, folder):
                Path(temporary.name).replace(file)
        finally:
            Path(temporary.name).unlink(missing_ok=True)


def _load(file: Path, folder: Path) -> Scan | None:
    """The index, if there is one and it is still true."""
    try:
        arrays, about = map_arrays(file)
        if about["format"] != FORMAT:
            return None
        folders = CompactNames(arrays["folders.blob"], arrays["folders.starts"])
        times = np.array([(folder / below).stat().st_mtime_ns for below in folders], np.int64)
        if not np.array_equal(times, arrays["folders.times"]):
            return None
        names = CompactNames(arrays["names.blob"], arrays["names.starts"])
        return Scan(names, int(about["num_files"]), folders, times)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # none, a damaged one, or a folder has gone
        return None
