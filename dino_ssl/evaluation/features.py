"""Images of a source through a frozen encoder: DINO's evaluation transform, batch by batch."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as TF

from dino_ssl.data.decoding import BrokenImage, bands
from dino_ssl.data.sources import Source, labels_in, load
from dino_ssl.data.transfer import normalize
from dino_ssl.errors import DivergedError, RunError
from dino_ssl.evaluation.readouts import POOLED, Readout


@dataclass(frozen=True)
class Features:
    """What an encoder says of the images of a source that can be read.

    Attributes:
        values: float32, on the CPU.
        indices: where each image stands in its source; picks its label.
        broken: (file, reason) of each image that was left out.
    """

    values: Float[Tensor, "n ..."]
    indices: Int64[np.ndarray, " n"]
    broken: list[tuple[str, str]]

    @property
    def num_broken(self) -> int:
        return len(self.broken)


@dataclass(frozen=True)
class Labelled:
    """Features with the classes of their images.

    Attributes:
        labels: indices into the classes of the set that is learned from.
    """

    values: Float[Tensor, "n ..."]
    labels: Int64[Tensor, " n"]


def labelled(features: Features, source: Source, classes: tuple[str, ...]) -> Labelled:
    """Features of a source with its labels, as indices into `classes`.

    Raises:
        UsageError: the source has no labels, or a class that is not among `classes`.
    """
    return Labelled(features.values, torch.from_numpy(labels_in(source, classes)[features.indices]))


def center_pixels(pixels: UInt8[np.ndarray, "h w c"], size: int, center_crop: float) -> UInt8[Tensor, "c size size"]:
    """Resize the short side to size / center_crop (bicubic, PIL), then cut out the centre.

    An image of that size already is not resampled; DINO's 224 pixels of 256 are a `center_crop` of 0.875.
    """
    resized = [TF.resize(band, [round(size / center_crop)], InterpolationMode.BICUBIC) for band in bands(pixels)]
    return torch.cat([TF.pil_to_tensor(TF.center_crop(band, [size, size])) for band in resized])


@dataclass(frozen=True)
class Extractor:
    """An encoder with all that its images go through before it.

    Attributes:
        encoder: takes normalised images [b, c, size, size]; lies on `device`.
        size: side of the centre crop, pixels.
        center_crop: `size` over the resized short side, in (0, 1].
        mean, std: one number per channel.
        precision: autocast to this type; None computes as the weights are.
        batch_size: images at once.
        num_workers: processes that read images; 0 reads in this one.
        num_threads: of each process that reads; without workers, the images of a batch are read before it is encoded.
    """

    encoder: nn.Module
    size: int
    center_crop: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    device: torch.device
    readout: Readout = POOLED
    precision: torch.dtype | None = None
    batch_size: int = 256
    num_workers: int = 0
    num_threads: int = 1

    def features(self, source: Source, indices: Sequence[int] | None = None) -> Features:
        """Encode the images `indices` (all by default), in that order, as `parts` does.

        Raises:
            RunError: no image can be read.
            DivergedError: a feature is not finite.
        """
        chosen = range(len(source)) if indices is None else indices
        return joined(list(self.parts(source, [chosen])), source)

    def parts(
        self, source: Source, parts: Sequence[Sequence[int]], advance: Callable[[int], object] = lambda count: None
    ) -> Iterator[Features]:
        """Encode several lists of images one after the other, in evaluation mode and without gradients.

        The encoder's modes and the global random states are afterwards what they were, so that training goes on
        bit for bit as if nothing had happened. A part of which no image can be read has no values.

        Args:
            advance: called after each batch with its number of images.
        Raises:
            DivergedError: a feature is not finite.
        """
        each = [
            [part[first : first + self.batch_size] for first in range(0, len(part), self.batch_size)] for part in parts
        ]
        # One loader for all, so that images of the next part are read while this one is encoded and written.
        loaded = self._loaded(source, [batch for part in each for batch in part])
        for batches in each:
            found = self._encoded(islice(loaded, len(batches)), advance)
            _check_finite(found, source)
            yield found

    def some_images(self, source: Source, num_images: int) -> Iterator[Float[Tensor, "_b c s s"]]:
        """About so many images, evenly spread over the source, as the encoder gets them; those that can be read.

        Each batch spans the whole source: of images in the order of their classes, too, it is a fair sample.
        """
        chosen = np.linspace(0, len(source) - 1, min(num_images, len(source))).astype(int).tolist()
        num_batches = -(-len(chosen) // self.batch_size)
        for batch in self._loaded(source, [chosen[first::num_batches] for first in range(num_batches)]):
            if batch.indices:
                yield normalize(batch.pixels.to(self.device), self.mean, self.std)

    def _encoded(self, batches: Iterable["_Batch"], advance: Callable[[int], object]) -> Features:
        values, kept, broken = [], [], []
        autocast = torch.autocast(self.device.type, self.precision, self.precision is not None)
        with evaluating(self.encoder), torch.no_grad(), autocast:
            for batch in batches:
                kept += batch.indices
                broken += batch.broken
                if batch.indices:
                    images = normalize(batch.pixels.to(self.device, non_blocking=True), self.mean, self.std)
                    values.append(self.readout(self.encoder, images).float().cpu())
                advance(len(batch.indices) + len(batch.broken))
        return Features(torch.cat(values) if values else torch.empty(0, 0), np.array(kept, np.int64), broken)

    def _loaded(self, source: Source, batches: list[Sequence[int]]) -> Iterator["_Batch"]:
        crops = _CenterCrops(source, len(self.mean), self.size, self.center_crop, self.num_threads)
        loader: DataLoader[Any] = DataLoader(
            crops,
            batch_sampler=batches,  # type: ignore[arg-type]  # ranges do as well as lists
            num_workers=min(self.num_workers, len(batches)),
            collate_fn=crops.collate,
            pin_memory=self.device.type == "cuda",
            # One of its own: the loader's worker seeds must not move the global random state.
            generator=torch.Generator(),
        )
        return iter(loader)


def joined(parts: Sequence[Features], source: Source) -> Features:
    """Parts of a source's features as one.

    Raises:
        RunError: no image can be read.
    """
    broken = [entry for part in parts for entry in part.broken]
    full = [part for part in parts if len(part.indices)]
    if not full:
        raise RunError(f"{source.name}: none of the {len(broken)} images can be read; {_first(broken)}")
    indices = np.concatenate([part.indices for part in full])
    return Features(torch.cat([part.values for part in full]), indices, broken)


def pixel_features(images: UInt8[np.ndarray, "n h w c"]) -> Float[Tensor, "n d"]:
    """Pixels in [0, 1] as features; the encoder `nn.Flatten()` with mean 0 and std 1 gives the same."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).flatten(1) / 255


@contextmanager
def evaluating(encoder: nn.Module) -> Iterator[None]:
    """Evaluation mode, then each module's own mode again: a part may have been frozen in evaluation mode."""
    modes = [(module, module.training) for module in encoder.modules()]
    encoder.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@dataclass(frozen=True)
class _Batch:
    pixels: UInt8[Tensor, "b c h w"]
    indices: list[int]
    broken: list[tuple[str, str]]

    def pin_memory(self) -> "_Batch":
        """For the loader, whose thread does so before a GPU asks for the batch."""
        return replace(self, pixels=self.pixels.pin_memory())


class _CenterCrops(Dataset[tuple[int, Tensor | None, str]]):
    """By index: that index, pixels (None if broken) and the reason."""

    def __init__(self, source: Source, channels: int, size: int, center_crop: float, num_threads: int) -> None:
        self.source = source
        self.channels = channels
        self.size = size
        self.center_crop = center_crop
        self.num_threads = num_threads

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[int, Tensor | None, str]]:
        """A batch for the loader; decoding and resizing release the GIL."""
        if self.num_threads == 1:
            return [self[index] for index in indices]
        with ThreadPoolExecutor(self.num_threads) as pool:
            return list(pool.map(self.__getitem__, indices))

    def __getitem__(self, index: int) -> tuple[int, Tensor | None, str]:
        try:
            image = load(self.source, index, channels=self.channels)
        except BrokenImage as error:
            return index, None, error.reason
        return index, center_pixels(image.pixels, self.size, self.center_crop), ""

    def collate(self, samples: list[tuple[int, Tensor | None, str]]) -> _Batch:
        pixels = [image for _, image, _ in samples if image is not None]
        return _Batch(
            torch.stack(pixels) if pixels else torch.empty(0, self.channels, self.size, self.size, dtype=torch.uint8),
            [index for index, image, _ in samples if image is not None],
            [(self.source.describe(index), reason) for index, image, reason in samples if image is None],
        )


def _check_finite(features: Features, source: Source) -> None:
    finite = torch.isfinite(features.values).flatten(1).all(1)
    if not finite.all():
        first = int(features.indices[int(finite.int().argmin())])
        raise DivergedError(
            f"the features of {int((~finite).sum())} of {len(finite)} images are not finite, "
            f"the first of {source.describe(first)}; go back to an earlier checkpoint"
        )


def _first(broken: list[tuple[str, str]]) -> str:
    return f"the first is {broken[0][0]} ({broken[0][1]})" if broken else "there are none"
