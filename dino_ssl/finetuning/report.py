"""What a person sees at the end of a fine-tuning: the accuracies of the last and of the best checkpoint, the curve."""

import time
from dataclasses import dataclass
from pathlib import Path

from dino_ssl.durable import naming
from dino_ssl.evaluation.results import lines, write
from dino_ssl.finetuning.accuracy import Accuracy
from dino_ssl.finetuning.task import BEST, FinetuneRates, Finetuning
from dino_ssl.training import distributed
from dino_ssl.training.checkpoint import NEWEST
from dino_ssl.training.curves import curve
from dino_ssl.training.run import Run


@dataclass(frozen=True)
class Report:
    """Where the results lie and what they are.

    Attributes:
        scores: in [0, 1] by name (`last`, `best`); empty without test images.
        text: the table and the files, for a terminal; empty on all ranks but the first.
    """

    folder: Path
    scores: dict[str, float]
    text: str


def final_report(run: Run[FinetuneRates]) -> Report:
    """Measure the last weights on every rank unless that was just done; rank 0 writes and draws."""
    task = run.task
    assert isinstance(task, Finetuning)
    began, scores, title = time.perf_counter(), {}, ""
    if task.validator is not None:
        is_measured = task.newest.step == run.step > 0
        scores = {"last": task.newest.score if is_measured else task.validator.measure(task.network)[task.score]}
        if task.best.step:
            scores["best"] = task.best.score
        title = f"{task.score} on images that were not trained on"
    if not distributed.is_main():
        return Report(run.folder, scores, "")
    with naming(run.folder):
        picture = curve(run.folder)
        if isinstance(task.validator, Accuracy):
            title = f"accuracy on {task.validator.num_images:,} images of {task.validator.source.name}"
            found = [task.validator.evaluation(name, top1, began=began) for name, top1 in scores.items()]
            write(run.folder / "eval" / "results.json", found)
    return Report(run.folder, scores, _text(run, task, scores, title, picture))


def _text(run: Run[FinetuneRates], task: Finetuning, scores: dict[str, float], title: str, picture: Path) -> str:
    names = {"last": "last checkpoint", "best": f"best checkpoint, after epoch {task.best.epoch}"}
    table = [lines(title, [(names[name], value, None) for name, value in scores.items()])] if scores else []
    files = [("curve", picture), ("last", run.store.folder / NEWEST)]
    if task.best.step:
        files.append(("best (chosen on the test images)", run.store.folder / BEST))
    if len(run.broken):
        files.append((f"{len(run.broken)} broken images", run.broken.path))
    return "\n\n".join([*table, "\n".join(f"{name:<34}{path}" for name, path in files)])
