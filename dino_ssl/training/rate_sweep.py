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
"""Of the loss, relative; less is called none."""


@dataclass(frozen=True)
class Sweep:
    """Learning rates as the optimizer had them, rising, and the loss of each step; the last may be not finite."""

    rates: Float[np.ndarray, " n"]
    losses: Float[np.ndarray, " n"]

    def smoothed(self) -> Float[np.ndarray, " n"]:
        """Mean of a step and its neighbours, weighted by a Gaussian; steps that are not finite are left out."""
        places, finite = np.arange(len(self.losses)), np.isfinite(self.losses)
        weights = np.exp(-0.5 * ((places[:, None] - places[None]) / max(1.0, len(places) / 30)) ** 2) * finite
        mean: Float[np.ndarray, " n"] = weights @ np.where(finite, self.losses, 0.0) / weights.sum(axis=1)
        return mean

    def steepest(self) -> float | None:
        """The rate at which the loss falls fastest for each factor of the rate; None where it does not fall."""
        smooth = self.smoothed()
        if not self._falls(smooth):
            return None
        slopes = np.gradient(smooth, np.log(self.rates))
        return float(self.rates[np.argmin(slopes[: self._lowest(smooth) + 1])])

    def divergence(self) -> float | None:
        """The first rate at which the loss is back where it began after it has fallen, or not finite; None without."""
        smooth, bad = self.smoothed(), ~np.isfinite(self.losses)
        if self._falls(smooth):
            bad |= (np.arange(len(smooth)) > self._lowest(smooth)) & (smooth >= smooth[0])
        return float(self.rates[np.argmax(bad)]) if bad.any() else None

    def _lowest(self, smooth: Float[np.ndarray, " n"]) -> int:
        return int(np.argmin(np.where(np.isfinite(self.losses), smooth, np.inf)))

    def _falls(self, smooth: Float[np.ndarray, " n"]) -> bool:
        return bool(smooth[0] - smooth[self._lowest(smooth)] >= LEAST_FALL * smooth[0])


def sweep(run: Run[R], *, lowest: float, highest: float, steps: int) -> Sweep:
    """Train for `steps` steps with rates from `lowest` to `highest`, each the same factor above the one before.

    Everything else is as in a run from here on. Afterwards weights, optimizer, centre, statistics and random states
    are what they were. It ends early where the loss is not finite.
    """
    rates, losses = np.geomspace(lowest, highest, steps), []
    with everything_restored(run):
        parts = run.micro_batches(workers(run.config, run.device))
        for number, rate in enumerate(rates):
            now = run.task.begin_step(run.step + number)
            set_rates(run.task.optimizer, lr=float(rate), weight_decay=now.weight_decay)
            losses.append(float(distributed.all_mean(accumulate_gradients(run, parts, now))))
            if not math.isfinite(losses[-1]):
                break
            run.task.after_optimizer(now, stepped=apply_gradients(run, now))
    return Sweep(rates[: len(losses)], np.array(losses))


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
    """Loss against rate.

    Args:
        present: peak of the rate as the configuration has it.
    """
    figure = Figure(figsize=(9, 5), dpi=100, layout="constrained")
    axis = figure.subplots()
    axis.semilogx(found.rates, found.losses, ".", color="#9bb3d9", markersize=4, label="steps")
    axis.semilogx(found.rates, found.smoothed(), color="#1f4e9e", label="smoothed")
    marks = {"steepest descent": found.steepest(), "divergence": found.divergence(), "now": present}
    for (name, rate), color in zip(marks.items(), ("#2c7a4b", "#b3541e", "#777777"), strict=True):
        if rate is not None:
            axis.axvline(rate, color=color, linestyle="--", label=f"{name}: {rate:.2g}")
    axis.set(xlabel="learning rate of the optimizer", ylabel="loss (nats)")
    axis.grid(alpha=0.25)
    axis.legend(frameon=False)
    FigureCanvasAgg(figure).print_png(path)  # type: ignore[no-untyped-call]
