"""What is reported of weighted k-NN: several numbers of neighbours, the whole bank and small ones, over ranks."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int64
from torch import Tensor

from dino_ssl.errors import UsageError
from dino_ssl.evaluation.feature_store import Share
from dino_ssl.evaluation.features import Labelled
from dino_ssl.evaluation.knn import QUERY_ROWS, knn_ranks
from dino_ssl.evaluation.metrics import accuracies
from dino_ssl.evaluation.results import Measurement

USUAL = (10, 20, 100, 200)
"""Numbers of neighbours that DINO reports."""


@dataclass(frozen=True)
class Neighbours:
    """How neighbours vote; `device` is where they are looked for.

    Attributes:
        ks: numbers of neighbours; None takes what the bank has of `USUAL`.
        temperature: of the votes; infinity gives each neighbour one.
    """

    ks: tuple[int, ...] | None = None
    temperature: float = 0.07
    device: torch.device = torch.device("cpu")  # noqa: RUF009

    def among(self, available: int) -> tuple[int, ...]:
        """Numbers of neighbours, rising, that a bank of so many (beside the query) can give.

        Raises:
            UsageError: `ks` asks for more.
        """
        chosen = sorted(set(self.ks or [k for k in USUAL if k <= available] or [available]))
        if problems := [
            f"k={k} is more than the {available:,} neighbours in the bank" for k in chosen if k > available
        ]:
            raise UsageError(*(f"{problem}; write --k {min(20, available)}" for problem in problems))
        return tuple(chosen)

    def note(self, available: int) -> str:
        """What a person who asked for nothing should know: which of `USUAL` this bank is too small for."""
        missing = [str(k) for k in USUAL if k > available and self.ks is None]
        return f"k = {', '.join(missing)} left out: the bank has {available} neighbours" if missing else ""


def whole_bank(bank: Labelled, queries: Labelled, settings: Neighbours, share: Share) -> list[Measurement]:
    """Top-1, top-5 and macro accuracy for each k; queries that are the bank itself are left out in turn.

    Raises:
        UsageError: more neighbours than the bank has.
    """
    found: list[Measurement] = []
    num_classes = 1 + int(max(bank.labels.max(), queries.labels.max()))
    ks = settings.among(len(bank.labels) - (queries is bank))
    for k, ranks in shared_ranks(bank, queries, ks, settings, share).items():
        right = accuracies(ranks, queries.labels, num_classes, ks=(1, min(5, k)))
        rows = {"top1": right.top[1], "top5": right.top[min(5, k)], "macro": right.macro}
        found += [Measurement(f"knn/{name}", row.value, row.interval, {"k": k}) for name, row in rows.items()]
    return found


def few_shot(
    bank: Labelled, queries: Labelled, settings: Neighbours, share: Share, *, shots: Sequence[int], tries: int
) -> list[Measurement]:
    """Mean and standard deviation of top-1 over `tries` banks of `shots` images of each class."""
    found: list[Measurement] = []
    for number in shots:
        banks = [_drawn(bank, number, seed) for seed in range(tries)]
        available = len(banks[0].labels)
        ks = tuple(k for k in settings.among(len(bank.labels)) if k <= available) or (available,)
        tables = [shared_ranks(one, queries, ks, settings, share) for one in banks]
        for k in ks:
            top1 = torch.tensor([(ranks[k] == 0).double().mean().item() for ranks in tables], dtype=torch.float64)
            knobs = {"shots": number, "k": k, "tries": tries}
            found.append(Measurement("knn/few_shot_top1", float(top1.mean()), None, knobs))
            if tries > 1:
                found.append(Measurement("knn/few_shot_std", float(top1.std(correction=1)), None, knobs))
    return found


def check_shots(labels: Int64[Tensor, " n"], classes: Sequence[str], shots: Sequence[int]) -> None:
    """Whether every class has so many images.

    Raises:
        UsageError: names the smallest class.
    """
    counts = torch.bincount(labels, minlength=len(classes))
    if shots and max(shots) > int(counts.min()):
        least = int(counts.argmin())
        raise UsageError(
            f"few_shot={max(shots)}, but class '{classes[least]}' has {int(counts[least])} images; "
            f"write --few-shot {max(1, int(counts[least]))}"
        )


def _drawn(bank: Labelled, shots: int, seed: int) -> Labelled:
    """So many images of each class, in the order of the bank."""
    order = torch.randperm(len(bank.labels), generator=torch.Generator().manual_seed(seed))
    chosen = [order[bank.labels[order] == label][:shots] for label in bank.labels.unique()]
    places = torch.cat(chosen).sort().values
    return Labelled(bank.values[places], bank.labels[places])


def shared_ranks(
    bank: Labelled, queries: Labelled, ks: tuple[int, ...], settings: Neighbours, share: Share
) -> dict[int, Int64[Tensor, " q"]]:
    """By k, how many classes come before the true one of each query; every process looks at its part of the queries.

    Queries that are the bank itself, the same object, are left out in turn.
    """
    # In whole blocks, so that each product has the shape, and the last bit, that it has on one process.
    part = share.of(len(queries.labels), unit=QUERY_ROWS)
    mine = {k: torch.empty(0, dtype=torch.int64) for k in ks}
    if part.stop > part.start:
        found = knn_ranks(
            bank.values, bank.labels, queries.values[part].to(settings.device), queries.labels[part],
            ks=ks, temperature=settings.temperature, leave_one_out=queries is bank, first_query=part.start,
        )  # fmt: skip
        mine = {k: ranks.cpu() for k, ranks in found.items()}
    gathered = share.gather(mine)
    return {k: torch.cat([of_rank[k] for of_rank in gathered]) for k in ks}
