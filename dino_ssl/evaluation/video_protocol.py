"""DAVIS 2017, semi-supervised: from masks that were found to the numbers that are reported."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from dino_ssl.errors import UsageError
from dino_ssl.evaluation.metrics import estimate
from dino_ssl.evaluation.results import Measurement, Plain
from dino_ssl.evaluation.video_metrics import Scores, contour_accuracy, mean_scores, region_similarity, scores

FEWEST_FRAMES = 3


@dataclass(frozen=True)
class ObjectScores:
    """J and F of one object of a clip."""

    clip: str
    number: int
    region: Scores
    contour: Scores

    @property
    def j_and_f(self) -> float:
        return (self.region.mean + self.contour.mean) / 2


def check(clip: str, num_frames: int, first: UInt8[np.ndarray, "h w"]) -> None:
    """Whether a clip can be measured.

    Raises:
        UsageError: fewer than three frames, or no object in the first.
    """
    if num_frames < FEWEST_FRAMES or not first.any():
        has = f"{num_frames} frames and {'an' if first.any() else 'no'} object in the first"
        raise UsageError(f"sequence {clip} has {has}; it needs {FEWEST_FRAMES} frames, and an object")


def score(clip: str, found: UInt8[Tensor, "t h w"], truth: UInt8[Tensor, "t h w"]) -> list[ObjectScores]:
    """J and F of each object of the first frame; the first frame, which is given, and the last do not count."""
    numbers = [number for number in truth[0].unique().tolist() if number > 0]
    return [_score(clip, number, found[1:-1] == number, truth[1:-1] == number) for number in numbers]


def _score(clip: str, number: int, found: Tensor, truth: Tensor) -> ObjectScores:
    region, contour = region_similarity(found, truth), contour_accuracy(found, truth)
    return ObjectScores(clip, number, scores(region), scores(contour))


def measurements(objects: Sequence[ObjectScores]) -> list[Measurement]:
    """The seven numbers of DAVIS 2017: means over objects, each of which counts once; none without objects.

    Intervals take the objects as independent; those of one video are alike, so that the true ones are wider.
    """
    if not objects:
        return []
    region = mean_scores([one.region for one in objects])
    contour = mean_scores([one.contour for one in objects])
    rows = {
        "j_and_f": ((region.mean + contour.mean) / 2, [one.j_and_f for one in objects]),
        "j_mean": (region.mean, [one.region.mean for one in objects]),
        "j_recall": (region.recall, [one.region.recall for one in objects]),
        "j_decay": (region.decay, [one.region.decay for one in objects]),
        "f_mean": (contour.mean, [one.contour.mean for one in objects]),
        "f_recall": (contour.recall, [one.contour.recall for one in objects]),
        "f_decay": (contour.decay, [one.contour.decay for one in objects]),
    }
    return [
        Measurement(f"davis/{name}", value, estimate(torch.tensor(each, dtype=torch.float64)).interval)
        for name, (value, each) in rows.items()
    ]


def by_clip_and_object(objects: Sequence[ObjectScores]) -> dict[str, Plain]:
    """For `Evaluation.details`: the mean over each clip's objects, then each of them."""
    rows: dict[str, Plain] = {}
    for clip, several in groupby(objects, key=lambda one: one.clip):
        own = list(several)
        rows[clip] = _j_and_f(own)
        rows |= {f"{clip}/{one.number}": _j_and_f([one]) for one in own}
    return rows


def _j_and_f(objects: Sequence[ObjectScores]) -> dict[str, Plain]:
    region, contour = (
        mean_scores(column).mean for column in zip(*((o.region, o.contour) for o in objects), strict=True)
    )
    return {"j": region, "f": contour}
