"""Training images of the original linear protocol: a random resized crop of each in every epoch, and its mirror.

What a view shows depends on the seed, the epoch and the image alone, so that a run can be resumed, on any number of
ranks and workers.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dino_ssl.data.crops import BOX_ATTEMPTS, draw_boxes
from dino_ssl.data.decoding import BrokenImage, bands
from dino_ssl.data.order import Keys, Permutation
from dino_ssl.data.sources import Source, load
from dino_ssl.data.streams import Purpose, stream
from dino_ssl.data.worker_signals import leave_signals_to_parent

SCALE = (0.08, 1.0)
"""Smallest and largest share of the image's area (torchvision's `RandomResizedCrop`, as the original leaves it)."""


@dataclass(frozen=True)
class Views:
    """Views of one step on one rank.

    Attributes:
        indices: of the images in their source; those that cannot be read are missing.
        broken: (file, reason) of each of those.
    """

    pixels: UInt8[Tensor, "b c s s"]
    indices: list[int]
    broken: list[tuple[str, str]]

    def pin_memory(self) -> "Views":
        return replace(self, pixels=self.pixels.pin_memory())


@dataclass(frozen=True)
class TrainingViews(Dataset[tuple[int, Tensor | None, str]]):
    """Views by key (epoch, index): index, pixels (None if the image cannot be read) and the reason."""

    source: Source
    size: int  # pixels
    channels: int
    seed: int

    def __getitem__(self, key: tuple[int, int]) -> tuple[int, Tensor | None, str]:
        epoch, index = key
        try:
            image = load(self.source, index, channels=self.channels)
        except BrokenImage as error:
            return index, None, error.reason
        chances = stream(self.seed, Purpose.LINEAR, epoch, index).random(4 * BOX_ATTEMPTS + 1)
        box = draw_boxes(chances[None, :-1], np.array([SCALE]), image.width, image.height)[0]
        return index, rendered(image.pixels, box.tolist(), self.size, mirror=bool(chances[-1] < 0.5)), ""

    def collate(self, samples: list[tuple[int, Tensor | None, str]]) -> Views:
        pixels = [view for _, view, _ in samples if view is not None]
        return Views(
            torch.stack(pixels) if pixels else torch.empty(0, self.channels, self.size, self.size, dtype=torch.uint8),
            [index for index, view, _ in samples if view is not None],
            [(self.source.describe(index), reason) for index, view, reason in samples if view is None],
        )


def rendered(
    pixels: UInt8[np.ndarray, "h w c"], box: list[float], size: int, *, mirror: bool
) -> UInt8[Tensor, "c size size"]:
    """Cut out a box (left, top, width, height in whole pixels), resize it (bilinear, PIL), perhaps mirror it."""
    left, top, width, height = (int(side) for side in box)
    views = []
    for band in bands(pixels):
        view = band.crop((left, top, left + width, top + height)).resize((size, size), Image.Resampling.BILINEAR)
        views.append(np.atleast_3d(np.asarray(ImageOps.mirror(view) if mirror else view)))
    return torch.from_numpy(np.concatenate(views, axis=2).transpose(2, 0, 1).copy())


@dataclass(frozen=True)
class StepOrder:
    """Keys of each step of this rank: in every epoch all images, once each, the last step with what is left.

    Attributes:
        batch_size: images a step on all ranks together.
        first_epoch, epochs: from which to which, without the last.
    """

    num_images: int
    batch_size: int
    seed: int
    first_epoch: int
    epochs: int
    rank: int = 0
    world_size: int = 1

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(self.num_images / self.batch_size)

    def __iter__(self) -> Iterator[Keys]:
        for epoch in range(self.first_epoch, self.epochs):
            order = Permutation(self.num_images, stream(self.seed, Purpose.ORDER, epoch))
            for start in range(0, self.num_images, self.batch_size):
                step = order(np.arange(start, min(start + self.batch_size, self.num_images)))
                yield [(epoch, int(index)) for index in np.array_split(step, self.world_size)[self.rank]]


def load_views(views: TrainingViews, order: Iterable[Keys], *, num_workers: int, pin_memory: bool) -> Iterator[Views]:
    """The steps' views in order, read by worker processes; the same for any number of them."""
    loader: DataLoader[Any] = DataLoader(
        views,
        batch_sampler=order,
        num_workers=num_workers,
        collate_fn=views.collate,
        pin_memory=pin_memory,
        worker_init_fn=leave_signals_to_parent,
        # A generator of its own: the loader's worker seeds must not move the global random state.
        generator=torch.Generator(),
    )
    return iter(loader)
