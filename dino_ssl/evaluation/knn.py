"""k-nearest-neighbour classification of frozen features, weighted as DINO does it.

Sizes: n images in the bank, q queries (r of them at once), d dimensions, k neighbours, c classes. Everything
runs in float32 on the device of the queries; the bank may stay elsewhere and comes over in blocks.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from dino_ssl.errors import UsageError
from dino_ssl.evaluation.metrics import ranks_of_truth

# A table of QUERY_ROWS x BANK_ROWS similarities (32 MiB) bounds the memory whatever the size of the bank.
QUERY_ROWS = 512
BANK_ROWS = 16_384
# Queries, whole QUERY_ROWS, that meet a block of the bank while it is there: for each that many the bank comes once.
WIDE_ROWS = 16 * QUERY_ROWS
# Parts of a row of similarities, by whose maxima most of it is passed over in the search for the largest.
STRIPES = 8
# Entries of the table of votes, queries x classes (64 MiB): with very many classes fewer queries go at once.
MAX_VOTES = 2**24


@dataclass(frozen=True)
class KnnResult:
    """Accuracies in [0, 1] by number of neighbours k; where k < 5, `top5` looks at the first k classes."""

    top1: dict[int, float]
    top5: dict[int, float]


@dataclass(frozen=True)
class PixelBaselines:
    """Accuracies of raw pixels, in [0, 1]."""

    cosine: float
    l2: float


@dataclass(frozen=True)
class Score:
    """What makes a neighbour near.

    Attributes:
        prepare: done once to the features of both sides, [n, d] to [n, d].
        table: prepared queries [q, d] and bank [n, d] to [q, n]; the nearest neighbour of a row has its largest number.
    """

    prepare: Callable[[Tensor], Tensor]
    table: Callable[[Tensor, Tensor], Tensor]


COSINE = Score(F.normalize, lambda queries, bank: queries @ bank.T)
L2 = Score(
    lambda features: features, lambda queries, bank: torch.addmm(bank.square().sum(1), queries, bank.T, beta=-0.5)
)
"""Minus half the squared Euclidean distance, but for a constant of each query, which changes no order."""


def knn_accuracy(
    bank: Float[Tensor, "n d"],
    bank_labels: Int64[Tensor, "n"],
    queries: Float[Tensor, "q d"],
    query_labels: Int64[Tensor, "q"],
    *,
    ks: Sequence[int] = (20,),
    temperature: float = 0.07,
    leave_one_out: bool = False,
    score: Score = COSINE,
) -> KnnResult:
    """Classify each query by its neighbours in the bank, for several numbers of neighbours in one pass.

    A neighbour votes for its class with exp(score / temperature). Of neighbours with equal scores the first
    in the bank is nearer; of classes with equal votes the lower one wins.

    Args:
        bank_labels: classes from 0; some may be missing.
        temperature: positive; infinity gives every neighbour one vote (majority).
        leave_one_out: bank and queries are the same images in the same order; none is its own neighbour.
    Raises:
        UsageError: nothing to compare, or more neighbours than the bank has.

    Source: facebookresearch/dino, `eval_knn.py` (after Wu et al. 2018, arXiv:1805.01978).
    """
    ranks = knn_ranks(
        bank, bank_labels, queries, query_labels,
        ks=ks, temperature=temperature, leave_one_out=leave_one_out, score=score,
    )  # fmt: skip
    return KnnResult(
        top1={k: _share_below(1, ranks[k]) for k in ks},
        top5={k: _share_below(min(5, k), ranks[k]) for k in ks},
    )


def knn_ranks(
    bank: Float[Tensor, "n d"],
    bank_labels: Int64[Tensor, "n"],
    queries: Float[Tensor, "q d"],
    query_labels: Int64[Tensor, "q"],
    *,
    ks: Sequence[int] = (20,),
    temperature: float = 0.07,
    leave_one_out: bool = False,
    first_query: int = 0,
    score: Score = COSINE,
) -> dict[int, Int64[Tensor, "q"]]:
    """By k, how many classes come before the true one of each query: 0 is a hit. Rules and errors of `knn_accuracy`.

    Args:
        first_query: with `leave_one_out`, where in the bank the queries begin, which may be a part of it.
    """
    rule = _Rule(tuple(ks), temperature, leave_one_out, score, first_query)
    rule.check(len(bank), len(queries))
    num_classes = 1 + int(max(bank_labels.max(), query_labels.max()))
    ranks: dict[int, list[Tensor]] = {k: [] for k in ks}
    for rows, k, votes in _vote_tables(bank, bank_labels, queries, rule, num_classes):
        ranks[k].append(ranks_of_truth(votes, query_labels[rows].to(votes.device)))
    return {k: torch.cat(ranks[k]) for k in ks}


def knn_predict(
    bank: Float[Tensor, "n d"],
    bank_labels: Int64[Tensor, "n"],
    queries: Float[Tensor, "q d"],
    *,
    k: int = 20,
    temperature: float = 0.07,
    leave_one_out: bool = False,
    score: Score = COSINE,
) -> Int64[Tensor, "q"]:
    """The class of each query, by the rules and with the errors of `knn_accuracy`."""
    rule = _Rule((k,), temperature, leave_one_out, score)
    rule.check(len(bank), len(queries))
    num_classes = 1 + int(bank_labels.max())
    tables = _vote_tables(bank, bank_labels, queries, rule, num_classes)
    return torch.cat([votes.argmax(1) for _, _, votes in tables])


def pixel_baselines(
    bank: Float[Tensor, "n d"],
    bank_labels: Int64[Tensor, "n"],
    queries: Float[Tensor, "q d"],
    query_labels: Int64[Tensor, "q"],
    *,
    k: int = 20,
    temperature: float = 0.07,
    leave_one_out: bool = False,
) -> PixelBaselines:
    """What the pixels themselves reach: the floor under every learned feature.

    `cosine` subtracts the bank's mean image from both sides and votes as `knn_accuracy` does; `l2` is the
    plain majority among the nearest by Euclidean distance. CIFAR-10 with 20 neighbours: 45.9 % and 33.8 %.
    """
    mean = bank.mean(0).to(queries.device)

    def top1(score: Score, temperature: float) -> float:
        result = knn_accuracy(
            bank, bank_labels, queries, query_labels,
            ks=(k,), temperature=temperature, leave_one_out=leave_one_out,
            # The shift changes no distance, but saves float32 digits there.
            score=Score(lambda features: score.prepare(features - mean), score.table),
        )  # fmt: skip
        return result.top1[k]

    return PixelBaselines(cosine=top1(COSINE, temperature), l2=top1(L2, math.inf))


@dataclass(frozen=True)
class _Rule:
    """Who is a neighbour and what its vote weighs."""

    ks: tuple[int, ...]
    temperature: float
    leave_one_out: bool
    score: Score
    first_query: int = 0

    def check(self, num_bank: int, num_queries: int) -> None:
        available = num_bank - self.leave_one_out
        if available < 1 or num_queries < 1:
            raise UsageError(f"k-NN needs a bank and queries; these are {available} and {num_queries} images")
        problems = [
            f"knn.k={k} must lie in 1 to {available}, the neighbours in the bank; write {min(20, available)}"
            for k in self.ks
            if not 1 <= k <= available
        ]
        if not self.temperature > 0:
            problems.append(f"knn.temperature={self.temperature} must be positive; write 0.07")
        if problems:
            raise UsageError(*problems)
        within = self.first_query + num_queries <= num_bank
        assert not self.leave_one_out or within, "leave_one_out compares a set, or a part of it, with itself"


@contextmanager
def _float32_products() -> Iterator[None]:
    """Full float32, whatever the training around asked for (TF32, autocast), and no gradients."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.no_grad(), torch.autocast("cuda", enabled=False), torch.autocast("cpu", enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def _vote_tables(
    bank: Float[Tensor, "n d"],
    bank_labels: Int64[Tensor, "n"],
    queries: Float[Tensor, "q d"],
    rule: _Rule,
    num_classes: int,
) -> Iterator[tuple[slice, int, Float[Tensor, "r c"]]]:
    """Rows of the queries, a number of neighbours, and the votes that these give those: every combination."""
    bank_labels = bank_labels.to(queries.device)
    for wide in _chunks(len(queries), WIDE_ROWS):
        own_index = rule.first_query + wide.start if rule.leave_one_out else None
        scores, indices = neighbours(bank, queries[wide], max(rule.ks), rule.score, own_index)
        for rows in _chunks(len(scores), max(1, min(QUERY_ROWS, MAX_VOTES // num_classes))):
            labels = bank_labels[indices[rows]]
            for k in rule.ks:
                votes = _votes(scores[rows, :k], labels[:, :k], rule.temperature, num_classes)
                yield slice(wide.start + rows.start, wide.start + rows.stop), k, votes


@_float32_products()
def neighbours(
    bank: Float[Tensor, "n d"], queries: Float[Tensor, "r d"], k: int, score: Score, own_index: int | None = None
) -> tuple[Float[Tensor, "r k"], Int64[Tensor, "r k"]]:
    """Scores and places in the bank of the k nearest, nearest first.

    Args:
        own_index: where the first of the queries stands in the bank if they must not find themselves there.
    """
    queries = score.prepare(queries)
    best = queries.new_full((len(queries), k), -math.inf)
    places = torch.zeros(len(queries), k, dtype=torch.int64, device=queries.device)
    for block in _chunks(len(bank), BANK_ROWS):
        near = score.prepare(bank[block].to(queries.device))
        for rows in _chunks(len(queries), QUERY_ROWS):
            scores = score.table(queries[rows], near)
            if own_index is not None:
                scores.diagonal(own_index + rows.start - block.start).fill_(-math.inf)
            columns = _largest(scores, min(k, len(near)))
            # What was found before stands first, so that the lower place in the bank still wins a tie.
            both = torch.cat([best[rows], scores.gather(1, columns)], 1)
            where = torch.cat([places[rows], columns + block.start], 1)
            columns = _largest(both, k)
            best[rows], places[rows] = both.gather(1, columns), where.gather(1, columns)
    return best, places


def _largest(scores: Float[Tensor, "r n"], k: int) -> Int64[Tensor, "r k"]:
    """Columns of the k largest scores of each row, largest first, equal ones by column."""
    width, rest = divmod(scores.shape[1], STRIPES)
    if rest or width < 2 * k:
        return _largest_of_few(scores, k)
    # With the stripes of a row below each other, its k largest stand in the columns of the k largest maxima.
    top, below = scores.reshape(len(scores), STRIPES, width).amax(1).topk(k + 1)
    stripes = torch.arange(0, scores.shape[1], width, device=scores.device)
    columns = (stripes[:, None] + below[:, None, :k].sort(2).values).flatten(1)
    columns = columns.gather(1, _largest_of_few(scores.gather(1, columns), k))
    open_rows = top[:, k - 1] == top[:, k]
    columns[open_rows] = _largest_of_few(scores[open_rows], k)
    return columns


def _largest_of_few(scores: Float[Tensor, "r n"], k: int) -> Int64[Tensor, "r k"]:
    """`topk` leaves open which of equal scores it takes; the few rows where that matters are sorted whole."""
    top, columns = scores.topk(min(k + 1, scores.shape[1]))
    columns = columns[:, :k].sort(1).values
    order = scores.gather(1, columns).argsort(dim=1, descending=True, stable=True)
    columns = columns.gather(1, order)
    open_rows = (top[:, k - 1] == top[:, -1]) & (top.shape[1] > k)
    columns[open_rows] = scores[open_rows].argsort(dim=1, descending=True, stable=True)[:, :k]
    return columns


def _votes(
    scores: Float[Tensor, "r k"], labels: Int64[Tensor, "r k"], temperature: float, num_classes: int
) -> Float[Tensor, "r c"]:
    """Sums of exp(score / temperature) by class, over the nearest neighbour's so that they stay finite."""
    weights = ((scores - scores[:, :1]) / temperature).exp()
    return weights.new_zeros(len(weights), num_classes).scatter_add_(1, labels, weights)


def _share_below(limit: int, ranks: Int64[Tensor, "q"]) -> float:
    """Share of the ranks that are below `limit`."""
    return (ranks < limit).double().mean().item()


def _chunks(length: int, step: int) -> Iterator[slice]:
    return (slice(start, min(start + step, length)) for start in range(0, length, step))
