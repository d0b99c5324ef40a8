"""(seed, step, rank) -> batch: a stateless order, so that a run resumes exactly, at any number of ranks."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dino_ssl.data.crops import ViewRecipe, multi_crop
from dino_ssl.data.decoding import BrokenImage
from dino_ssl.data.sources import Source

MAX_REPLACEMENTS = 64
Keys = list[tuple[int, int]]  # epoch and index of each image of a micro-batch


class Purpose(IntEnum):
    """What a stream of random numbers is for: two purposes never share numbers."""

    ORDER = 0
    CROPS = 1
    REPLACEMENT = 2
    KNN = 3


def stream(seed: int, purpose: Purpose, epoch: int, sample: int = 0) -> np.random.Generator:
    """Random numbers that depend on nothing but the arguments.

    Source: counter-based generators, Salmon et al. 2011 (Philox).
    """
    return np.random.Generator(np.random.Philox(key=[seed, sample], counter=[0, 0, epoch, purpose]))


@dataclass(frozen=True)
class Batch:
    """One micro-batch of one rank.

    Attributes:
        views: the global crops, then the local crops if there are any; bytes, view-major.
        broken: (file, reason) of each image that could not be read and was replaced by another.
    """

    views: list[UInt8[Tensor, "_v b 3 _s _s"]]
    broken: list[tuple[str, str]]

    def pin_memory(self) -> "Batch":
        return Batch([view.pin_memory() for view in self.views], self.broken)


@dataclass(frozen=True)
class Shares:
    """How a global batch is shared out: `ranks` x `accumulation` micro-batches of `micro_batch` images."""

    ranks: int
    accumulation: int
    micro_batch: int


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


class MultiCropDataset(Dataset[tuple[list[Tensor], list[tuple[str, str]]]]):
    """Crops of one image for a key (epoch, index); an unreadable image is replaced by a random other one."""

    def __init__(self, source: Source, recipes: Sequence[ViewRecipe], seed: int) -> None:
        self.source = source
        self.recipes = recipes
        self.seed = seed

    def __getitem__(self, key: tuple[int, int]) -> tuple[list[Tensor], list[tuple[str, str]]]:
        epoch, index = key
        broken: list[tuple[str, str]] = []
        for candidate in self._candidates(epoch, index):
            try:
                image = self.source.image(candidate)
            except BrokenImage as error:
                broken.append((self.source.describe(candidate), error.reason))
            else:
                return multi_crop(image, self.recipes, stream(self.seed, Purpose.CROPS, epoch, index)), broken
        return [], broken

    def _candidates(self, epoch: int, index: int) -> Iterator[int]:
        yield index
        others = stream(self.seed, Purpose.REPLACEMENT, epoch, index)
        for _ in range(MAX_REPLACEMENTS):
            yield int(others.integers(len(self.source)))


class BatchOrder:
    """Keys (epoch, index) of this rank's micro-batches, from a step on.

    Every epoch is a new permutation of the images, of which the last, incomplete batch is left out.
    """

    def __init__(
        self, num_images: int, *, seed: int, shares: Shares, rank: int, start_step: int, total_steps: int
    ) -> None:
        self.num_images = num_images
        self.seed = seed
        self.shares = shares
        self.rank = rank
        self.steps = range(start_step, total_steps)

    def __iter__(self) -> Iterator[Keys]:
        batch_size = self.shares.ranks * self.shares.accumulation * self.shares.micro_batch
        steps_per_epoch = self.num_images // batch_size
        shuffled, order = -1, np.empty(0, dtype=np.int64)
        for step in self.steps:
            epoch, position = divmod(step, steps_per_epoch)
            if epoch != shuffled:
                shuffled, order = epoch, stream(self.seed, Purpose.ORDER, epoch).permutation(self.num_images)
            batch = order[position * batch_size : (position + 1) * batch_size]
            # Consecutive slices go to the ranks in turn: fewer ranks with more accumulation see the same slices.
            for part in batch.reshape(self.shares.accumulation, self.shares.ranks, -1)[:, self.rank]:
                yield [(epoch, int(index)) for index in part]


def collate(samples: list[tuple[list[Tensor], list[tuple[str, str]]]]) -> Batch:
    """Stack the crops of each size: [views, images, 3, size, size]. No views if an image had no replacement."""
    broken = [entry for _, entries in samples for entry in entries]
    if not all(crops for crops, _ in samples):
        return Batch([], broken)
    views = [torch.stack(crops) for crops in zip(*(crops for crops, _ in samples), strict=True)]
    groups = [views[:2], views[2:]] if len(views) > 2 else [views]
    return Batch([torch.stack(group) for group in groups], broken)


def batches(dataset: MultiCropDataset, order: Iterable[Keys], *, num_workers: int, pin_memory: bool) -> Iterator[Batch]:
    """This rank's micro-batches in order; the same whatever the number of workers."""
    loader: DataLoader[Batch] = DataLoader(
        dataset,  # type: ignore[arg-type]
        batch_sampler=order,
        collate_fn=collate,
        num_workers=num_workers,
        pin_memory=pin_memory,
        # A generator of its own: the loader's worker seeds must not move the global random state.
        generator=torch.Generator(),
    )
    return iter(loader)
