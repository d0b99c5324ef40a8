"""How well the masks of a video agree with the annotation: region similarity J and contour accuracy F.

The measures of DAVIS (Perazzi et al., CVPR 2016; Pont-Tuset et al., arXiv:1704.00675). Sizes: t frames, h and w pixels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

TOLERANCE = 0.008
"""Distance at which contours still match, as a share of the diagonal."""
GOOD = 0.5
"""What a frame must exceed to count in a recall."""
QUARTERS = 4


@dataclass(frozen=True)
class Scores:
    """A measure of one object over its frames.

    Attributes:
        mean: over frames.
        recall: share of the frames above `GOOD`.
        decay: mean of the first quarter of the frames less that of the last; what is lost on the way.
    """

    mean: float
    recall: float
    decay: float


def region_similarity(found: Bool[Tensor, "*t h w"], truth: Bool[Tensor, "*t h w"]) -> Float[Tensor, "*t"]:
    """J, intersection over union of each frame; 1 where both are empty."""
    both, either = (found & truth).sum((-2, -1)), (found | truth).sum((-2, -1))
    return torch.where(either == 0, 1.0, both / either.clamp_min(1))


def contour_accuracy(found: Bool[Tensor, "t h w"], truth: Bool[Tensor, "t h w"]) -> Float[Tensor, " t"]:
    """F, harmonic mean of precision and recall of the contours of each frame.

    A pixel of one contour is right if the other has one within `TOLERANCE` of the diagonal, rounded up. Two empty
    contours agree; an empty one and another do not.
    """
    radius = math.ceil(TOLERANCE * math.hypot(*truth.shape[-2:]))
    contours = contour(found), contour(truth)
    near_found, near_truth = (dilated(one, radius) for one in contours)
    precision = _share(contours[0], near_truth)
    recall = _share(contours[1], near_found)
    total = precision + recall
    return torch.where(total == 0, 0.0, 2 * precision * recall / total.clamp_min(torch.finfo(total.dtype).tiny))


def contour(masks: Bool[Tensor, "t h w"]) -> Bool[Tensor, "t h w"]:
    """Pixels that differ from their neighbour to the right, below, or below to the right.

    A contour is thus one pixel wide, and none runs along the border of the frame.
    """
    padded = F.pad(masks.byte()[:, None], (0, 1, 0, 1), mode="replicate")[:, 0].bool()
    right, below, diagonal = padded[:, :-1, 1:], padded[:, 1:, :-1], padded[:, 1:, 1:]
    return (masks ^ right) | (masks ^ below) | (masks ^ diagonal)


def dilated(masks: Bool[Tensor, "t h w"], radius: int) -> Bool[Tensor, "t h w"]:
    """Every pixel within `radius` pixels of one that is set, by the distance of their centres.

    The disk is a stack of rows, and a row of any width costs one difference of running counts.
    """
    height, width = masks.shape[-2:]
    counts = F.pad(masks.int().cumsum(-1, dtype=torch.int32), (1, 0))
    result = torch.zeros_like(masks)
    columns = torch.arange(width, device=masks.device)
    for half, offsets in _rows_of_disk(min(radius, height + width)).items():
        last, first = (columns + half + 1).clamp_max(width), (columns - half).clamp_min(0)
        wide = counts[..., last] > counts[..., first]
        for down in (down for down in offsets if abs(down) < height):
            result[:, max(down, 0) : height + min(down, 0)] |= wide[:, max(-down, 0) : height - max(down, 0)]
    return result


def scores(per_frame: Float[Tensor, " t"]) -> Scores:
    """Mean, recall and decay of one object; quarters share their first and last frames, as in DAVIS's own code."""
    values = per_frame.double().cpu().numpy()
    # The small shift rounds halves up, as that code does.
    ends = np.round(np.linspace(1, len(values), QUARTERS + 1) + 1e-10).astype(int) - 1
    first, last = values[ends[0] : ends[1] + 1], values[ends[-2] : ends[-1] + 1]
    return Scores(float(values.mean()), float((values > GOOD).mean()), float(first.mean() - last.mean()))


def mean_scores(objects: Sequence[Scores]) -> Scores:
    """Over objects: each counts once, however many frames its video has."""
    rows = np.array([(one.mean, one.recall, one.decay) for one in objects])
    mean, recall, decay = rows.mean(0).tolist()
    return Scores(mean, recall, decay)


def _rows_of_disk(radius: int) -> dict[int, list[int]]:
    """Rows of a disk by half their width: offsets down."""
    rows: dict[int, list[int]] = {}
    for down in range(-radius, radius + 1):
        rows.setdefault(math.isqrt(radius**2 - down**2), []).append(down)
    return rows


def _share(pixels: Bool[Tensor, "t h w"], near: Bool[Tensor, "t h w"]) -> Float[Tensor, " t"]:
    """Share of the pixels that lie near the other contour; 1 where there are none to be wrong."""
    total, right = pixels.sum((-2, -1)), (pixels & near).sum((-2, -1))
    return torch.where(total == 0, 1.0, right / total.clamp_min(1))
