"""Accuracies of a classifier, and how far they would move with other test images of the same kind.

Sizes: n test images, c classes, m kinds of images, r resamples at once.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

# A limit of an interval wanders by 2.7 / sqrt(resamples) standard errors of the accuracy: 4 % of one.
RESAMPLES = 5000
# Counts in memory at once, 32 MiB.
MAX_COUNTS = 2**22
LIMITS = (2.5, 97.5)  # percentiles


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % bootstrap interval."""

    value: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class Accuracies:
    """What a classifier got right, as shares in [0, 1].

    Attributes:
        top: by k, the share of images whose class is among the first k.
        macro: mean of the classes' own top-1 accuracies: each counts once, however many images it has.
        per_class: top-1; nan where a class has no image.
    """

    top: dict[int, Estimate]
    macro: Estimate
    per_class: Float[Tensor, " c"]


def accuracies(
    ranks: Int64[Tensor, " n"], labels: Int64[Tensor, " n"], num_classes: int, *, ks: Sequence[int] = (1, 5)
) -> Accuracies:
    """Every accuracy.

    Args:
        ranks: how many classes came before the true one (`ranks_of_truth`).
        labels: from 0; classes may be missing.
    """
    hits = ranks == 0
    return Accuracies(
        top={k: estimate(ranks < k) for k in ks},
        macro=macro_accuracy(hits, labels, num_classes),
        per_class=per_class_accuracy(hits, labels, num_classes),
    )


def ranks_of_truth(scores: Float[Tensor, "n c"], labels: Int64[Tensor, " n"]) -> Int64[Tensor, " n"]:
    """How many classes come before the true one: 0 is a hit, less than k is among the first k.

    Of classes with equal scores the lower one comes first. A score that is not a number never helps the true class.
    """
    own = scores.gather(1, labels[:, None])
    higher = torch.arange(scores.shape[1], device=scores.device) > labels[:, None]
    behind = (scores < own) | ((scores == own) & higher)
    return scores.shape[1] - 1 - behind.sum(1)


def per_class_accuracy(hits: Bool[Tensor, " n"], labels: Int64[Tensor, " n"], num_classes: int) -> Float[Tensor, " c"]:
    """Share of each class's images that are hits; nan where a class has no image."""
    found = torch.bincount(labels, hits.double(), minlength=num_classes)
    return found / torch.bincount(labels, minlength=num_classes)


def macro_accuracy(
    hits: Bool[Tensor, " n"], labels: Int64[Tensor, " n"], num_classes: int, *, seed: int = 0
) -> Estimate:
    """Mean of the accuracies of the classes that have images."""
    value = per_class_accuracy(hits, labels, num_classes).nanmean().item()
    kinds, counts = torch.unique(2 * labels + hits, return_counts=True)
    classes, hit = (kinds // 2).cpu().numpy(), (kinds % 2).cpu().numpy()
    starts = np.unique(classes, return_index=True)[1]  # kinds are sorted: those of a class lie together

    def macro(drawn: Int64[np.ndarray, "r m"]) -> Float[np.ndarray, " r"]:
        found, present = (np.add.reduceat(counts, starts, axis=1) for counts in (drawn * hit, drawn))
        # A class that a resample lacks is left out of its mean, as one that the test lacks.
        means: Float[np.ndarray, " r"] = (found / np.maximum(present, 1)).sum(1) / (present > 0).sum(1)
        return means

    resampled = [macro(drawn) for drawn in _resamples(counts.cpu().numpy(), seed)]
    return Estimate(value, _limits(np.concatenate(resampled)))


def estimate(values: Bool[Tensor, " n"] | Float[Tensor, " n"], *, seed: int = 0) -> Estimate:
    """Mean of one number per test image (a hit, an average precision) with its interval.

    Where all numbers are equal the interval has no width: the bootstrap knows only what it has seen.

    Raises:
        ValueError: there are no numbers, or some are not finite.

    Source: the percentile bootstrap of Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13.
    """
    if not len(values) or not values.isfinite().all():
        raise ValueError(f"an interval needs finite numbers; {len(values)} were given")
    kinds, counts = torch.unique(values.double(), return_counts=True)
    each = kinds.cpu().numpy()
    resampled = [drawn @ each / len(values) for drawn in _resamples(counts.cpu().numpy(), seed)]
    return Estimate(values.double().mean().item(), _limits(np.concatenate(resampled)))


def _resamples(counts: Int64[np.ndarray, " m"], seed: int) -> Iterator[Int64[np.ndarray, "r m"]]:
    """How often each kind of image comes in each of `RESAMPLES` samples of as many images, with replacement.

    Images of one kind count alike, so drawing images is drawing numbers of them: one multinomial draw a sample.
    """
    generator = np.random.default_rng(seed)
    shares = counts / counts.sum()
    rows = max(1, MAX_COUNTS // len(counts))
    for start in range(0, RESAMPLES, rows):
        yield generator.multinomial(counts.sum(), shares, size=min(rows, RESAMPLES - start))


def _limits(resampled: Float[np.ndarray, " r"]) -> tuple[float, float]:
    low, high = np.percentile(resampled, LIMITS)
    return float(low), float(high)
