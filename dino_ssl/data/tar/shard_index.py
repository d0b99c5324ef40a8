"""Where the samples of shards lie: arrays, 24 bytes and a name for each sample."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32, Int64, UInt8
from safetensors import SafetensorError
from safetensors.numpy import save_file

from dino_ssl.data.mapped_arrays import Arrays, map_arrays, sealed

FORMAT = 2
"""Files that another version wrote are read as if they were not there."""
NO_LABEL = -1
ARRAYS = ("firsts", "starts", "sizes", "labels", "name_starts", "names", "digests")


@dataclass(frozen=True, eq=False)
class ShardIndex:
    """The samples of one shard, or of several in a row; in the order in which they lie."""

    digests: Int64[np.ndarray, " shards"]
    """Of each shard's names and sizes."""
    firsts: Int64[np.ndarray, " shards+1"]
    """The first sample of each shard, and the number of samples."""
    starts: Int64[np.ndarray, " n"]
    """Of the image in its shard, bytes."""
    sizes: Int32[np.ndarray, " n"]
    """Of the image, bytes."""
    labels: Int32[np.ndarray, " n"]
    """Positions in `label_names`; -1 for none."""
    name_starts: Int64[np.ndarray, " n+1"]
    """Where each image's name begins in `names`, and where the last one ends."""
    names: UInt8[np.ndarray, " b"]
    label_names: tuple[str, ...]
    """Sorted; numbers as they are written in decimal."""
    problems: tuple[tuple[str, ...], ...]
    """What is wrong with each shard."""

    def __len__(self) -> int:
        return len(self.starts)

    def name(self, sample: int) -> bytes:
        """The image's name in its shard."""
        begin, end = self.name_starts[sample], self.name_starts[sample + 1]
        return self.names[begin:end].tobytes()

    def part(self, shard: int) -> "ShardIndex":
        """The index of one of the shards."""
        begin, end = self.firsts[shard : shard + 2]
        name_starts = self.name_starts[begin : end + 1]
        return ShardIndex(
            firsts=np.array([0, end - begin], np.int64),
            starts=self.starts[begin:end],
            sizes=self.sizes[begin:end],
            labels=self.labels[begin:end],
            name_starts=name_starts - name_starts[0],
            names=self.names[name_starts[0] : name_starts[-1]],
            digests=self.digests[shard : shard + 1],
            label_names=self.label_names,
            problems=self.problems[shard : shard + 1],
        )


def index_of_one(
    *, starts: Iterable[int], sizes: Iterable[int], names: Sequence[int], blob: bytes, labels: Sequence[str | None]
) -> ShardIndex:
    """The index of one shard; `names` are the ends of the samples' names in `blob`."""
    label_names = tuple(sorted({label for label in labels if label is not None}))
    position: dict[str | None, int] = {label: number for number, label in enumerate(label_names)}
    sizes_array, name_starts = np.array(sizes, np.int32), np.array([0, *names], np.int64)
    digest = blake2b(blob + name_starts.tobytes() + sizes_array.tobytes(), digest_size=8).digest()
    return ShardIndex(
        firsts=np.array([0, len(sizes_array)], np.int64),
        starts=np.array(starts, np.int64),
        sizes=sizes_array,
        labels=np.array([position.get(label, NO_LABEL) for label in labels], np.int32),
        name_starts=name_starts,
        names=np.frombuffer(blob, np.uint8),
        digests=np.frombuffer(digest, np.int64),
        label_names=label_names,
        problems=((),),
    )


def join(parts: Sequence[ShardIndex]) -> ShardIndex:
    """One index of the shards of all parts, in their order."""
    label_names = tuple(sorted({name for part in parts for name in part.label_names}))
    return ShardIndex(
        firsts=_joined_bounds([part.firsts for part in parts]),
        starts=np.concatenate([part.starts for part in parts]),
        sizes=np.concatenate([part.sizes for part in parts]),
        labels=np.concatenate([_renumbered(part, label_names) for part in parts]),
        name_starts=_joined_bounds([part.name_starts for part in parts]),
        names=np.concatenate([part.names for part in parts]),
        digests=np.concatenate([part.digests for part in parts]),
        label_names=label_names,
        problems=tuple(problems for part in parts for problems in part.problems),
    )


def _joined_bounds(bounds: Sequence[Int64[np.ndarray, " _"]]) -> Int64[np.ndarray, " _"]:
    """Bounds of parts that each begin at 0, one after the other."""
    offsets = np.cumsum([0, *(part[-1] for part in bounds)])
    shifted = [part[:-1] + offset for part, offset in zip(bounds, offsets[:-1], strict=True)]
    return np.concatenate([*shifted, offsets[-1:]])


def _renumbered(part: ShardIndex, label_names: tuple[str, ...]) -> Int32[np.ndarray, " n"]:
    if part.label_names == label_names:
        return part.labels
    position = {name: number for number, name in enumerate(label_names)}
    numbers = np.array([*(position[name] for name in part.label_names), NO_LABEL], np.int32)
    return np.take(numbers, part.labels)  # -1 takes the last


def with_problems(index: ShardIndex, problems: Iterable[str]) -> ShardIndex:
    """The index of one shard, with what is wrong with it."""
    return replace(index, problems=(tuple(problems),))


def save(path: Path, index: ShardIndex, about: dict[str, Any]) -> None:
    """Write the index and what `about` says of it (as JSON) to a file; not atomic.

    Raises:
        OSError: the disk refuses.
    """
    text = json.dumps({**about, "label_names": index.label_names, "problems": index.problems, "format": FORMAT})
    arrays: Arrays = {name: getattr(index, name) for name in ARRAYS}
    arrays["about"] = np.frombuffer(text.encode(), np.uint8)
    try:
        save_file(sealed(arrays), path)
    except SafetensorError as error:
        raise OSError(str(error)) from None


def load(path: Path) -> tuple[ShardIndex, dict[str, Any]] | None:
    """What `save` wrote, mapped into memory, not read: processes of one machine share it. None if it cannot be used."""
    try:
        arrays, _ = map_arrays(path)
        about = json.loads(arrays.pop("about").tobytes())
        label_names, problems = tuple(about.pop("label_names")), tuple(map(tuple, about.pop("problems")))
        index = ShardIndex(**arrays, label_names=label_names, problems=problems)
        return (index, about) if about.pop("format") == FORMAT and _is_sound(index) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _is_sound(index: ShardIndex) -> bool:
    """Whether the arrays fit each other, so that no damaged file leads outside them."""
    n, shards = len(index.starts), len(index.digests)
    kinds: dict[str, type] = dict.fromkeys(ARRAYS, np.int64) | {
        "sizes": np.int32,
        "labels": np.int32,
        "names": np.uint8,
    }
    if any(getattr(index, name).dtype != kind or getattr(index, name).ndim != 1 for name, kind in kinds.items()):
        return False
    lengths = {len(index.sizes), len(index.labels), len(index.name_starts) - 1} == {n}
    bounds = len(index.firsts) == shards + 1 and len(index.problems) == shards and index.firsts[-1] == n
    if not lengths or not bounds or n == 0:
        return lengths and bounds
    rising = index.firsts[0] == 0 and bool((np.diff(index.firsts) >= 0).all())
    positive = index.starts.min() >= 0 and index.sizes.min() >= 0
    return bool(rising and positive and index.labels.min() >= NO_LABEL and index.labels.max() < len(index.label_names))
