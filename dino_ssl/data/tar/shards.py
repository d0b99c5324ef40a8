"""WebDataset shards: images in uncompressed tars, each read where it lies.

SOURCE is written as `shard_names` says, samples are found as `tar_index` says. Every sample has a number, as the
images of a folder have, so that a run resumes exactly at any number of ranks and workers.
"""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Int64

from dino_ssl.data.decoding import BrokenImage
from dino_ssl.data.tar.remote import Unreachable
from dino_ssl.data.tar.shard_index import ShardIndex
from dino_ssl.data.tar.shard_index_files import index_of
from dino_ssl.data.tar.shard_names import Shard, find_shards, is_shards, open_shard
from dino_ssl.data.tar.tar_members import read_at, shown
from dino_ssl.errors import UsageError

__all__ = ["Shards", "is_shards", "open_shards"]

MAX_OPEN = 64
"""Shards that a process keeps open; those read least recently are closed."""
LARGEST_CLASS = 1_000_000
"""Labels that are integers up to this are the numbers of the classes; otherwise their texts are names."""


@dataclass(frozen=True, eq=False)
class Shards:
    """The samples of shards in the order of the shards, each with one image."""

    shards: "OpenShards"
    index: ShardIndex
    labels: Int64[np.ndarray, " n"] | None
    """Indices into `classes`; None where a sample has none."""
    classes: tuple[str, ...]
    name: str
    problems: tuple[str, ...]
    """What was found to be wrong with the shards, a line each; everything else is used."""

    def __len__(self) -> int:
        return len(self.index)

    @property
    def shard_sizes(self) -> Int64[np.ndarray, " s"]:
        """Images in each shard that has any."""
        sizes = np.diff(self.index.firsts)
        return sizes[sizes > 0]

    def raw(self, index: int) -> bytes:
        """The image's bytes, by one positioned read.

        Raises:
            BrokenImage: the shard has gone, changed since it was indexed, or cannot be read or fetched.
        """
        sample = range(len(self))[index]
        start, size = int(self.index.starts[sample]), int(self.index.sizes[sample])
        try:
            data = self.shards.read(self._shard(sample), start, size)
        except (OSError, Unreachable) as error:
            raise BrokenImage(self.describe(sample), _reason(error)) from None
        if len(data) < size:
            raise BrokenImage(self.describe(sample), "the shard has become shorter since it was indexed")
        return data

    def describe(self, index: int) -> str:
        """`train-000003.tar: 000123.jpg`."""
        sample = range(len(self))[index]
        return f"{self.shards.names[self._shard(sample)]}: {shown(self.index.name(sample))}"

    def fingerprint(self) -> str:
        """16 hexadecimal digits over names and sizes of the images in each shard; not where the shards lie."""
        return hashlib.sha256(self.index.firsts.tobytes() + self.index.digests.tobytes()).hexdigest()[:16]

    def _shard(self, sample: int) -> int:
        return int(np.searchsorted(self.index.firsts, sample, side="right")) - 1


class OpenShards:
    """Reads of shards, by several threads and forked processes at once; a bounded number of them stays open."""

    def __init__(self, shards: list[Shard]) -> None:
        self.shards = shards
        self.names = [shard.name for shard in shards]
        # The cache is safe among threads; and unlike one with a lock of ours, it cannot be forked while locked.
        self._opened = lru_cache(MAX_OPEN)(self._open)

    def __reduce__(self) -> tuple[Callable[[list[Shard]], "OpenShards"], tuple[list[Shard]]]:
        return OpenShards, (self.shards,)

    def read(self, shard: int, start: int, size: int) -> bytes:
        """Bytes of a shard; fewer than `size` at its end.

        Raises:
            OSError: the shard has gone or cannot be read.
            Unreachable: it cannot be fetched, or is no longer what was indexed.
        """
        opened = self._opened(shard)
        try:
            return read_at(opened.number, start, size)
        except OSError:
            self._opened.cache_clear()  # a network disk may have forgotten it; the next read opens it anew
            raise

    def _open(self, number: int) -> "_Descriptor":
        shard = self.shards[number]
        opened = _Descriptor(open_shard(shard))
        now = os.fstat(opened.number).st_size
        if shard.num_bytes not in (-1, now):
            raise Unreachable(f"the shard changed from {shard.num_bytes:,} to {now:,} bytes since it was indexed")
        return opened


class _Descriptor:
    """An open file, closed when the last thread that reads from it lets it go."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self) -> None:
        os.close(self.number)


def open_shards(spec: str, name: str) -> Shards:
    """Open the shards that a SOURCE means, index them where no index is kept, and say what is wrong with them.

    Args:
        name: of the source, for people.
    Raises:
        UsageError: a shard is missing or compressed, a pattern fits none, no shard holds an image, or a server
            does not answer.
    """
    try:
        shards = find_shards(spec, name)
        index, packed = index_of(shards)
    except Unreachable as error:
        raise UsageError(f"data source '{name}' cannot be reached: {error}") from None
    except OSError as error:
        raise UsageError(f"data source '{name}' cannot be read: {error.strerror or error}") from None
    problems = [
        f"{shard.name}: {problem}" for shard, found in zip(shards, index.problems, strict=True) for problem in found
    ]
    if not len(index):
        few = "; ".join(problems[:5]) + ("; ..." if len(problems) > 5 else "")
        raise UsageError(f"data source '{name}': no image in {len(shards):,} shards{few and ': ' + few}")
    labels, classes = _labels(index, packed.classes)
    if labels is None and index.label_names:
        without = int(np.count_nonzero(index.labels < 0))
        problems.append(f"{without:,} of {len(index):,} samples have no label: no labels are used")
    if labels is not None and packed.classes and classes != packed.classes:
        problems.append(
            f"the labels are not those of the {len(packed.classes)} classes in index.json: its names are not used"
        )
    return Shards(OpenShards(shards), index, labels, classes, name, (*packed.problems, *problems))


def _labels(index: ShardIndex, packed: tuple[str, ...]) -> tuple[Int64[np.ndarray, " n"] | None, tuple[str, ...]]:
    """Labels and classes; `packed` names the integers that `dino-ssl pack` wrote."""
    if not index.label_names or index.labels.min() < 0:
        return None, ()
    if not all(name.isascii() and name.isdecimal() and int(name) < LARGEST_CLASS for name in index.label_names):
        return index.labels.astype(np.int64), index.label_names
    numbers = np.array([int(name) for name in index.label_names], np.int64)
    classes = tuple(str(number) for number in range(int(numbers.max()) + 1))
    return numbers[index.labels], packed if len(packed) >= len(classes) else classes


def _reason(error: OSError | Unreachable) -> str:
    match error:
        case FileNotFoundError():
            return "the shard does not exist any more"
        case OSError():
            return f"the shard cannot be read: {error.strerror or error}"
        case _:
            return str(error)
