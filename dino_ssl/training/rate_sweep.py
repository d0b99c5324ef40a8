"""Learning-rate range test: what the loss does while the rate rises from step to step.

Source: Smith, arXiv:1506.01186, section 3.3.
"""

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from dino_ssl.training import distributed, sharding
from dino_ssl.training.checkpoint import capture_rng, restore_rng
from dino_ssl.training.loop import accumulate_gradients, apply_gradients
from dino_ssl.training.machine import workers
from dino_ssl.training.optim import set_rates
from dino_ssl.training.run import Run
from dino_ssl.training.task import R

LEAST_FALL = 0.01
"""Of the gap, relative; less is called none."""
LEAST_INFORMATION = 0.5
"""Share of the first information that a rate must leave."""


@dataclass(frozen=True)
class Sweep:
    """What each step found, under a rate that rises from step to step; the last may be not finite.

    The loss of DINO falls in a collapse as well: what is read is the gap, its part that the student can close.

    Attributes:
        rates: as the optimizer had them.
        losses: nats, as are the next two.
        gaps: KL divergence of the student from the teacher, the loss less the entropy of the teacher.
        information: of the teacher's output about the image.
    """

    rates: Float[np.ndarray, " n"]
    losses: Float[np.ndarray, " n"]
    gaps: Float[np.ndarray, " n"]
    information: Float[np.ndarray, " n"]

    def steepest(self) -> float | None:
        """The rate at which the gap falls fastest for each factor of the rate; None where it does not fall."""
        gap = smoothed(self.gaps)[: self._end()]
        if len(gap) < 2 or gap[0] - gap.min() < LEAST_FALL * gap[0]:
            return None
        return float(self.rates[np.argmin(np.gradient(gap, np.log(self.rates[: len(gap)])))])

    def divergence(self) -> float | None:
        """The first rate that closes the gap no more, collapses the teacher, or is not finite; None without one."""
        end = self._end()
        return float(self.rates[end]) if end < len(self.rates) else None

    def _end(self) -> int:
        """The first bad step: the gap, once fallen, is back where it began, or the teacher says little."""
        gap, information = smoothed(self.gaps), smoothed(self.information)
        has_fallen = np.minimum.accumulate(gap) < (1 - LEAST_FALL) * gap[0]
        bad = ~np.isfinite(self.losses) | (has_fallen & (gap > gap[0]))
        bad |= information < LEAST_INFORMATION * information[0]
        return int(np.argmax(bad)) if bad.any() else len(bad)


def smoothed(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Mean of a step and its neighbours, weighted by a Gaussian; steps that are not finite are left out."""
    places, finite = np.arange(len(values)), np.isfinite(values)
    weights = np.exp(-0.5 * ((places[:, None] - places[None]) / max(1.0, len(places) / 20)) ** 2) * finite
    mean: Float[np.ndarray, " n"] = weights @ np.where(finite, values, 0.0) / weights.sum(axis=1)
    return mean


def sweep(run: Run[R], *, lowest: float, highest: float, steps: int) -> Sweep:
    """Train for `steps` steps with rates from `lowest` to `highest`, each the same factor above the one before.

    Everything else is as in a run from here on. Afterwards weights, optimizer, centre, statistics and random states
    are what they were. It ends early where the loss is not finite.
    """
    assert run.task.sentinel is not None
    rates = np.geomspace(lowest, highest, steps)
    rows: list[tuple[float, float, float]] = []
    with everything_restored(run):
        parts = run.micro_batches(workers(run.config, run.device))
        for number, rate in enumerate(rates):
            now = run.task.begin_step(run.step + number)
            set_rates(run.task.optimizer, lr=float(rate), weight_decay=now.weight_decay)
            loss = float(distributed.all_mean(accumulate_gradients(run, parts, now)))
            run.task.after_optimizer(now, stepped=apply_gradients(run, now))
            found = {name: float(value) for name, value in run.task.sentinel.method.look().items()}
            rows.append((loss, found["divergence"], found["mean_entropy"] - found["teacher_entropy"]))
            if not math.isfinite(loss):
                break
    return Sweep(rates[: len(rows)], *np.array(rows).T)


@contextmanager
def everything_restored(run: Run[R]) -> Iterator[None]:
    """However the block changes the run, it is as it was afterwards."""
    task = run.task
    kept = copy.deepcopy({**task.weights(), **task.state(), "optimizer": task.optimizer.state_dict()})
    of_rank, scaler, rng = copy.deepcopy(task.state_of_rank()), run.scaler.state_dict(), capture_rng()
    try:
        yield
    finally:
        task.load(kept, of_rank)
        sharding.load_optimizer(task.optimizer, kept["optimizer"])
        task.optimizer.zero_grad(set_to_none=True)
        run.scaler.load_state_dict(scaler)
        restore_rng(rng)


def draw(found: Sweep, path: Path, *, present: float) -> None:
    """Gap and loss against rate.

    Args:
        present: peak of the rate as the configuration has it.
    """
    figure = Figure(figsize=(9, 7), dpi=100, layout="constrained")
    axes = figure.subplots(2, 1, sharex=True)
    marks = {"steepest descent": found.steepest(), "divergence": found.divergence(), "now": present}
    names = ("KL of student from teacher (nats)", "loss (nats): falls in a collapse, too")
    for axis, values, name in zip(axes, (found.gaps, found.losses), names, strict=True):
        axis.semilogx(found.rates, values, ".", color="#9bb3d9", markersize=4)
        axis.semilogx(found.rates, smoothed(values), color="#1f4e9e")
        for (label, rate), color in zip(marks.items(), ("#2c7a4b", "#b3541e", "#777777"), strict=True):
            if rate is not None:
                axis.axvline(rate, color=color, linestyle="--", label=f"{label}: {rate:.2g}")
        axis.set(ylabel=name)
        axis.grid(alpha=0.25)
    axes[0].legend(frameon=False)
    axes[1].set(xlabel="learning rate of the optimizer")
    FigureCanvasAgg(figure).print_png(path)  # type: ignore[no-untyped-call]
