"""Indices of shards that are kept: beside the shards, where `dino-ssl pack` wrote them, or in the user's cache.

Reading the headers of a million samples takes ten to twenty seconds, and on a network disk minutes.
"""

import hashlib
import json
import os
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

from tqdm import tqdm

from dino_ssl.data.cache_folder import cache_folder
from dino_ssl.data.tar import remote
from dino_ssl.data.tar.remote import Unreachable, is_remote
from dino_ssl.data.tar.shard_index import ShardIndex, join, load, save
from dino_ssl.data.tar.shard_names import Shard, open_shard
from dino_ssl.data.tar.tar_index import read_tar, unreadable
from dino_ssl.data.tar.tar_members import header_before

PACK_FILE = "index.json"
"""What `dino-ssl pack` says about its shards: options, classes, checksums."""
INDEX_FILE = "index.safetensors"
"""Where the samples lie in these shards."""
MADE_BY = "dino-ssl pack"
SUM = "crc32"
"""Of everything else in `PACK_FILE`: a changed letter of a class would pass in silence."""
FIRST_FORMAT = 1
"""Of `PACK_FILE`; it had no checksum."""
THREADS = 8
SECONDS_WITHOUT_BAR = 3.0


@dataclass(frozen=True)
class Packed:
    """What lies beside the shards about them all; nothing beside other programs' shards."""

    classes: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()


def index_of(shards: list[Shard]) -> tuple[ShardIndex, Packed]:
    """The index of these shards: from beside them, from the user's cache, or read anew and then kept there.

    The cached one is of exactly these paths, lengths and times of change; the one beside them, which may have been
    copied with them, is of these lengths, and each shard's last image is where it says.

    Raises:
        Unreachable, OSError: a remote shard cannot be fetched.
    """
    folder = _folder_of(shards)
    packed = _packed(folder) if folder else Packed()
    if folder and (beside := _beside(folder, shards)):
        return beside, packed
    file = _cache_file(shards)
    kept = load(file) if file else None
    if kept and len(kept[0].digests) == len(shards):
        return kept[0], packed
    index = join(_read_all(shards))
    return (_keep(file, index) if file else None) or index, packed


def write_index(folder: Path, names: Sequence[str]) -> ShardIndex:
    """Index the shards of a folder, and keep that beside them."""
    paths = [folder / name for name in names]
    shards = [Shard(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    index = join(_read_all(shards))
    _write(folder / INDEX_FILE, index, {"shards": [[shard.name, shard.num_bytes] for shard in shards]})
    return index


def _read_all(shards: list[Shard]) -> list[ShardIndex]:
    with ThreadPoolExecutor(THREADS) as pool:
        read = pool.map(_read_one, shards)
        # Seen only where it takes a while and somebody looks.
        bar = tqdm(read, "indexing", len(shards), False, delay=SECONDS_WITHOUT_BAR, disable=None, unit="shard")
        return list(bar)


def _read_one(shard: Shard) -> ShardIndex:
    try:
        descriptor = open_shard(shard)
    except PermissionError as error:
        return unreadable(f"cannot be opened: {error.strerror}")
    try:
        return read_tar(descriptor, os.fstat(descriptor).st_size)
    finally:
        os.close(descriptor)


def _cache_file(shards: list[Shard]) -> Path | None:
    folder = cache_folder("shards")
    digest = hashlib.sha256()
    for shard in shards:
        place = shard.place.partition("?")[0] if is_remote(shard.place) else os.path.abspath(shard.place)  # noqa: PTH100
        digest.update(os.fsencode(f"{place}\0{shard.num_bytes}\0{shard.stamp}\0"))
    return folder and folder / f"{digest.hexdigest()[:32]}.safetensors"


def _keep(file: Path, index: ShardIndex) -> ShardIndex | None:
    """The index as it was written to the cache; None where it cannot be."""
    with suppress(OSError):  # a full disk costs time only
        _write(file, index, {}, unless=lambda: load(file) is not None)
        kept = load(file)
        return kept and kept[0]
    return None


def _write(file: Path, index: ShardIndex, about: dict[str, Any], unless: Callable[[], bool] = lambda: False) -> None:
    """Write a file in one step, however many ranks do so at once.

    Args:
        unless: the file is left as it is. Replacing one that is mapped on another machine, from a network disk,
            would kill the process there.
    """
    with NamedTemporaryFile(dir=file.parent, prefix=f"{file.name}.", suffix=".tmp", delete=False) as temporary:
        path = Path(temporary.name)
    try:
        save(path, index, about)
        path.chmod(0o644)
        if not unless():
            path.replace(file)
    finally:
        path.unlink(missing_ok=True)


def _folder_of(shards: list[Shard]) -> str | None:
    """The one folder of all shards, with its slash; None if there are several."""
    folders = {shard.place.partition("?")[0].rpartition("/")[0] for shard in shards}
    return f"{folders.pop() or '.'}/" if len(folders) == 1 else None


def _file_in(folder: str, name: str) -> Path | None:
    """A file that lies beside shards; fetched if that is elsewhere."""
    if not is_remote(folder):
        return Path(folder, name)
    try:
        about = remote.ask(folder + name)
        return remote.fetched(folder + name, *about) if about else None
    except (Unreachable, OSError):
        return None  # some servers answer with an error, not with "not found"


def _packed(folder: str) -> Packed:
    file = _file_in(folder, PACK_FILE)
    try:
        about = json.loads(file.read_bytes()) if file else None
        if not isinstance(about, dict) or (about.get("made_by") != MADE_BY and SUM not in about):
            return Packed()
        check_sum(about)
        problems = [] if about["complete"] else [f"{PACK_FILE}: `{MADE_BY}` did not finish; run it again"]
        problems += [f"{name} is in {PACK_FILE} but not in the folder" for name in _missing(folder, about["shards"])]
        return Packed(tuple(about["classes"]), tuple(problems))
    except FileNotFoundError:
        return Packed()
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        return Packed(problems=(f"{PACK_FILE} cannot be read, and names no classes: {error}",))


def sum_of(about: dict[str, Any]) -> int:
    """The checksum of what `PACK_FILE` says, but for the checksum."""
    rest = {key: value for key, value in about.items() if key != SUM}
    return zlib.crc32(json.dumps(rest, sort_keys=True).encode())


def check_sum(about: dict[str, Any]) -> None:
    """Raises ValueError if it is not what was written."""
    if (SUM in about or about["format"] != FIRST_FORMAT) and about[SUM] != sum_of(about):
        raise ValueError("wrong checksum")


def _missing(folder: str, shards: list[dict[str, object]]) -> list[str]:
    """Names of packed shards that are gone; of a remote folder nobody asks for each."""
    names = [] if is_remote(folder) else [str(shard["name"]) for shard in shards]
    return [name for name in names if not Path(folder, name).exists()]


def _beside(folder: str, shards: list[Shard]) -> ShardIndex | None:
    """What lies beside the shards, if it is about all of them as they are."""
    file = _file_in(folder, INDEX_FILE)
    found = load(file) if file else None
    if not found:
        return None
    index, about = found
    rows = {(str(name), int(num_bytes)): row for row, (name, num_bytes) in enumerate(about["shards"])}
    wanted = [rows.get((shard.name, shard.num_bytes)) for shard in shards]
    chosen = [row for row in wanted if row is not None]
    if len(chosen) < len(shards) or max(chosen) >= len(index.digests):
        return None
    with ThreadPoolExecutor(THREADS) as pool:
        if not all(pool.map(lambda shard, row: _holds(shard, index, row), shards, chosen)):
            return None
    return index if chosen == list(range(len(index.digests))) else join([index.part(row) for row in chosen])


def _holds(shard: Shard, index: ShardIndex, row: int) -> bool:
    """Whether the shard's last image is where the index says; of a remote shard only the length is known."""
    first, end = index.firsts[row : row + 2].tolist()
    if is_remote(shard.place) or first == end:
        return True
    try:
        descriptor = open_shard(shard)
    except OSError:
        return False
    try:
        header = header_before(descriptor, int(index.starts[end - 1]))
    finally:
        os.close(descriptor)
    is_it = header is not None and index.name(end - 1).startswith(header.name)
    return is_it and header is not None and header.size == int(index.sizes[end - 1])
