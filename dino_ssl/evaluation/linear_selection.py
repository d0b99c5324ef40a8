"""Choosing a linear classifier without a look at the test images: on a part of the training set that is held out.

Sizes: n training images, w features of all choices together.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from dino_ssl.errors import DivergedError, UsageError
from dino_ssl.evaluation.linear import Classifiers, Sweep, train


@dataclass(frozen=True)
class Candidate:
    """One setting, measured on the images that were held out.

    Attributes:
        choice: name of the features.
        setting: the learning rate, or C of a logistic regression.
        accuracy: top-1, in [0, 1].
        loss: mean cross-entropy, nats; not finite where it diverged.
    """

    choice: str
    setting: float
    accuracy: float
    loss: float


@dataclass(frozen=True)
class GridProbe:
    """The chosen classifier, trained again on all training images.

    Attributes:
        classifier: one member.
        candidates: every setting; empty where there was nothing to choose from.
    """

    classifier: Classifiers
    choice: str
    learning_rate: float
    candidates: list[Candidate]


def hold_out(labels: Int64[Tensor, " n"], share: float, seed: int) -> tuple[Int64[Tensor, " f"], Int64[Tensor, " h"]]:
    """Indices of the images to fit and of those to choose on, drawn so that each class gives its share.

    One image of each class stays to be fitted; of the others a class gives its share, rounded up or down.

    Args:
        share: in (0, 1).
    Raises:
        UsageError: no image is left to choose on.
    """
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    order = order[labels[order].argsort(stable=True)]
    others = order[1:][labels[order[1:]] == labels[order[:-1]]]
    # Every (1 / share)th of a row in which the images of a class stand together.
    marks = (torch.arange(len(others) + 1, dtype=torch.float64) * share + 0.5).floor()
    held = others[marks.diff() > 0]
    if not len(held):
        raise UsageError(
            f"val_share={share:g} of {len(labels)} training images leaves none to choose on, as each class keeps one; "
            "write a larger --val-share, or a single value after --lr and after --blocks"
        )
    is_fitted = torch.ones(len(labels), dtype=torch.bool).index_fill(0, held, False)
    return is_fitted.nonzero()[:, 0], held.sort().values


def best(candidates: Sequence[Candidate]) -> Candidate:
    """The most accurate; of equals the one with the lowest loss. What diverged is left out.

    Raises:
        DivergedError: all have diverged.
    """
    finite = [candidate for candidate in candidates if math.isfinite(candidate.loss)]
    if not finite:
        raise DivergedError("every linear classifier diverged; write smaller values after --lr")
    return max(finite, key=lambda candidate: (candidate.accuracy, -candidate.loss))


def probe_grid(
    features: Float[Tensor, "n w"],
    labels: Int64[Tensor, " n"],
    choices: Mapping[str, slice],
    sweep: Sweep,
    *,
    num_classes: int,
    val_share: float,
    device: torch.device,
    advance: Callable[[int], object] = lambda steps: None,
) -> GridProbe:
    """Train the grid without a part of the images, choose on that part, train the chosen one again on all images.

    A grid of one is trained on all images at once.

    Args:
        choices: columns of the features, by name.
        val_share: of each class, in (0, 1).
        advance: called with 1 after each of `num_steps` steps.

    Source: the practice of Kornblith et al. 2019 (arXiv:1805.08974) and VTAB (arXiv:1910.04867): settings from a
    validation split, then all training images.
    """
    candidates: list[Candidate] = []
    choice, rate = next(iter(choices)), sweep.learning_rates[0]
    if len(choices) * len(sweep.learning_rates) > 1:
        fitted, held = hold_out(labels, val_share, sweep.seed)
        grid = train(
            features, labels, list(choices.values()), sweep,
            rows=fitted, num_classes=num_classes, device=device, advance=advance,
        )  # fmt: skip
        for (name, columns), members in zip(choices.items(), grid, strict=True):
            candidates += _candidates(name, members, features[held][:, columns], labels[held], sweep)
        chosen = best(candidates)
        choice, rate = chosen.choice, chosen.setting
    (classifier,) = train(
        features, labels, [choices[choice]], replace(sweep, learning_rates=(rate,)),
        rows=torch.arange(len(labels)), num_classes=num_classes, device=device, advance=advance,
    )  # fmt: skip
    return GridProbe(classifier, choice, rate, candidates)


def num_steps(labels: Int64[Tensor, " n"], sweep: Sweep, *, num_choices: int, val_share: float) -> int:
    """Steps that `probe_grid` takes, those of the last training included."""
    again = sweep.steps(len(labels))
    if num_choices * len(sweep.learning_rates) == 1:
        return again
    return sweep.steps(len(hold_out(labels, val_share, sweep.seed)[0])) + again


def _candidates(
    choice: str,
    members: Classifiers,
    features: Float[Tensor, "h d"],
    labels: Int64[Tensor, " h"],
    sweep: Sweep,
) -> list[Candidate]:
    found = members.judge(features, labels)
    accuracy = (found.ranks == 0).double().mean(1).tolist()
    return [Candidate(choice, *row) for row in zip(sweep.learning_rates, accuracy, found.loss.tolist(), strict=True)]
