"""How fast a run is, and the display of that: a bar on a terminal, now and then a line elsewhere."""

import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

WIDTH = 80  # columns
SECONDS_BETWEEN_LINES = 10.0


@dataclass(frozen=True)
class Speed:
    """Of the steps since the last look.

    Attributes:
        data_wait: share of the wall time spent waiting for a batch, in [0, 1].
    """

    images_per_second: float
    data_wait: float


class Stopwatch:
    """Wall time of steps. The first step of a process, which compiles and warms up, does not count.

    Args:
        images_per_step: global batch.
    """

    def __init__(self, images_per_step: int) -> None:
        self.images_per_step = images_per_step
        self._since: float | None = None
        self._steps = 0
        self._waited = 0.0
        self._all_steps = 0
        self._all_seconds = 0.0

    def step(self) -> None:
        """A step ended."""
        if self._since is None:
            self._since, self._waited = time.perf_counter(), 0.0
        else:
            self._steps += 1

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Time in here is waiting for data."""
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time in here does not count."""
        start = time.perf_counter()
        yield
        if self._since is not None:
            self._since += time.perf_counter() - start

    def look(self) -> Speed | None:
        """Speed since the last look; None before a step was timed."""
        if self._since is None or self._steps == 0:
            return None
        now = time.perf_counter()
        seconds = now - self._since
        speed = Speed(self._steps * self.images_per_step / seconds, min(1.0, self._waited / seconds))
        self._all_steps += self._steps
        self._all_seconds += seconds
        self._since, self._steps, self._waited = now, 0, 0.0
        return speed

    def seconds_for(self, steps: int) -> float | None:
        """Estimate for `steps` more steps, from all that were timed."""
        return steps * self._all_seconds / self._all_steps if self._all_steps else None


def format_duration(seconds: float) -> str:
    """At most eight characters: 01:05, 2:03:04, 12d03h."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    if hours >= 24:
        return f"{hours // 24}d{hours % 24:02d}h"
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute:02d}:{second:02d}"


def status(*, speed: Speed | None, seconds_left: float | None, loss: float | None, score: str) -> str:
    """What is known, most wanted first, on at most 54 columns."""
    parts = []
    if speed is not None:
        parts += [f"{speed.images_per_second:.0f} img/s", f"wait {100 * speed.data_wait:.0f}%"]
    if seconds_left is not None:
        parts.append(f"ETA {format_duration(seconds_left)}")
    if loss is not None:
        parts.append(f"loss {loss:.2f}")
    return " ".join([*parts, score]).rstrip()


class Progress:
    """The display on stderr.

    Args:
        start_step: steps that were done before this process started.
        bar: draw a bar of at most 80 columns; else write a line at most every ten seconds, one whenever k-NN
            was measured, and one for the last step.
    """

    def __init__(self, *, start_step: int, total_steps: int, bar: bool) -> None:
        self.total_steps = total_steps
        self._last_line = -SECONDS_BETWEEN_LINES
        self._bar: tqdm[Any] | None = None
        if bar:
            columns = min(WIDTH, shutil.get_terminal_size((WIDTH, 24)).columns)
            layout = "{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} {desc}"
            self._bar = tqdm(total=total_steps, initial=start_step, ncols=columns, bar_format=layout)

    def step(self) -> None:
        if self._bar is not None:
            self._bar.update()

    def show(self, step: int, epoch: float | int, text: str, *, important: bool = False) -> None:
        """Show `text` of `step`; lines that come too soon are left out unless `important`."""
        if self._bar is not None:
            self._bar.set_description_str(text, refresh=important)
            return
        now = time.monotonic()
        if important or step >= self.total_steps or now - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = now
            sys.stderr.write(f"step {step}/{self.total_steps} epoch {epoch:.2f} {text}\n")
            sys.stderr.flush()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
