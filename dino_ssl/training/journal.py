"""What a run tells about itself: metrics.jsonl, log.txt, the progress display, TensorBoard and W&B."""

import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from dino_ssl.durable import naming, sync_file, write_atomically
from dino_ssl.errors import UsageError
from dino_ssl.training.progress import Progress, Stopwatch, status
from dino_ssl.training.run_folder import EVALUATED_STEP
from dino_ssl.training.trackers import Tracker, missing_extras, open_trackers

METRICS = "metrics.jsonl"
"""One JSON object per logged step; numbers that are not finite are null."""
EPOCHS = "log.txt"
"""One JSON object per epoch, in the original's shape."""
OF_METRICS, OF_EPOCHS = ("step", "epoch"), ("epoch",)
"""Numbers that each line of the two has."""


class Mean:
    """Mean of scalars that stay on their device, in float64, until somebody asks."""

    def __init__(self) -> None:
        self.total: Float[Tensor, ""] | float = 0.0
        self.count = 0

    def add(self, value: Float[Tensor, ""]) -> None:
        self.total = self.total + value.detach().double()
        self.count += 1

    def over(self, total: float) -> float:
        """The mean whose total was read as `total`."""
        assert self.count > 0, "a mean of nothing"
        return total / self.count

    def state(self) -> list[float | int]:
        return [float(self.total), self.count]

    def load(self, state: list[float | int]) -> None:
        self.total, self.count = float(state[0]), int(state[1])


class Journal:
    """The record of one run, entered with `with`. Rank 0 writes; other ranks only get the loss from `log`.

    Per step: `waiting` around the fetch of a batch, `add`, and `log` where it `is_due`. At an epoch's end in
    this order, so that a resume repeats all or nothing: `scored`, `end_epoch`, then the checkpoint with
    `state_dict`. In every call, `epoch` counts finished epochs.

    Args:
        folder: the run's folder.
        every_steps: steps between two lines of metrics.jsonl.
        images_per_step: global batch, for images per second.
        score: name of the accuracy that stands in log.txt and on the display.
        bar: draw a progress bar; None: if stderr is a terminal.

    Raises:
        UsageError: TensorBoard or W&B is asked for and not installed.
    """

    def __init__(
        self,
        folder: Path,
        *,
        every_steps: int,
        total_steps: int,
        images_per_step: int,
        is_main: bool,
        score: str = "knn_top1",
        tensorboard: bool = False,
        wandb: bool = False,
        bar: bool | None = None,
    ) -> None:
        if missing := missing_extras(tensorboard=tensorboard, wandb=wandb):
            raise UsageError(*missing)
        self.folder = folder
        self.every_steps = every_steps
        self.total_steps = total_steps
        self.is_main = is_main
        self.score = score
        self._extras = {"tensorboard": tensorboard, "wandb": wandb}
        self._bar = sys.stderr.isatty() if bar is None else bar
        self._stopwatch = Stopwatch(images_per_step)
        self._since_line, self._since_epoch = Mean(), Mean()
        self._score: float | None = None
        self._score_is_of_this_epoch = False
        self._start_step: int | None = None
        self.latest: dict[str, float] = {}
        """The newest value under each name that was written."""
        self._progress: Progress | None = None
        self._trackers: list[Tracker] = []

    def resume_at(self, step: int, epoch: float | int) -> None:
        """Drop the lines of later steps, which came after the checkpoint and will be written again."""
        self._start_step = step
        if self.is_main:
            _keep_lines(self.folder / METRICS, OF_METRICS, lambda record: record["step"] <= step)
            _keep_lines(self.folder / EPOCHS, OF_EPOCHS, lambda record: record["epoch"] < epoch)

    def __enter__(self) -> "Journal":
        if self._start_step is None:
            self.resume_at(0, 0)
        if self.is_main and self._start_step is not None:
            with naming(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
                self._trackers = open_trackers(self.folder, self._start_step, **self._extras)
            self._progress = Progress(start_step=self._start_step, total_steps=self.total_steps, bar=self._bar)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.close()
        for tracker in self._trackers:
            tracker.close()

    def waiting(self) -> AbstractContextManager[None]:
        """Time in here counts as waiting for data."""
        return self._stopwatch.waiting()

    def paused(self) -> AbstractContextManager[None]:
        """Time in here (k-NN, a save) is left out of the speed and of the ETA."""
        return self._stopwatch.paused()

    def add(self, loss: Float[Tensor, ""]) -> None:
        """Count one optimizer step and its loss, without waiting for the device."""
        self._since_line.add(loss)
        self._since_epoch.add(loss)
        self._stopwatch.step()
        if self._progress is not None:
            self._progress.step()

    def loss_is_finite(self) -> bool:
        """Of the steps since the last line; waits for the device."""
        return math.isfinite(float(self._since_line.total))

    def is_due(self, step: int) -> bool:
        """Whether `step` (finished steps) gets a line: every `every_steps`, and the last."""
        return step % self.every_steps == 0 or step >= self.total_steps

    def log(self, step: int, epoch: float | int, values: Mapping[str, float | int | Tensor]) -> float:
        """Write the mean loss since the last line, `values` and the speed; waits for the device once.

        Args:
            values: numbers or scalar tensors by names such as `train/lr`.
        Returns:
            That mean loss, of this rank.
        """
        read = _read_scalars({"train/loss": self._since_line.total, **values})
        read["train/loss"] = self._since_line.over(read["train/loss"])
        self._since_line = Mean()
        if (speed := self._stopwatch.look()) is not None:
            read["speed/images_per_second"] = speed.images_per_second
            read["speed/data_wait"] = speed.data_wait
        self._write(step, epoch, read)
        seconds_left = self._stopwatch.seconds_for(self.total_steps - step)
        text = status(speed=speed, seconds_left=seconds_left, loss=read["train/loss"], score=self._shown_score())
        self._show(step, epoch, text)
        return read["train/loss"]

    def scored(
        self, step: int, epoch: float | int, score: float, others: Mapping[str, float | int] = MappingProxyType({})
    ) -> None:
        """Write a line of its own with the score, in [0, 1], and what was measured with it."""
        self._score, self._score_is_of_this_epoch = score, True
        self._write(step, epoch, {f"eval/{self.score}": score, **others})

    def evaluated(self, step: int, epoch: float | int, of_step: int, values: Mapping[str, float | int]) -> None:
        """Write a line of its own with what was found of the checkpoint of an earlier step."""
        self._write(step, epoch, {EVALUATED_STEP: of_step, **values})

    def end_epoch(self, step: int, epoch: int, *, lr: float, weight_decay: float) -> None:
        """Write the epoch's line of log.txt; waits for the device once.

        Args:
            epoch: finished epochs; the line numbers them from 0, as the original does.
            lr, weight_decay: of the epoch's last step.
        """
        loss = self._since_epoch.over(float(self._since_epoch.total))
        is_new = self._score_is_of_this_epoch
        self._since_epoch, self._score_is_of_this_epoch = Mean(), False
        record = {"train_loss": loss, "train_lr": lr, "train_wd": weight_decay, "epoch": epoch - 1}
        if is_new and self._score is not None:
            record[self.score] = self._score
        if self.is_main:
            _append(self.folder / EPOCHS, record)
        text = status(speed=None, seconds_left=None, loss=loss, score=self._shown_score() if is_new else "")
        if not self._bar:
            self._show(step, epoch, f"epoch mean: {text}", important=is_new)

    def state_dict(self) -> dict[str, Any]:
        """The running means, for a checkpoint, in plain types; puts the lines so far on the disk."""
        for path in (self.folder / METRICS, self.folder / EPOCHS):
            if self.is_main and path.exists():
                with naming(path):
                    sync_file(path)
        for tracker in self._trackers:
            tracker.flush()
        return {
            "since_line": self._since_line.state(),
            "since_epoch": self._since_epoch.state(),
            self.score: self._score,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue the means of `state_dict`."""
        self._since_line.load(state["since_line"])
        self._since_epoch.load(state["since_epoch"])
        self._score = state[self.score]

    def _shown_score(self) -> str:
        name = "kNN" if self.score == "knn_top1" else self.score
        return "" if self._score is None else f"{name} {100 * self._score:.1f}%"

    def _write(self, step: int, epoch: float | int, values: Mapping[str, float | int]) -> None:
        self.latest = {**self.latest, **values}
        if self.is_main:
            append_metrics(self.folder, step=step, epoch=epoch, values=values)
        for tracker in self._trackers:
            tracker.write(step, values)

    def _show(self, step: int, epoch: float | int, text: str, *, important: bool = False) -> None:
        if self._progress is not None:
            self._progress.show(step, epoch, text, important=important)


def append_metrics(folder: Path, *, step: int, epoch: float | int, values: Mapping[str, float | int]) -> None:
    """Add one line to the run's metrics.jsonl."""
    _append(folder / METRICS, {"step": step, "epoch": epoch, "time": time.time(), **values})


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of the run's metrics.jsonl; a last line that is still being written is left out.

    Raises:
        RunError: there is no such file.
    """
    with naming(folder / METRICS):
        return [record for _, record in _records((folder / METRICS).read_bytes(), OF_METRICS)]


def _read_scalars(values: Mapping[str, float | int | Tensor]) -> dict[str, float]:
    """Every value as a number, all tensors in one transfer."""
    tensors = {name: value.detach() for name, value in values.items() if isinstance(value, Tensor)}
    numbers = {name: float(value) for name, value in values.items() if not isinstance(value, Tensor)}
    if tensors:
        device = next(iter(tensors.values())).device
        stacked = torch.stack([value.to(device, torch.float64) for value in tensors.values()])
        numbers |= dict(zip(tensors, stacked.tolist(), strict=True))
    return {name: numbers[name] for name in values}


def _append(path: Path, record: dict[str, Any]) -> None:
    finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
    with naming(path), path.open("a") as file:
        file.write(json.dumps(finite) + "\n")


def _records(data: bytes, numbers: tuple[str, ...]) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Each line that is a whole JSON object with these numbers, as it stands and parsed; a kill tears at most the last.

    Other lines are damaged, and left out.
    """
    for line in data.split(b"\n"):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(record, dict) and all(isinstance(record.get(name), int | float) for name in numbers):
            yield line, record


def _keep_lines(path: Path, numbers: tuple[str, ...], keep: Callable[[dict[str, Any]], bool]) -> None:
    if not path.exists():
        return
    with naming(path):
        old = path.read_bytes()
        new = b"".join(line + b"\n" for line, record in _records(old, numbers) if keep(record))
        if new != old:
            write_atomically(path, new)
