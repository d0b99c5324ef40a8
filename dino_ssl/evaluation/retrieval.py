"""Finding images by similarity, and how well: rankings, average precision with junk, precision at k.

Sizes: q queries, n images of the gallery, d dimensions, p of them positives, j junk.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

MAX_SIMILARITIES = 2**23
"""At once: 32 MiB, and as much again while they are sorted."""


@dataclass(frozen=True)
class Ranking:
    """The gallery as one query sees it.

    Attributes:
        order: places in the gallery, nearest first; of equal ones the lower first.
        similarity: of each, in [-1, 1].
    """

    order: Int64[np.ndarray, " n"]
    similarity: Float[np.ndarray, " n"]


@dataclass(frozen=True)
class QueryScores:
    """How well one query found its positives, in [0, 1].

    Attributes:
        precision: by k.
    """

    average_precision: float
    precision: dict[int, float]


@torch.no_grad()
def rankings(
    queries: Float[Tensor, "q d"], gallery: Float[Tensor, "n d"], *, leave_one_out: bool = False
) -> Iterator[Ranking]:
    """By cosine similarity, query by query.

    Args:
        leave_one_out: queries and gallery are the same images; none finds itself.
    """
    queries, gallery = F.normalize(queries.float()), F.normalize(gallery.float())
    rows = max(1, MAX_SIMILARITIES // len(gallery))
    for start in range(0, len(queries), rows):
        similarity = queries[start : start + rows] @ gallery.T
        if leave_one_out:
            similarity.diagonal(start).fill_(-torch.inf)
        found, order = similarity.sort(dim=1, descending=True, stable=True)
        keep = len(gallery) - leave_one_out
        for one, scores in zip(order.cpu().numpy(), found.cpu().numpy(), strict=True):
            yield Ranking(one[:keep], scores[:keep])


def judge(
    order: Int64[np.ndarray, " n"],
    positives: Int64[np.ndarray, " p"],
    junk: Int64[np.ndarray, " j"],
    ks: Sequence[int] = (1, 5, 10),
) -> QueryScores:
    """Scores of a ranking in which junk counts neither for nor against: the rest moves up.

    Precision at k looks no further than the last positive: with two positives found first, precision at 10 is 1.

    Args:
        positives: at least one; with `junk`, places in the gallery.
    Source: Radenovic et al., arXiv:1803.11285, section 3.4; their published evaluation.
    """
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    found, skipped = np.sort(place[positives]), np.sort(place[junk])
    ranks = found - np.searchsorted(skipped, found)
    return QueryScores(average_precision(ranks, len(positives)), {k: _precision(ranks, k) for k in ks})


def average_precision(ranks: Int64[np.ndarray, " p"], num_positives: int) -> float:
    """Area under precision over recall, by trapezoids.

    Args:
        ranks: of the positives that were found, from 0, in order.
        num_positives: with those that were not.
    """
    hits = np.arange(len(ranks))
    before = np.where(ranks == 0, 1.0, hits / np.maximum(ranks, 1))
    after = (hits + 1) / (ranks + 1)
    return float((before + after).sum() / (2 * num_positives))


def _precision(ranks: Int64[np.ndarray, " p"], k: int) -> float:
    within = min(int(ranks[-1]) + 1, k)
    return float((ranks < within).sum() / within)
