"""Candidates side by side in one process: interleaved, medians of CPU time, ratios to the first."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Timing:
    """Medians over the rounds, seconds."""

    cpu: float
    wall: float


def interleaved(candidates: Mapping[str, Callable[[], object]], *, rounds: int) -> dict[str, Timing]:
    """Run every candidate once a round, in turned order every other round, after one round that is not counted."""
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in candidates}
    for number in range(rounds + 1):
        for name in list(candidates) if number % 2 else list(candidates)[::-1]:
            cpu, wall = time.process_time(), time.perf_counter()
            candidates[name]()
            if number:
                seconds[name].append((time.process_time() - cpu, time.perf_counter() - wall))
    return {
        name: Timing(*(statistics.median(column) for column in zip(*rows, strict=True)))
        for name, rows in seconds.items()
    }
