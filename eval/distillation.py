"""Runs of `dino-ssl finetune distill` that differ in one thing, and their accuracies as a picture."""

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from dino_ssl.config_distill import DistillConfig
from dino_ssl.config_finetune import ClassifyConfig
from dino_ssl.config_flags import configure
from dino_ssl.config_help import training_help
from dino_ssl.config_kinds import DISTILL
from dino_ssl.data.sources import test_source_of
from dino_ssl.errors import UsageError

UNTAUGHT = "no teacher"


def configured(arguments: Sequence[str], text: str) -> DistillConfig | None:
    """The configuration that flags and recipes of `dino-ssl finetune distill` mean; None after --help."""
    if {"-h", "--help"} & set(arguments):
        print(f"{text}\n\nRecipes and flags are those of dino-ssl finetune distill:\n\n{training_help(DISTILL)}")
        return None
    config, notes = configure(arguments, DISTILL)
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    if problems := list(_problems(config)):
        raise UsageError(*problems)
    return config


def _problems(config: DistillConfig) -> Iterator[str]:
    """What would show when the first runs are over, or never."""
    if not config.distill.review:
        yield "distill.review=0 compares no levels; write --distill.review 1"
    if not config.validation.every_epochs or not (config.validation.test or test_source_of(config.data)):
        yield (
            f"data={config.data} has no test images to measure on; write --validation.test SOURCE, and a "
            "--validation.every-epochs of 1 or more"
        )


def taught(config: DistillConfig, name: str, **review: Any) -> float:
    """Accuracy of the last checkpoint, the mean over seeds, with these knobs of `review`."""
    from dino_ssl.finetuning.distill import distill  # noqa: PLC0415

    changed = replace(config, output_dir=config.output_dir / name, review=replace(config.review, **review))
    return distill(changed).scores["last"]


def untaught(config: DistillConfig) -> float:
    """Likewise, by labels alone."""
    from dino_ssl.finetuning.classify import classify  # noqa: PLC0415

    shared = {field.name: getattr(config, field.name) for field in fields(ClassifyConfig)}
    scores = []
    for seed in range(config.seed, config.seed + config.seeds):
        folder = config.output_dir / "untaught" / f"seed_{seed}"
        scores.append(classify(ClassifyConfig(**{**shared, "seed": seed, "output_dir": folder})).scores["last"])
    return sum(scores) / len(scores)


def save(config: DistillConfig, name: str, found: dict[str, float]) -> None:
    """The accuracies as `NAME.json` in the output folder."""
    (config.output_dir / f"{name}.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class Table:
    """Accuracies [row][column] in [0, 1], and that without a teacher."""

    values: Sequence[Sequence[float]]
    rows: Sequence[str]
    columns: Sequence[str]
    baseline: float


def draw(path: Path, table: Table) -> None:
    """The table in per cent; green where a number lies above the baseline, red where below."""
    size = (2.2 + 1.5 * len(table.columns), 1.6 + 0.75 * len(table.rows))
    figure = Figure(figsize=size, dpi=120, layout="constrained")
    canvas, axis = FigureCanvasAgg(figure), figure.add_subplot()
    gains = [[100 * (value - table.baseline) for value in row] for row in table.values]
    reach = 1.6 * max(*(abs(gain) for row in gains for gain in row), 0.1)
    axis.imshow(gains, cmap="RdYlGn", vmin=-reach, vmax=reach, aspect="auto")
    for i, row in enumerate(gains):
        for j, gain in enumerate(row):
            text = f"{100 * table.values[i][j]:.2f}\n({gain:+.2f})"
            axis.text(j, i, text, ha="center", va="center", fontsize=11)
    axis.set_xticks(range(len(table.columns)), table.columns)
    axis.set_yticks(range(len(table.rows)), table.rows)
    figure.suptitle(f"accuracy, %; {UNTAUGHT}: {100 * table.baseline:.2f}", fontsize=11)
    canvas.print_png(path)  # type: ignore[no-untyped-call]
