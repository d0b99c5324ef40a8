"""The curve of a run as a picture: loss, schedules and k-NN over epochs."""

import math
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from dino_ssl.data.decoding import printable
from dino_ssl.training.journal import read_metrics
from dino_ssl.training.run_folder import EVALUATED_STEP

WIDTH, PANEL_HEIGHT, DOTS_PER_INCH = 10.0, 3.0, 100  # inches; 1000 pixels wide
LOSS, RATE, MOMENTUM, ACCURACY, UNIFORM = "#1f4e9e", "#b3541e", "#6a3d9a", "#2c7a4b", "#777777"

VERIFICATION = "eval/verification"


def curve(folder: Path, *, prototypes: int | None = None) -> Path:
    """Draw `curve.png` in the run's folder from its metrics.jsonl.

    Args:
        prototypes: K; draws ln K, the loss of a student that knows nothing, and of a collapsed run.
    Raises:
        RunError: the run has no metrics.jsonl.
    """
    lines = read_metrics(folder)
    panels = [_draw_loss, _draw_schedules] + ([_draw_accuracies] if _accuracies(lines) else [])
    # Not pyplot, whose figures are global state and may open windows.
    figure = Figure(figsize=(WIDTH, PANEL_HEIGHT * len(panels)), dpi=DOTS_PER_INCH, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots(len(panels), 1, sharex=True)
    for axis, draw in zip(axes, panels, strict=True):
        draw(axis, lines)
        axis.grid(alpha=0.25)
        axis.spines[["top"]].set_visible(False)
    if prototypes is not None:
        _draw_uniform(axes[0], math.log(prototypes))
    axes[-1].set_xlabel("epoch")
    axes[-1].set_xlim(left=0)
    figure.suptitle(_title(folder, lines))
    path = folder / "curve.png"
    canvas.print_png(path)  # type: ignore[no-untyped-call]
    return path


def _title(folder: Path, lines: list[dict[str, Any]]) -> str:
    steps = max((line["step"] for line in lines), default=0)
    return f"{printable(folder.resolve().name)}: {steps:,} steps"


def series(lines: list[dict[str, Any]], name: str) -> tuple[list[float], list[float]]:
    """Epochs and values of `name`; null is a gap."""
    points = [(line["epoch"], line[name]) for line in lines if name in line]
    return [float(epoch) for epoch, _ in points], [math.nan if y is None else float(y) for _, y in points]


def epoch_means(epochs: list[float], values: list[float]) -> tuple[list[float], list[float]]:
    """Mean of each epoch that has at least one finite value, at its middle."""
    groups: dict[int, list[float]] = {}
    for epoch, value in zip(epochs, values, strict=True):
        if math.isfinite(value):
            # A line at epoch 3.0 closes the third epoch, which is number 2.
            groups.setdefault(max(0, math.ceil(epoch) - 1), []).append(value)
    return [n + 0.5 for n in groups], [sum(group) / len(group) for group in groups.values()]


def _draw_loss(axis: Axes, lines: list[dict[str, Any]]) -> None:
    epochs, losses = series(lines, "train/loss")
    axis.plot(epochs, losses, color=LOSS, alpha=0.35, linewidth=1, label="logged steps")
    middles, means = epoch_means(epochs, losses)
    marker = "o" if len(means) < 30 else ""
    axis.plot(middles, means, color=LOSS, linewidth=2, marker=marker, markersize=4, label="mean of the epoch")
    axis.set_ylabel("loss (nats)")
    axis.legend(frameon=False, loc="best")


def _draw_uniform(axis: Axes, value: float) -> None:
    axis.axhline(value, color=UNIFORM, linestyle="--", linewidth=1.2, label=f"ln K = {value:.2f}: knows nothing")
    axis.legend(frameon=False, loc="best")


def _draw_schedules(axis: Axes, lines: list[dict[str, Any]]) -> None:
    axis.plot(*series(lines, "train/lr"), color=RATE)
    axis.set_ylabel("learning rate (per step)", color=RATE)
    axis.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    axis.set_ylim(bottom=0)
    momenta = series(lines, "train/momentum")
    if not momenta[0]:  # nothing but pretraining has a teacher that follows
        return
    momentum = axis.twinx()
    momentum.plot(*momenta, color=MOMENTUM, linestyle="-.")
    momentum.set_ylabel("teacher momentum (dash-dotted)", color=MOMENTUM)
    momentum.ticklabel_format(axis="y", useOffset=False)
    momentum.spines[["top"]].set_visible(False)


def _accuracies(lines: list[dict[str, Any]]) -> dict[str, tuple[list[float], list[float]]]:
    """Epochs and top-1 (of faces, verification) by name: measured while training, or by jobs on earlier checkpoints."""
    pace = next((line["epoch"] / line["step"] for line in lines if line["step"]), 0.0)
    found: dict[str, tuple[list[float], list[float]]] = {}
    for line in lines:
        epoch = line[EVALUATED_STEP] * pace if EVALUATED_STEP in line else line["epoch"]
        for name in line:
            if name.startswith("eval/") and ("top1" in name or name == VERIFICATION) and line[name] is not None:
                epochs, values = found.setdefault(name.removeprefix("eval/").replace("_", " "), ([], []))
                epochs.append(float(epoch))
                values.append(100 * float(line[name]))
    return found


def _draw_accuracies(axis: Axes, lines: list[dict[str, Any]]) -> None:
    found = _accuracies(lines)
    for place, (name, (epochs, percent)) in enumerate(found.items()):
        color = ACCURACY if name == "knn top1" else f"C{place}"
        axis.plot(epochs, percent, color=color, marker="o", markersize=4, label=f"{name}, last: {percent[-1]:.1f} %")
    axis.legend(frameon=False, loc="best")
    axis.set_ylabel("accuracy (%)")
