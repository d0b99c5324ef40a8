"""Finding the original of an altered image among distractors: Copydays, as DINO measures it.

Sizes: n images, d dimensions.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from dino_ssl.data.copydays import STRONG, Copydays
from dino_ssl.data.sources import Source
from dino_ssl.data.whole_image import resized
from dino_ssl.errors import UsageError
from dino_ssl.evaluation.metrics import estimate
from dino_ssl.evaluation.protocols import COPYDAYS
from dino_ssl.evaluation.results import Evaluation, Measurement, about, about_data
from dino_ssl.evaluation.retrieval import average_precision, rankings
from dino_ssl.evaluation.whole_images import WholeImages

SIDE = 320
"""Images are squeezed into squares of so many pixels; where the patch size does not divide it, the nearest multiple."""
GEM_POWER = 4
GEM_LEAST = 1e-6
TOP = 20
"""Images that are looked at for each query."""


def class_and_gem(backbone: Any, images: Float[Tensor, "n c y x"]) -> Float[Tensor, "n d"]:
    """Class token beside the generalised mean (the 4th root of the mean 4th power) of the patches that are positive.

    Source: DINO, arXiv:2104.14294, section 4.2.1; GeM: Radenovic et al., arXiv:1711.02512.
    """
    block = backbone.last_blocks(images, 1)[0]
    gem = block.patches.clamp_min(GEM_LEAST).pow(GEM_POWER).mean((2, 3)).pow(1 / GEM_POWER)
    return torch.cat((block.pooled, gem), dim=1)


@dataclass(frozen=True)
class Whitening:
    """Features less a mean, along axes of their second moments, each divided by its root: all dimensions stay.

    The moments are of features as they are, not less their mean: the original computes them so, and its numbers are
    those of that transform. A covariance would leave no axis for the mean itself.
    """

    mean: Float[Tensor, " d"]
    axes: Float[Tensor, "d d"]

    @classmethod
    def of(cls, features: Float[Tensor, "n d"]) -> "Whitening":
        """Fit in float64.

        Raises:
            UsageError: fewer images than dimensions, of which some axes would then be noise over nothing.
        """
        number, dims = features.shape
        if number < dims:
            raise UsageError(f"whitening needs {dims:,} images, as many as dimensions; these are {number:,}")
        values = features.double()
        powers, axes = torch.linalg.eigh(values.T @ values / number)
        least = powers[-1] * torch.finfo(features.dtype).eps
        return cls(values.mean(0).float(), (axes / powers.clamp_min(least).sqrt()).float())

    def __call__(self, features: Float[Tensor, "m d"]) -> Float[Tensor, "m d"]:
        return (features - self.mean) @ self.axes


def evaluate(
    extraction: WholeImages,
    data: Copydays,
    *,
    distractors: Source | None = None,
    whitening: Source | None = None,
    side: int = SIDE,
    advance: Callable[[int], object] = lambda count: None,
) -> Evaluation:
    """Mean average precision of each block of altered images; `strong` is the published one.

    Args:
        distractors: images that are nobody's originals.
        whitening: images of another collection, to whose statistics features are brought.
        advance: called with numbers of images, as they are done.
    Raises:
        UsageError: too few images for whitening.
        RunError: an image cannot be read.
    """
    begin = time.perf_counter()
    square = _Square.near(side, extraction.encoder.backbone.patch_size)

    def features(source: Source) -> Tensor:
        return extraction.features(source, square, class_and_gem, advance)

    whiten = Whitening.of(features(whitening)) if whitening else None
    gallery = torch.cat([features(source) for source in (data.originals, distractors) if source])
    found = [
        _measured(name, _whitened(whiten, features(block.images)), _whitened(whiten, gallery), block.originals)
        for name, block in data.blocks.items()
    ]
    sets: dict[str, Source] = {"originals": data.originals, STRONG: data.blocks[STRONG].images}
    sets |= {role: source for role, source in (("distractors", distractors), ("whitening", whitening)) if source}
    return Evaluation(
        COPYDAYS,
        about(extraction.encoder),
        {role: about_data(source, len(source)) for role, source in sets.items()},
        found,
        time.perf_counter() - begin,
        settings={"side": square.side, "top": TOP},
    )


def _whitened(whiten: Whitening | None, features: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    return features if whiten is None else whiten(features)


def _measured(
    block: str, queries: Float[Tensor, "q d"], gallery: Float[Tensor, "n d"], originals: Int64[np.ndarray, " q"]
) -> Measurement:
    """Each query has one original; not among the first `TOP`, it counts as not found."""
    found = [
        average_precision(np.flatnonzero(ranking.order[:TOP] == original), 1)
        for ranking, original in zip(rankings(queries, gallery), originals.tolist(), strict=True)
    ]
    mean = estimate(torch.tensor(found, dtype=torch.float64))
    return Measurement("copy_detection/map", mean.value, mean.interval, {"block": block})


@dataclass(frozen=True)
class _Square:
    """Squeezes an image into a square."""

    side: int

    @classmethod
    def near(cls, side: int, patch_size: int) -> "_Square":
        return cls(max(1, round(side / patch_size)) * patch_size)

    def __call__(self, pixels: UInt8[np.ndarray, "h w c"], index: int) -> UInt8[Tensor, "c y x"]:
        return resized(pixels, self.side, self.side)
