"""Files that lie elsewhere, at any URL that fsspec reaches: listed, asked about, and fetched into a bounded folder.

A fetched file stays in ${XDG_CACHE_HOME:-~/.cache}/dino_ssl/remote (or below the folder for temporary files, where
that cannot be written) until `limit()` bytes are exceeded; those used least recently go first. All processes of the
machine share it, and of several that want one file, one fetches it.
"""

import fcntl
import hashlib
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dino_ssl.data.cache_folder import cache_folder

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

LIMIT_VARIABLE = "DINO_SSL_REMOTE_CACHE_GB"
DEFAULT_LIMIT = 100.0  # GB
PAUSES = (1.0, 5.0)  # seconds before fetching is tried again
GIVEN_UP = 60.0  # seconds for which a file that could not be fetched is not tried again
SILENCE = 60.0  # seconds after which a web server that says nothing has gone
LOCKS = 64


class Unreachable(Exception):  # noqa: N818  (a condition of the network, not a fault of ours)
    """A server cannot be asked, or does not give what it has; the text says why."""


def is_remote(place: str) -> bool:
    """Whether a place is a URL and not a path."""
    return "://" in place


def listed(pattern: str) -> list[str]:
    """The URLs of what lies directly in a folder, or that fit a pattern with *; empty if there is none.

    Raises:
        Unreachable: the server does not answer.
    """
    with _answering(pattern):
        files, path = _filesystem(pattern)
        try:
            found = files.glob(path) if "*" in path else files.ls(path, detail=False)
        except FileNotFoundError:
            return []
        return [files.unstrip_protocol(name) for name in found]


def ask(url: str) -> tuple[int, int] | None:
    """Length (-1 where the server does not say) and a number that changes with the contents; None if there is no file.

    Raises:
        Unreachable: the server does not answer.
    """
    with _answering(url):
        files, path = _filesystem(url)
        try:
            about = files.info(path)
        except FileNotFoundError as error:
            # fsspec says so also of a web server that refuses, or that cannot be reached.
            cause = error.__cause__ or error
            if not isinstance(cause, FileNotFoundError) and not str(cause).startswith("404"):
                raise cause from None
            return None
        if about["type"] != "file":
            return None
        size = about.get("size")
        said = repr(sorted((key, str(value)) for key, value in about.items()))
        return -1 if size is None else int(size), int(hashlib.sha256(said.encode()).hexdigest()[:15], 16)


def opened(url: str, num_bytes: int, stamp: int) -> int:
    """A descriptor of the file on this machine, to read from; fetched if it is not there.

    Args:
        num_bytes, stamp: what `ask` said.
    Raises:
        Unreachable: it cannot be fetched, or is no longer what it was.
        OSError: this machine has no room for it.
    """
    target = _target(url, stamp)
    descriptor = _open(target, num_bytes)
    if descriptor is None:
        with _lock(target):
            descriptor = _open(target, num_bytes)  # unless another process was faster
            if descriptor is None:
                descriptor = _fetch(url, target, num_bytes)
    with suppress(OSError):
        os.utime(target)  # used last
    return descriptor


def fetched(url: str, num_bytes: int, stamp: int) -> Path:
    """The file's place on this machine, until it has to make room; arguments and errors as `opened`."""
    os.close(opened(url, num_bytes, stamp))
    return _target(url, stamp)


def limit() -> float:
    """Bytes of fetched files that are kept: 100 GB, or the number of GB in $DINO_SSL_REMOTE_CACHE_GB."""
    try:
        return float(os.environ[LIMIT_VARIABLE]) * 1e9
    except (KeyError, ValueError):
        return DEFAULT_LIMIT * 1e9


def _filesystem(url: str) -> tuple["AbstractFileSystem", str]:
    """fsspec's file system of a URL, of this process (it keeps them itself), and the path in there."""
    import fsspec  # noqa: PLC0415  (local data should not wait for it)

    options: dict[str, Any] = {}
    if url.startswith(("http://", "https://")):
        from aiohttp import ClientTimeout  # noqa: PLC0415

        # aiohttp's own limit of five minutes for a whole file is too short for a shard.
        timeout = ClientTimeout(total=None, sock_connect=SILENCE, sock_read=SILENCE)
        options["client_kwargs"] = {"timeout": timeout, "trust_env": True}
    files, path = fsspec.url_to_fs(url, **options)
    return files, path


@contextmanager
def _answering(url: str) -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        kind = url.partition("://")[0]
        raise Unreachable(f"{error}; pip install 'fsspec[{'http' if kind == 'https' else kind}]'") from None
    except Exception as error:  # every protocol's package raises its own
        raise Unreachable(f"{type(error).__name__}: {error}") from None


def _folder() -> Path:
    folder = cache_folder("remote")
    if folder is None:
        folder = Path(tempfile.gettempdir()) / f"dino_ssl-{os.getuid()}" / "remote"
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder


def _target(url: str, stamp: int) -> Path:
    with _answering(url):
        files, path = _filesystem(url)
        same = files.unstrip_protocol(path)  # however it was written
    # What follows the ? is often a signature that differs from day to day.
    bare = same.partition("?")[0]
    digest = hashlib.sha256(f"{bare}\0{stamp}".encode(errors="surrogateescape")).hexdigest()[:24]
    return _folder() / digest


def _open(path: Path, num_bytes: int) -> int | None:
    """A descriptor of the file; None if it is not there in its whole length."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    if num_bytes in (-1, os.fstat(descriptor).st_size):
        return descriptor
    os.close(descriptor)
    return None


@contextmanager
def _lock(target: Path) -> Iterator[None]:
    """Keep other processes, and threads of this one, from fetching the same file; gone with the process."""
    with (target.parent / f"lock-{int(target.name[:8], 16) % LOCKS}").open("w") as file:
        with suppress(OSError):  # some network disks have no locks: then it may be fetched twice
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


ABANDONED = 3600.0
"""Seconds without a byte after which a half-fetched file counts as left behind."""
_given_up: dict[Path, tuple[float, str]] = {}


def _fetch(url: str, target: Path, num_bytes: int) -> int:
    """Fetch a file, trying again after a while; one that just failed is not tried, lest each of its images waits."""
    when, reason = _given_up.get(target, (-GIVEN_UP, ""))
    if time.monotonic() - when < GIVEN_UP:
        raise Unreachable(reason)
    for pause in PAUSES:
        with suppress(Unreachable):
            return _fetch_once(url, target, num_bytes)
        time.sleep(pause)
    try:
        return _fetch_once(url, target, num_bytes)
    except Unreachable as error:
        _given_up[target] = time.monotonic(), str(error)
        raise


def _fetch_once(url: str, target: Path, num_bytes: int) -> int:
    make_room(target.parent, max(num_bytes, 0))
    temporary = target.with_name(f"{target.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        with _answering(url):
            files, path = _filesystem(url)
            files.get_file(path, str(temporary))
        descriptor = _open(temporary, num_bytes)
        if descriptor is None:
            raise Unreachable(f"{num_bytes:,} bytes were announced, {temporary.stat().st_size:,} came")
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    make_room(target.parent, 0, keep=target)  # others may have fetched at the same time
    return descriptor


def make_room(folder: Path, num_bytes: int, keep: Path | None = None) -> None:
    """Remove the files that were used least recently until `num_bytes` more are within the limit and fit the disk.

    What a process has open stays readable, and its bytes are freed when it is closed. What others are fetching
    counts, and stays, unless it was left behind.
    """
    files = []
    for entry in os.scandir(folder):
        with suppress(OSError):  # another process may have removed it
            if not entry.name.startswith("lock-"):
                files.append((entry.stat().st_mtime, entry.stat().st_size, entry.path))
    used = sum(size for _, size, _ in files)
    abandoned = time.time() - ABANDONED
    removable = [
        file for file in files if file[2] != str(keep) and (not file[2].endswith(".tmp") or file[0] < abandoned)
    ]
    for _, size, path in sorted(removable):
        if used + num_bytes <= limit() and num_bytes <= shutil.disk_usage(folder).free:
            return
        Path(path).unlink(missing_ok=True)
        used -= size
