"""SOURCE -> the shards that it names, in order.

train-{000..099}.tar, {a,b}/x.tar     braces as in a shell; every shard has to exist
data/*.tar, data/**/x-?.tar           what exists, by name
shards/                               a folder that holds tars, and neither images nor folders
s3://bucket/train-{000..099}.tar      anywhere fsspec reaches; of wildcards, * only
"""

import glob
import os
import re
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path

from dino_ssl.data.folder_scan import is_image
from dino_ssl.data.tar import remote
from dino_ssl.data.tar.remote import is_remote
from dino_ssl.errors import UsageError

COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tar.lz4")
MOST_SHARDS = 100_000
THREADS = 16  # files are asked about at the same time: on a network each answer takes a while


@dataclass(frozen=True)
class Shard:
    """One tar, as it was found.

    Attributes:
        place: path or URL.
        num_bytes: its length; -1 where a server does not say it.
        stamp: changes with the contents: time of the last change, or digest of what a server says about it.
    """

    place: str
    num_bytes: int
    stamp: int

    @cached_property
    def name(self) -> str:
        """The last part of path or URL."""
        return base_name(self.place)


def open_shard(shard: Shard) -> int:
    """A descriptor to read a shard from; a remote one is fetched if it is not on this machine.

    Raises:
        OSError: it has gone or cannot be opened.
        Unreachable: it cannot be fetched.
    """
    if is_remote(shard.place):
        return remote.opened(shard.place, shard.num_bytes, shard.stamp)
    return os.open(shard.place, os.O_RDONLY)


def base_name(place: str) -> str:
    """The last part of a path or URL, as text that can be written anywhere."""
    bare = place.partition("?")[0] if is_remote(place) else place
    return os.fsencode(bare.rstrip("/").rpartition("/")[2]).decode("utf-8", "backslashreplace")


def is_shards(spec: str) -> bool:
    """Whether a SOURCE means tar shards: a URL, a name or pattern that ends like a tar, or a folder of tars."""
    if is_remote(spec):
        return True
    if _exists(spec) and _path(spec).is_dir():
        return _holds_tars(str(_path(spec)))
    return spec.lower().endswith((".tar", *COMPRESSED))


def find_shards(spec: str, name: str) -> list[Shard]:
    """The shards that a SOURCE means, each once.

    Args:
        name: of the source, for errors.
    Raises:
        UsageError: a shard is missing, a pattern fits nothing, a shard is compressed.
        Unreachable: a server does not answer.
    """
    patterns = [spec] if _exists(spec) else list(islice(expand_braces(spec), MOST_SHARDS + 1))
    if len(patterns) > MOST_SHARDS:
        raise UsageError(f"data source '{name}' names more than {MOST_SHARDS:,} shards; write a smaller range")
    places = list(dict.fromkeys(place for pattern in patterns for place in _expand(pattern, name)))
    if packed := [place for place in places if place.lower().endswith(COMPRESSED)]:
        raise UsageError(compressed(name, packed[0]))
    with ThreadPoolExecutor(THREADS) as pool:
        found = list(pool.map(_ask, places))
    if missing := [place for place, shard in zip(places, found, strict=True) if shard is None]:
        few = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        count = (
            f"{len(missing):,} of {len(places):,} shards do not exist as files"
            if len(places) > 1
            else "does not exist as a file"
        )
        raise UsageError(f"data source '{name}': {count}: {few}")
    return [shard for shard in found if shard is not None]


def compressed(name: str, shard: str) -> str:
    """What to do about a compressed shard."""
    return f"data source '{name}': {shard} is compressed, so that no single image can be read; decompress the shards"


def expand_braces(text: str) -> Iterator[str]:
    """Every text that a pattern with {1..3} or {a,b} stands for, as a shell lists them; braces may be nested.

    In {008..010} the numbers keep their width. Braces that hold neither are left as they are.
    """
    for braces in re.finditer(r"\{([^{}]*)\}", text):
        if (choices := _choices(braces[1])) is not None:
            for choice in choices:
                yield from expand_braces(text[: braces.start()] + choice + text[braces.end() :])
            return
    yield text


def _choices(inside: str) -> Iterator[str] | None:
    if numbers := re.fullmatch(r"(\d+)\.\.(\d+)", inside, re.ASCII):
        first, last = int(numbers[1]), int(numbers[2])
        step, padded = (1 if first <= last else -1), any(n != str(int(n)) for n in numbers.groups())
        width = max(map(len, numbers.groups())) if padded else 0
        return (str(number).zfill(width) for number in range(first, last + step, step))
    return iter(inside.split(",")) if "," in inside else None


def _expand(pattern: str, name: str) -> list[str]:
    """The shards in a folder or behind wildcards; any other pattern stands for itself."""
    if is_remote(pattern):
        is_listed = "*" in pattern or not pattern.partition("?")[0].lower().endswith((".tar", *COMPRESSED))
        places = remote.listed(pattern) if is_listed else [pattern]
    elif _exists(pattern):
        path = _path(pattern)
        places = [str(entry) for entry in path.iterdir()] if path.is_dir() else [str(path)]
    elif glob.has_magic(pattern):
        places = glob.glob(str(_path(pattern)), recursive=True)  # noqa: PTH207  (Path.glob wants a relative pattern)
    else:
        return [str(_path(pattern))]
    tars = sorted(place for place in places if _is_tar(place))
    if not tars:
        raise UsageError(f"data source '{name}': no .tar fits '{pattern}'")
    return tars


def _is_tar(place: str) -> bool:
    bare = place.partition("?")[0] if is_remote(place) else place
    return bare.lower().endswith((".tar", *COMPRESSED)) and not base_name(place).startswith(".")


def _ask(place: str) -> Shard | None:
    """The shard at a place; None if there is none."""
    if is_remote(place):
        answer = remote.ask(place)
        return answer and Shard(place, *answer)
    try:
        status = os.stat(place)  # noqa: PTH116  (a Path for each of ten thousand shards takes longer than asking)
    except (OSError, ValueError):  # ValueError: a zero byte in the path
        return None
    # Of a pipe, opening it may wait for ever.
    return Shard(place, status.st_size, status.st_mtime_ns) if stat.S_ISREG(status.st_mode) else None


def _path(spec: str) -> Path:
    return Path(spec).expanduser() if spec.startswith("~/") else Path(spec)


def _exists(spec: str) -> bool:
    try:
        return not is_remote(spec) and _path(spec).exists()
    except (OSError, ValueError):
        return False


def _holds_tars(folder: str) -> bool:
    """Whether a folder holds a tar, and neither folders nor images: found out at the first of these."""
    found = False
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if is_image(entry.name) or entry.is_dir():
                    return False
                found = found or _is_tar(entry.name)
    except OSError:
        return False  # whoever lists it next says why
    return found
