"""Face verification: do two images show one person? Two published protocols of ten folds, and rates at few mistakes.

The protocols measure different things on the same features, and are not comparable: `insightface` adds an image's
features to those of its mirror image and looks at distances; `askd` puts the two side by side, takes off the mean of
the other folds, and looks at cosines. Sizes: n images, d dimensions, p pairs, i pairs of different people, t
thresholds, f folds. Everything is computed in float64.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int64

from dino_ssl.errors import UsageError

NUM_FOLDS = 10
DISTANCES = np.arange(0, 4, 0.01)
"""Thresholds on squared distances of vectors of length 1."""
COSINES = np.arange(-10_000, 10_001) / 10_000


@dataclass(frozen=True)
class Pairs:
    """Places of the images of each pair, and whether they show one person."""

    left: Int64[np.ndarray, " p"]
    right: Int64[np.ndarray, " p"]
    is_same: Bool[np.ndarray, " p"]

    def __len__(self) -> int:
        return len(self.is_same)

    def check(self) -> None:
        """Whether ten folds can be made, each with both kinds among the others.

        Raises:
            UsageError: there are too few pairs, or all are of one kind.
        """
        if len(self) < NUM_FOLDS or self.is_same.all() or not self.is_same.any():
            raise UsageError(
                f"verification needs {NUM_FOLDS} pairs or more, of one person and of two; these are "
                f"{np.count_nonzero(self.is_same):,} and {np.count_nonzero(~self.is_same):,}"
            )


@dataclass(frozen=True)
class Folds:
    """What the folds say; every pair is judged once, by a threshold that was chosen on the other folds.

    Attributes:
        accuracies: shares in [0, 1].
        thresholds: of distances or cosines, by protocol.
        hits: whether each pair was judged rightly.
    """

    accuracies: Float64[np.ndarray, " f"]
    thresholds: Float64[np.ndarray, " f"]
    hits: Bool[np.ndarray, " p"]

    @property
    def mean(self) -> float:
        return float(self.accuracies.mean())

    @property
    def std(self) -> float:
        """Standard deviation over the folds, as it is published (divided by their number)."""
        return float(self.accuracies.std())


def folds_of(num_pairs: int) -> list[slice]:
    """Ten runs of pairs in their order; where it does not divide, the first ones have one more."""
    sizes = [num_pairs // NUM_FOLDS + (fold < num_pairs % NUM_FOLDS) for fold in range(NUM_FOLDS)]
    ends = np.cumsum(sizes).tolist()
    return [slice(end - size, end) for size, end in zip(sizes, ends, strict=True)]


def insightface(features: Float64[np.ndarray, "n 2 d"], pairs: Pairs) -> Folds:
    """InsightFace's protocol, of LFW, CFP-FP, AgeDB-30, CALFW and CPLFW.

    Of thresholds that are equally good on the other nine folds the smallest counts; same is a distance below it.

    Args:
        features: of each image and of its mirror image.
    Raises:
        UsageError: see `Pairs.check`.
    """
    pairs.check()
    distances = squared_distances(features, pairs)
    rights = []
    for fold in folds_of(len(pairs)):
        below = [np.searchsorted(np.sort(distances[fold][kind]), DISTANCES) for kind in _kinds(pairs.is_same[fold])]
        same, different = below
        rights.append(same + np.count_nonzero(~pairs.is_same[fold]) - different)
    others = np.sum(rights, 0) - np.stack(rights)
    thresholds = DISTANCES[others.argmax(1)]  # the first maximum
    return _judged(pairs, [distances] * NUM_FOLDS, thresholds, lambda values, limit: values < limit)


def squared_distances(features: Float64[np.ndarray, "n 2 d"], pairs: Pairs) -> Float64[np.ndarray, " p"]:
    """Of the sums of both images' features at length 1; in [0, 4]."""
    summed = normalized(features.sum(1))
    distances: Float64[np.ndarray, " p"] = np.square(summed[pairs.left] - summed[pairs.right]).sum(1)
    return distances


def askd(features: Float64[np.ndarray, "n 2 d"], pairs: Pairs) -> Folds:
    """A-SKD's protocol, for AgeDB-30.

    The threshold is the mean of all that are best on the other nine folds. A cosine equal to it is a mistake.

    Raises:
        UsageError: see `Pairs.check`.
    """
    pairs.check()
    both = features.reshape(len(features), -1)
    cosines, thresholds = [], []
    for fold in folds_of(len(pairs)):
        is_other = np.ones(len(pairs), bool)
        is_other[fold] = False
        # An image that stands in several pairs counts as often.
        mean = both[np.concatenate([pairs.left[is_other], pairs.right[is_other]])].mean(0)
        centred = normalized(both - mean)
        found = (centred[pairs.left] * centred[pairs.right]).sum(1)
        same, different = (np.sort(found[is_other][kind]) for kind in _kinds(pairs.is_same[is_other]))
        rights = len(same) - np.searchsorted(same, COSINES, side="right") + np.searchsorted(different, COSINES)
        thresholds.append(COSINES[rights == rights.max()].mean())
        cosines.append(found)
    return _judged(pairs, cosines, np.array(thresholds), lambda values, limit: values > limit, strict=True)


def _judged(
    pairs: Pairs,
    values: Sequence[Float64[np.ndarray, " p"]],
    thresholds: Float64[np.ndarray, " f"],
    is_same: Callable[[Float64[np.ndarray, "..."], float], Bool[np.ndarray, "..."]],
    *,
    strict: bool = False,
) -> Folds:
    """Each fold by its own values and threshold.

    Args:
        strict: a value equal to the threshold is neither the same nor different.
    """
    hits = np.zeros(len(pairs), bool)
    folds = folds_of(len(pairs))
    for fold, each, threshold in zip(folds, values, thresholds.tolist(), strict=True):
        hits[fold] = (is_same(each[fold], threshold) == pairs.is_same[fold]) & ~(strict & (each[fold] == threshold))
    return Folds(np.array([hits[fold].mean() for fold in folds]), thresholds, hits)


def _kinds(is_same: Bool[np.ndarray, " p"]) -> tuple[Bool[np.ndarray, " p"], Bool[np.ndarray, " p"]]:
    return is_same, ~is_same


def normalized(features: Float64[np.ndarray, "n d"]) -> Float64[np.ndarray, "n d"]:
    """At length 1; nothing stays nothing."""
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    return features / np.where(lengths == 0, 1, lengths)


@dataclass(frozen=True)
class Rate:
    """How many of the same are accepted where few of the others are.

    Attributes:
        far: share of pairs of different people that may be accepted.
        tar: share of pairs of one person that are.
        threshold: accepted are distances below it.
        hits: of each pair of one person, in their order.
    """

    far: float
    tar: float
    threshold: float
    hits: Bool[np.ndarray, " s"]


def resolution(pairs: Pairs) -> float:
    """The smallest false accept rate that so many pairs of different people can show; below it nothing is known."""
    return 1 / np.count_nonzero(~pairs.is_same)


def rate_at(distances: Float64[np.ndarray, " p"], is_same: Bool[np.ndarray, " p"], far: float) -> Rate:
    """True accepts at the largest threshold whose false accepts are at most `far`.

    Below the resolution no pair of different people is accepted. Where several have the same distance, all of them
    are accepted or none.
    """
    others = np.sort(distances[~is_same])
    allowed = int(far * len(others) + 1e-9)  # 0.29 of 100 are 29, whatever float says
    threshold = float(others[allowed]) if allowed < len(others) else np.inf
    hits = distances[is_same] < threshold
    return Rate(far, float(hits.mean()), threshold, hits)


def rates_in_folds(pairs: Pairs, distances: Float64[np.ndarray, " p"], far: float) -> Float64[np.ndarray, "f 2"]:
    """True and false accepts of each fold at the threshold that `rate_at` finds on the others, as LFW is reported.

    A fold without one of the kinds has nan there.
    """
    found = []
    for fold in folds_of(len(pairs)):
        is_other = np.ones(len(pairs), bool)
        is_other[fold] = False
        threshold = rate_at(distances[is_other], pairs.is_same[is_other], far).threshold
        accepted = distances[fold] < threshold
        kinds = _kinds(pairs.is_same[fold])
        found.append([accepted[kind].mean() if kind.any() else np.nan for kind in kinds])
    return np.array(found, np.float64)
