"""Landmark retrieval on revisited Oxford and Paris, as DINO measures it."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from dino_ssl.data.revisited import Revisited, Truth
from dino_ssl.evaluation.metrics import estimate
from dino_ssl.evaluation.protocols import REVISITED
from dino_ssl.evaluation.results import Evaluation, Measurement, about, about_data
from dino_ssl.evaluation.retrieval import QueryScores, Ranking, judge, rankings
from dino_ssl.evaluation.whole_images import SCALES, WholeImages, multi_scale, thumbnail

KS = (1, 5, 10)


@dataclass(frozen=True)
class Landmarks:
    """How images become features.

    Attributes:
        side: of the longer side, to which images are reduced, pixels.
        multiscale: the mean over `SCALES` instead of the image alone.
        crop_queries: only the landmark's box of a query, as retrieval papers do and the original does not.
    """

    side: int = 224
    multiscale: bool = False
    crop_queries: bool = False


def evaluate(
    extraction: WholeImages,
    data: Revisited,
    settings: Landmarks,
    advance: Callable[[int], object] = lambda count: None,
) -> Evaluation:
    """Mean average precision and mean precision at 1, 5 and 10, easy, medium and hard.

    Args:
        advance: called with numbers of images, as they are done.
    Raises:
        RunError: an image cannot be read.
    """
    begin = time.perf_counter()
    read = partial(multi_scale, scales=SCALES if settings.multiscale else SCALES[:1])
    boxes = [truth.box for truth in data.truth] if settings.crop_queries else None
    queries = extraction.features(data.queries, partial(_prepared, side=settings.side, boxes=boxes), read, advance)
    gallery = extraction.features(data.gallery, partial(_prepared, side=settings.side, boxes=None), read, advance)
    found = list(rankings(queries.to(extraction.device), gallery.to(extraction.device)))
    return Evaluation(
        REVISITED,
        about(extraction.encoder),
        {"queries": about_data(data.queries, len(queries)), "gallery": about_data(data.gallery, len(gallery))},
        measurements(found, data.truth),
        time.perf_counter() - begin,
        settings={"side": settings.side, "multiscale": settings.multiscale, "crop_queries": settings.crop_queries},
    )


def measurements(found: Sequence[Ranking], truth: Sequence[Truth]) -> list[Measurement]:
    """Means over the queries that have positives at a level; levels without any are left out."""
    return [one for level in LEVELS for one in _of_level(level, found, truth)]


def _of_level(level: str, found: Sequence[Ranking], truth: Sequence[Truth]) -> Iterator[Measurement]:
    scores: list[QueryScores] = []
    for ranking, one in zip(found, truth, strict=True):
        positives, junk = LEVELS[level](one)
        if len(positives):
            scores.append(judge(ranking.order, positives, junk, KS))
    if not scores:
        return
    rows = {"map": [one.average_precision for one in scores]}
    rows |= {f"mp@{k}": [one.precision[k] for one in scores] for k in KS}
    for name, values in rows.items():
        mean = estimate(torch.tensor(values, dtype=torch.float64))
        yield Measurement(f"retrieval/{name}", mean.value, mean.interval, {"level": level})


Places = Int64[np.ndarray, "_"]


def _easy(truth: Truth) -> tuple[Places, Places]:
    return truth.easy, np.concatenate([truth.junk, truth.hard])


def _medium(truth: Truth) -> tuple[Places, Places]:
    return np.concatenate([truth.easy, truth.hard]), truth.junk


def _hard(truth: Truth) -> tuple[Places, Places]:
    return truth.hard, np.concatenate([truth.junk, truth.easy])


LEVELS = {"easy": _easy, "medium": _medium, "hard": _hard}
"""Positives and junk."""


def _prepared(
    pixels: UInt8[np.ndarray, "h w c"],
    index: int,
    *,
    side: int,
    boxes: Sequence[tuple[float, float, float, float]] | None,
) -> UInt8[Tensor, "c y x"]:
    if boxes is not None:
        left, top, right, bottom = (max(0, round(edge)) for edge in boxes[index])
        pixels = np.ascontiguousarray(pixels[top : max(top + 1, bottom), left : max(left + 1, right)])
    return thumbnail(pixels, side)
