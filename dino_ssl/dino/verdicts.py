"""From the statistics of a run to a verdict, and from the verdict to the knob to turn.

The limits were set on short runs on digits, of which the healthy ones stay well above them from the first
steps on.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

Verdict = Literal["healthy", "uniform collapse", "one-hot collapse", "dimensional collapse", "stalled"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)

LEAST_DIVERGENCE = 0.1
"""Of the student from the teacher, nats. It goes to 0 in every collapse (arXiv:2104.14294, section 5.3)."""
LEAST_INFORMATION = 0.2
"""Of the teacher's output about the image, nats: entropy of the mean output less mean entropy of the outputs."""
LEAST_RANK = 3.0
"""Effective rank of what the prototypes see."""
LEAST_DISTANCE = 1e-6
"""Between the weights of student and teacher, relative to the teacher's: below, the student does not move."""
MOST_OF_FIRST_TEACHER = 0.5
"""Share of the initial weights in the teacher that the run would end with."""
PATIENCE = 100
"""Steps for which a sign must be seen."""


def sign_of(now: Mapping[str, float], *, prototypes: int, progress: float) -> Verdict:
    """What the numbers of one look say.

    Args:
        now: statistics by the names of `SelfDistillation.look`.
        progress: share of the run's steps that are done, above 0.
    """
    if now["first_teacher"] ** (1 / progress) > MOST_OF_FIRST_TEACHER:
        return "stalled"
    if now["distance"] < LEAST_DISTANCE and now["first_teacher"] > 0:
        return "stalled"
    information = now["mean_entropy"] - now["teacher_entropy"]
    if information < LEAST_INFORMATION and now["divergence"] < LEAST_DIVERGENCE:
        return "uniform collapse" if now["mean_entropy"] > math.log(prototypes) / 2 else "one-hot collapse"
    return "dimensional collapse" if now["effective_rank"] < LEAST_RANK else "healthy"


class Judge:
    """A verdict for every look: a sign that has been seen for `PATIENCE` steps, at least twice in a row.

    Args:
        grace: steps at the start in which no verdict falls; every run begins near ln K.
    """

    def __init__(self, prototypes: int, *, total_steps: int, grace: int) -> None:
        self.prototypes = prototypes
        self.total_steps = total_steps
        self.grace = grace
        self.sign: Verdict = "healthy"
        self.since = 0
        self.verdict: Verdict = "healthy"

    def look(self, step: int, now: Mapping[str, float]) -> Verdict:
        """The verdict after `step` finished steps; numbers that are not finite say nothing, the loss tells of them."""
        if not all(map(math.isfinite, now.values())):
            return self.verdict
        sign = sign_of(now, prototypes=self.prototypes, progress=step / self.total_steps)
        if sign != self.sign:
            self.sign, self.since = sign, step
        if sign == "healthy" or step - max(self.since, self.grace) >= PATIENCE:
            self.verdict = sign
        return self.verdict

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint, in plain types."""
        return {"sign": self.sign, "since": self.since, "verdict": self.verdict}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.sign, self.since, self.verdict = state["sign"], state["since"], state["verdict"]


@dataclass(frozen=True)
class Settings:
    """The knobs that verdicts point to, as they are."""

    teacher_temperature: float
    center_momentum: float
    momentum: float
    lr: float
    batch_size: int
    bottleneck_dim: int
    total_steps: int


def advice(verdict: Verdict, settings: Settings) -> str:
    """What the verdict means, and which knob to set to which value, likeliest first; empty for healthy."""
    means, ways = {
        "healthy": ("", ()),
        "uniform collapse": ("the teacher gives every prototype the same probability", _uniform(settings)),
        "one-hot collapse": ("the teacher gives every image the same few prototypes", _one_hot(settings)),
        "dimensional collapse": ("what the prototypes see lies in a few dimensions", _dimensional(settings)),
        "stalled": ("the teacher stays as it was initialised", _stalled(settings)),
    }[verdict]
    return f"{means}; try {', or '.join(ways)}" if means else ""


def _uniform(now: Settings) -> Iterator[str]:
    if now.teacher_temperature > 0.07:
        yield _instead("dino.teacher_temperature", now.teacher_temperature, 0.04)
    else:
        yield _instead("dino.teacher_temperature", now.teacher_temperature, now.teacher_temperature / 2)
    yield from _batch_and_rate(now)


def _one_hot(now: Settings) -> Iterator[str]:
    if now.center_momentum > 0.99:
        yield _instead("dino.center_momentum", now.center_momentum, 0.9)
    if now.teacher_temperature < 0.04:
        yield _instead("dino.teacher_temperature", now.teacher_temperature, 0.04)
    yield from _batch_and_rate(now)


def _dimensional(now: Settings) -> Iterator[str]:
    if now.bottleneck_dim < 64:
        yield _instead("head.bottleneck_dim", now.bottleneck_dim, 256)
    yield from _batch_and_rate(now)


def _stalled(now: Settings) -> Iterator[str]:
    # The teacher then forgets in a twentieth of the run.
    follows = round(max(0.9, 1 - 20 / now.total_steps), 5)
    if now.momentum > follows:
        yield _instead("dino.momentum", now.momentum, follows)
    else:
        yield _instead("optim.lr", now.lr, 5e-4)


def _batch_and_rate(now: Settings) -> Iterator[str]:
    if now.batch_size < 64:
        yield _instead("batch_size", now.batch_size, 64)
    yield _instead("optim.lr", now.lr, now.lr / 2)


def _instead(knob: str, value: float | int, other: float | int) -> str:
    return f"{knob}={other:g} (now {value:g})"
