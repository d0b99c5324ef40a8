"""The order of the images: stateless, so that a run resumes at any step, on any number of ranks.

Nothing is stored per image: a position in an epoch is turned into an index by arithmetic, for a hundred million
images as for ten.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64, UInt64

from dino_ssl.data.streams import Purpose, stream

Keys = list[tuple[int, int]]
"""Epoch and index of each image of a micro-batch."""

ROUNDS = 8
_WORD = np.uint64(2**64 - 1)


@dataclass(frozen=True)
class Shares:
    """How a global batch is shared out: `ranks` x `accumulation` micro-batches of `micro_batch` images."""

    ranks: int
    accumulation: int
    micro_batch: int

    @property
    def batch_size(self) -> int:
        return self.ranks * self.accumulation * self.micro_batch


def share_out(batch_size: int, ranks: int, largest_micro_batch: int | None) -> Shares:
    """The fewest equal micro-batches, none above `largest_micro_batch`.

    Raises:
        ValueError: the global batch does not divide among the ranks.
    """
    if batch_size % ranks:
        raise ValueError(
            f"batch_size={batch_size} does not divide among {ranks} ranks; "
            f"write --batch-size {batch_size // ranks * ranks or ranks}, or start a number of ranks that divides it"
        )
    per_rank = batch_size // ranks
    limit = largest_micro_batch or per_rank
    accumulation = next(n for n in range(1, per_rank + 1) if per_rank % n == 0 and per_rank // n <= limit)
    return Shares(ranks, accumulation, per_rank // accumulation)


class Permutation:
    """A random permutation of range(n) that is computed, not stored.

    A Feistel network permutes the smallest range of an even number of bits that holds n; what falls outside is
    permuted again until it falls inside (fewer than four times on average).

    Source: Black and Rogaway 2002, "Ciphers with arbitrary finite domains"; the mixing of 64 bits is
    MurmurHash3's finaliser.
    """

    def __init__(self, length: int, rng: np.random.Generator) -> None:
        self.length = length
        self._half = np.uint64(max(1, (max(1, length - 1).bit_length() + 1) // 2))
        self._keys = rng.integers(0, _WORD, ROUNDS, np.uint64, endpoint=True)

    def __call__(self, positions: Int64[np.ndarray, " p"]) -> Int64[np.ndarray, " p"]:
        """What stands at these positions, each in range(n)."""
        values = self._encipher(positions.astype(np.uint64))
        while (outside := values >= self.length).any():
            values[outside] = self._encipher(values[outside])
        return values.astype(np.int64)

    def _encipher(self, values: UInt64[np.ndarray, " p"]) -> UInt64[np.ndarray, " p"]:
        mask = (np.uint64(1) << self._half) - np.uint64(1)
        left, right = values >> self._half, values & mask
        for key in self._keys:
            left, right = right, left ^ (_mix(right + key) & mask)
        enciphered: UInt64[np.ndarray, " p"] = left << self._half | right
        return enciphered


def _mix(x: UInt64[np.ndarray, " p"]) -> UInt64[np.ndarray, " p"]:
    x = (x ^ x >> np.uint64(33)) * np.uint64(0xFF51AFD7ED558CCD)
    x = (x ^ x >> np.uint64(33)) * np.uint64(0xC4CEB9FE1A85EC53)
    mixed: UInt64[np.ndarray, " p"] = x ^ x >> np.uint64(33)
    return mixed


class ShardOrder:
    """Shards in random order, joined and cut into blocks of `buffer` images, each of which is shuffled.

    Args:
        sizes: images in each shard; shard after shard they are numbered.
        buffer: images that are shuffled together; larger is more random, and keeps more shards open.
    """

    def __init__(self, sizes: Int64[np.ndarray, " s"], buffer: int, seed: int, epoch: int) -> None:
        rng = stream(seed, Purpose.ORDER, epoch)
        order = rng.permutation(len(sizes))
        self._first_index = (np.cumsum(sizes) - sizes)[order]
        self._ends = np.cumsum(sizes[order])
        self._starts = self._ends - sizes[order]
        self._buffer = buffer
        self._stream = (seed, epoch)

    def __call__(self, positions: Int64[np.ndarray, " p"]) -> Int64[np.ndarray, " p"]:
        shuffled = np.empty_like(positions)
        blocks = positions // self._buffer
        for block in np.unique(blocks):
            chosen = blocks == block
            shuffled[chosen] = self._within(int(block), positions[chosen])
        shard = np.searchsorted(self._ends, shuffled, side="right")
        indices: Int64[np.ndarray, " p"] = self._first_index[shard] + shuffled - self._starts[shard]
        return indices

    def _within(self, block: int, positions: Int64[np.ndarray, " p"]) -> Int64[np.ndarray, " p"]:
        start = block * self._buffer
        length = min(self._buffer, int(self._ends[-1]) - start)
        seed, epoch = self._stream
        # Stream 0 chose the order of the shards.
        return start + Permutation(length, stream(seed, Purpose.ORDER, epoch, 1 + block))(positions - start)


class BatchOrder:
    """Keys (epoch, index) of this rank's micro-batches, from a step on.

    Every epoch is a new order of all images, of which the last, incomplete batch is left out.

    Args:
        shard_sizes: for images that lie in shards, their lengths: see `ShardOrder`; None shuffles all together.
        buffer: of `ShardOrder`.
    """

    def __init__(
        self,
        num_images: int,
        *,
        seed: int,
        shares: Shares,
        rank: int,
        start_step: int,
        total_steps: int,
        shard_sizes: Int64[np.ndarray, " s"] | None = None,
        buffer: int = 1,
    ) -> None:
        self.num_images = num_images
        self.seed = seed
        self.shares = shares
        self.rank = rank
        self.steps = range(start_step, total_steps)
        self.shard_sizes = shard_sizes
        self.buffer = buffer

    def __iter__(self) -> Iterator[Keys]:
        batch_size = self.shares.batch_size
        steps_per_epoch = self.num_images // batch_size
        ordered, order = -1, self._epoch_order(0)
        for step in self.steps:
            epoch, position = divmod(step, steps_per_epoch)
            if epoch != ordered:
                ordered, order = epoch, self._epoch_order(epoch)
            batch = order(np.arange(position * batch_size, (position + 1) * batch_size))
            # Consecutive slices go to the ranks in turn: fewer ranks with more accumulation see the same slices.
            for part in batch.reshape(self.shares.accumulation, self.shares.ranks, -1)[:, self.rank]:
                yield [(epoch, int(index)) for index in part]

    def _epoch_order(self, epoch: int) -> Permutation | ShardOrder:
        if self.shard_sizes is None:
            return Permutation(self.num_images, stream(self.seed, Purpose.ORDER, epoch))
        return ShardOrder(self.shard_sizes, self.buffer, self.seed, epoch)
