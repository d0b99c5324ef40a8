"""How far a command is."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 10.0


@contextmanager
def progress(total: int | None, what: str) -> Iterator[Callable[[int], object]]:
    """A bar on a terminal, a line now and then elsewhere; `total` is None where nobody knows it."""
    if sys.stderr.isatty():
        with tqdm(total=total, unit=f" {what}", smoothing=0.05) as bar:
            yield bar.update
        return
    done, last = 0, time.monotonic()

    def advance(count: int) -> None:
        nonlocal done, last
        done += count
        if time.monotonic() - last >= SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            of_all = "" if total is None else f" of {total:,}"
            sys.stderr.write(f"{done:,}{of_all} {what}\n")
            sys.stderr.flush()

    yield advance
