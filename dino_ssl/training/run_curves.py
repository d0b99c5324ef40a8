"""The curves of several runs in one picture: loss and accuracy over epochs."""

import math
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from dino_ssl.data.decoding import escaped
from dino_ssl.training.curves import DOTS_PER_INCH, PANEL_HEIGHT, WIDTH, epoch_means, series
from dino_ssl.training.run_folder import metrics
from dino_ssl.training.run_summary import score_name

MOST_MARKED = 30
"""Epochs up to which each is marked with a dot."""


def draw_runs(folders: Sequence[Path], names: Sequence[str], path: Path) -> None:
    """Draw the mean loss of each epoch, and where runs have one the accuracy of the moment, to a PNG."""
    lines = [metrics(folder) for folder in folders]
    scores = [series(found, score_name(found)) for found in lines]
    panels = 2 if any(epochs for epochs, _ in scores) else 1
    # Not pyplot, whose figures are global state and may open windows.
    figure = Figure(figsize=(WIDTH, PANEL_HEIGHT * panels + 1), dpi=DOTS_PER_INCH, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = list(figure.subplots(panels, 1, sharex=True, squeeze=False)[:, 0])
    for place, (found, (epochs, values)) in enumerate(zip(lines, scores, strict=True)):
        name = escaped(names[place])
        _draw(axes[0], *epoch_means(*series(found, "train/loss")), place, name)
        if panels > 1:
            _draw(axes[1], epochs, [100 * value for value in values], place, f"{name}, {_last(values)}")
    axes[0].set_ylabel("loss, mean of the epoch (nats)")
    if panels > 1:
        axes[1].set_ylabel("accuracy while it trained (%)")
    for axis in axes:
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False, loc="best", fontsize=9)
    axes[-1].set_xlabel("epoch")
    axes[-1].set_xlim(left=0)
    canvas.print_png(path)  # type: ignore[no-untyped-call]


def _draw(axis: Axes, epochs: list[float], values: list[float], place: int, name: str) -> None:
    style = ("-", "--", ":")[place // 10 % 3]  # matplotlib has ten colours
    marker = "o" if len(epochs) <= MOST_MARKED else ""
    axis.plot(epochs, values, style, color=f"C{place % 10}", marker=marker, markersize=3, linewidth=1.6, label=name)


def _last(values: list[float]) -> str:
    known = [value for value in values if math.isfinite(value)]
    return f"last {100 * known[-1]:.1f} %" if known else "none"
