"""Templates of IJB-B and IJB-C: one vector for all images of a person that were enrolled together.

Sizes: n images, d dimensions, t templates, p pairs.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float64, Int64

from dino_ssl.evaluation.verification import normalized


def templates(
    features: Float64[np.ndarray, "n d"],
    template_ids: Int64[np.ndarray, " n"],
    media_ids: Int64[np.ndarray, " n"],
    scores: Float64[np.ndarray, " n"] | None = None,
) -> tuple[Int64[np.ndarray, " t"], Float64[np.ndarray, "t d"]]:
    """Rising numbers of the templates, and their vectors of length 1.

    The frames of a video (a medium) are averaged, the media of a template are added: a long video counts once.

    Args:
        features: of an image and its mirror image, added; not normalised, as their length says how good they are.
        scores: of the face detector; weigh the images.
    """
    weighted = features if scores is None else features * scores[:, None]
    media, place = np.unique(np.stack([template_ids, media_ids], 1), axis=0, return_inverse=True)
    place = place.reshape(-1)  # NumPy 2.0 gave it another shape
    means = np.zeros((len(media), features.shape[1]))
    np.add.at(means, place, weighted)
    means /= np.bincount(place)[:, None]
    numbers, place = np.unique(media[:, 0], return_inverse=True)
    sums = np.zeros((len(numbers), features.shape[1]))
    np.add.at(sums, place, means)
    return numbers, normalized(sums)


def template_cosines(
    numbers: Int64[np.ndarray, " t"],
    vectors: Float64[np.ndarray, "t d"],
    first: Int64[np.ndarray, " p"],
    second: Int64[np.ndarray, " p"],
) -> Float64[np.ndarray, " p"]:
    """Of pairs that are given by the numbers of their templates.

    Raises:
        ValueError: a number is not among the templates.
    """
    left, right = (np.searchsorted(numbers, each).clip(max=len(numbers) - 1) for each in (first, second))
    for each, place in ((first, left), (second, right)):
        if (missing := each[numbers[place] != each]).size:
            raise ValueError(f"there is no template {missing[0]}")
    # A part at a time: IJB-C has 15 million pairs.
    parts = [
        np.einsum("pd,pd->p", vectors[left[start : start + 65_536]], vectors[right[start : start + 65_536]])
        for start in range(0, len(first), 65_536)
    ]
    cosines: Float64[np.ndarray, " p"] = np.concatenate(parts)
    return cosines


def rates_on_curve(
    cosines: Float64[np.ndarray, " p"], is_same: Bool[np.ndarray, " p"], fars: Sequence[float]
) -> Float64[np.ndarray, " f"]:
    """True accepts where the false ones are nearest to each of `fars`, as IJB's results are published.

    The points are those of scikit-learn's curve, which leaves out the ones on a straight line; of two that are
    equally near, the one with more accepts counts.
    """
    from sklearn.metrics import roc_curve  # noqa: PLC0415  (takes a second that no other protocol needs)

    false, true, _ = roc_curve(is_same, cosines)
    false, true = false[::-1], true[::-1]
    return np.array([true[np.abs(false - far).argmin()] for far in fars])
