"""What is reported of linear classifiers, by any of the three ways to train them.

Sizes: k blocks, d features of each.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import torch

from dino_ssl.evaluation.features import Labelled
from dino_ssl.evaluation.linear import Classifiers, Sweep
from dino_ssl.evaluation.linear_features import Choice, side_by_side
from dino_ssl.evaluation.linear_selection import Candidate, best, probe_grid
from dino_ssl.evaluation.logistic import probe_logistic
from dino_ssl.evaluation.metrics import Accuracies, accuracies, ranks_of_truth
from dino_ssl.evaluation.results import Measurement, Plain, percent

FIRST = 5
"""Classes among which the true one is looked for, besides the very first."""


@dataclass(frozen=True)
class Found:
    """What a protocol says of an encoder.

    Attributes:
        settings: what holds for every number.
        details: how they came about: `note` in words, what was chosen, every candidate, accuracy by class.
    """

    measurements: list[Measurement]
    settings: dict[str, Plain]
    details: dict[str, Plain]


def grid(
    train: Labelled,
    test: Labelled,
    classes: Sequence[str],
    choices: Sequence[Choice],
    sweep: Sweep,
    *,
    val_share: float,
    device: torch.device,
    advance: Callable[[int], object] = lambda steps: None,
) -> Found:
    """`linear_grid/1`. Values are features of the last blocks [n, k, 2, d]."""
    num_blocks, dim = train.values.shape[1], train.values.shape[3]
    columns = {str(choice): choice.columns(num_blocks, dim) for choice in choices}
    probe = probe_grid(
        side_by_side(train.values), train.labels, columns, sweep,
        num_classes=len(classes), val_share=val_share, device=device, advance=advance,
    )  # fmt: skip
    judged = probe.classifier.judge(side_by_side(test.values)[:, columns[probe.choice]], test.labels)
    chosen: dict[str, Plain] = {"features": probe.choice, "learning_rate": probe.learning_rate}
    note = f"learning rate {probe.learning_rate:g} on features {probe.choice}" + _why(probe.candidates)
    if len(sweep.learning_rates) > 1 and probe.learning_rate in (min(sweep.learning_rates), max(sweep.learning_rates)):
        note += "; that rate is at the end of the grid: try --lr with values beyond it"
    settings: dict[str, Plain] = {"epochs": sweep.epochs, "batch_size": sweep.batch_size, "val_share": val_share}
    right = accuracies(judged.ranks[0], test.labels, len(classes), ks=(1, FIRST))
    details: dict[str, Plain] = {"note": note, "seed": sweep.seed, "chosen": chosen}
    details |= {"candidates": _listed(probe.candidates), "per_class": _per_class(right, classes)}
    return Found(_measurements("linear", right), settings, details)


def logistic(
    train: Labelled,
    test: Labelled,
    classes: Sequence[str],
    choice: Choice,
    *,
    val_share: float,
    seed: int,
    advance: Callable[[int], object] = lambda fits: None,
) -> Found:
    """`logistic/1`. Values as for `grid`."""
    columns = choice.columns(train.values.shape[1], train.values.shape[3])
    probe = probe_logistic(
        side_by_side(train.values)[:, columns], train.labels,
        num_classes=len(classes), val_share=val_share, seed=seed, advance=advance,
    )  # fmt: skip
    ranks = ranks_of_truth(probe.scores(side_by_side(test.values)[:, columns], len(classes)), test.labels)
    candidates = [replace(candidate, choice=str(choice)) for candidate in probe.candidates]
    note = f"C = {probe.inverse_strength:g} on standardised features {choice}" + _why(candidates)
    note += "" if probe.converged else "; L-BFGS stopped before it had converged"
    chosen: dict[str, Plain] = {"features": str(choice), "C": probe.inverse_strength, "converged": probe.converged}
    right = accuracies(ranks, test.labels, len(classes), ks=(1, FIRST))
    details: dict[str, Plain] = {"note": note, "seed": seed, "chosen": chosen}
    details |= {"candidates": _listed(candidates), "per_class": _per_class(right, classes)}
    return Found(_measurements("logistic", right), {"val_share": val_share}, details)


def original(
    classifier: Classifiers,
    test: Labelled,
    classes: Sequence[str],
    settings: dict[str, Plain],
    test_top1: Sequence[float] = (),
) -> Found:
    """`linear_original/1`. Values are the features of the choice [n, d].

    Args:
        test_top1: after each epoch; the last one counts.
    """
    right = accuracies(classifier.judge(test.values, test.labels).ranks[0], test.labels, len(classes), ks=(1, FIRST))
    details: dict[str, Plain] = {"note": "a given classifier", "per_class": _per_class(right, classes)}
    if test_top1:
        top, epoch = max((value, -epoch) for epoch, value in enumerate(test_top1, 1))
        details |= {"best_on_test": {"top1": top, "epoch": -epoch}, "test_top1": list(test_top1)}
        details["note"] = (
            f"the accuracy after the last epoch; the best of all epochs, {percent(top)} (epoch {-epoch}), is chosen on "
            "test, and is for comparison with published numbers only"
        )
    return Found(_measurements("linear", right), settings, details)


def _measurements(name: str, right: Accuracies) -> list[Measurement]:
    rows = {"top1": right.top[1], f"top{FIRST}": right.top[FIRST], "macro": right.macro}
    if len(right.per_class) <= FIRST:
        del rows[f"top{FIRST}"]  # always right
    return [Measurement(f"{name}/{metric}", row.value, row.interval) for metric, row in rows.items()]


def _per_class(right: Accuracies, classes: Sequence[str]) -> dict[str, Plain]:
    return {label: _finite(value) for label, value in zip(classes, right.per_class.tolist(), strict=True)}


def weakest(per_class: Mapping[str, Plain], number: int = 3) -> str:
    """The classes with the lowest accuracy, lowest first: `cat 41.0 %, bird 46.2 %`."""
    known = [(value, name) for name, value in per_class.items() if isinstance(value, float)]
    return ", ".join(f"{name} {percent(value)}" for value, name in sorted(known)[:number])


def _listed(candidates: Sequence[Candidate]) -> list[Plain]:
    return [{**asdict(candidate), "loss": _finite(candidate.loss)} for candidate in candidates]


def _finite(value: float) -> float | None:
    """The number; JSON has no word for the accuracy of a class without images, or a loss that diverged."""
    return value if math.isfinite(value) else None


def _why(candidates: Sequence[Candidate]) -> str:
    """How a setting was chosen."""
    if not candidates:
        return ""
    return f", the best of {len(candidates)} on held-out training images ({percent(best(candidates).accuracy)})"
