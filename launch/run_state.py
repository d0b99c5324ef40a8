"""How a run is doing: its files first, Slurm's word second."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from dino_ssl.errors import RunError
from launch import queue, run_files
from launch.queue import Queued

# Ends after which nobody expects the run to go on by itself: what follows is no cost of running on a cluster.
WAITS_FOR_A_PERSON = {"done", "failed", "diverged", "collapsed", "interrupted"}
GOES_ON = {"queued", "starting", "running", "requeued"}
"""States from which a run gets to its end by itself."""


@dataclass(frozen=True)
class RunState:
    """What is known about one run.

    Attributes:
        state: queued, starting, running, reporting, ending, silent, requeued, done, stopped, failed, diverged,
            collapsed, cancelled, lost, unknown, or what Slurm calls it.
        why: what is behind that, for people; may be empty.
        job: the newest that matters; None where the run was started without Slurm.
        knn, best_knn: accuracies in [0, 1].
        eta: seconds to the end, restarts as before included; None unless it goes on by itself.
        restarts: starts after the first.
        outage: seconds that each restart cost, on average; None without one.
        failed_rank: and its traceback, where a rank failed.
    """

    folder: Path
    state: str
    why: str
    job: str | None
    step: int
    total_steps: int | None
    epoch: float
    loss: float | None
    knn: float | None
    best_knn: float | None
    images_per_second: float | None
    eta: float | None
    restarts: int
    outage: float | None
    failed_rank: tuple[str, str] | None


def look(folders: Sequence[Path]) -> tuple[list[RunState], str]:
    """The state of each run, and what kept Slurm from answering (empty if it did, or is not here)."""
    jobs = {folder: [job.job for job in run_files.jobs(folder)] for folder in folders}
    everything = [job for ids in jobs.values() for job in ids]
    waiting: Mapping[str, Queued] | None = None
    trouble = ""
    if queue.is_here() and everything:
        try:
            waiting = queue.queued(everything)
        except RunError as error:
            trouble = str(error)
    gone = [ids[-1] for ids in jobs.values() if ids and waiting is not None and not set(ids) & waiting.keys()]
    ends = queue.ended(gone) if gone else {}
    return [_look(folder, jobs[folder], waiting, ends) for folder in folders], trouble


def _look(folder: Path, jobs: list[str], waiting: Mapping[str, Queued] | None, ends: Mapping[str, str]) -> RunState:
    heart, events, metrics = run_files.heartbeat(folder), run_files.restarts(folder), run_files.metrics(folder)
    alive = {job: waiting[job] for job in jobs if waiting is not None and job in waiting}
    job = next(iter(alive), jobs[-1] if jobs else None)
    if alive and job is not None:
        state, why = state_in_queue(alive[job], heart, job)
    elif waiting is not None and jobs:
        state, why = _out_of_queue(folder, events, ends.get(jobs[-1]), jobs[-1])
    else:
        state, why = run_files.state_from_files(events, heart, is_submitted=bool(jobs))
    step, total = _steps(heart, metrics)
    pace = pace_of(metrics, events)
    left = None if total is None or pace is None else (total - step) * pace.seconds_per_step * pace.slowdown
    knn = _values(metrics, "eval/knn_top1")
    starts = [event for event in events if event["event"] == "start"]
    return RunState(
        folder=folder,
        state=state,
        why=why,
        job=job,
        step=step,
        total_steps=total,
        epoch=float(heart["epoch"]) if heart else float(metrics[-1]["epoch"]) if metrics else 0.0,
        loss=_last(metrics, "train/loss"),
        knn=knn[-1] if knn else None,
        best_knn=max(knn, default=None),
        images_per_second=_last(metrics, "speed/images_per_second"),
        eta=left if state in GOES_ON else None,
        restarts=max(0, len(starts) - 1),
        outage=pace.outage if pace else None,
        failed_rank=run_files.failure(folder) if state == "failed" else None,
    )


def state_in_queue(found: Queued, heart: dict[str, Any] | None, job: str) -> tuple[str, str]:
    """The state of a run, and why, of which `job` waits or runs."""
    its_own = heart if heart is not None and heart["job"] == job else None
    match found.state:
        case "PENDING":
            return ("queued" if its_own is None else "requeued"), f"waits for {found.reason.strip('()')}"
        case "RUNNING":
            return _running(found, its_own)
        case state:
            return state.lower(), ""


def _running(found: Queued, heart: dict[str, Any] | None) -> tuple[str, str]:
    where = f"on {found.reason}, {found.left} to its limit"
    # A heartbeat from before this start is that of the start before it.
    if heart is None or heart["time"] < time.time() - found.ran:
        return "starting", where
    if heart["state"] == "stopped":
        return "ending", str(heart["stop"] or "")
    if not run_files.beats(heart):
        return "silent", f"no heartbeat {where}; look at its log"
    return ("running" if heart["state"] == "training" else str(heart["state"])), where


def _out_of_queue(folder: Path, events: list[dict[str, Any]], end: str | None, job: str) -> tuple[str, str]:
    """Slurm no longer has a job of the run: nothing will happen by itself.

    Args:
        end: what accounting says of `job`, the newest; None where there is none.
    """
    if events and events[-1]["event"] == "stop" and _is_final(events[-1]):
        return str(events[-1]["reason"]), str(events[-1]["text"])
    of_this_job = [event for event in events if event["job"] == job]
    if end == "CANCELLED" or run_files.was_cancelled(folder, job):
        return "cancelled", _text_of(of_this_job)
    accounting = f"Slurm says {end}" if end else "gone from the queue, no accounting to ask"
    if not of_this_job:
        said = [s for s in run_files.last_lines(run_files.log_of(folder, job), 50) if s.startswith("error: ")]
        return ("failed", said[0]) if said else ("lost", f"job {job} ended before it began to train: {accounting}")
    last = of_this_job[-1]
    if last["event"] == "start" or last["reason"] == "requeued":
        return "lost", f"job {job} ended without a word: {accounting}"
    return str(last["reason"]), str(last["text"])


def _is_final(stop: dict[str, Any]) -> bool:
    """No later job, such as the last links of a chain, had anything to add."""
    return stop["reason"] in {"done", "diverged", "collapsed"}


def _text_of(events: list[dict[str, Any]]) -> str:
    return str(events[-1].get("text", "")) if events else ""


def _steps(heart: dict[str, Any] | None, metrics: list[dict[str, Any]]) -> tuple[int, int | None]:
    if heart is not None:
        return int(heart["step"]), int(heart["total_steps"])
    return (int(metrics[-1]["step"]) if metrics else 0), None


def _values(metrics: list[dict[str, Any]], name: str) -> list[float]:
    return [record[name] for record in metrics if record.get(name) is not None]


def _last(metrics: list[dict[str, Any]], name: str) -> float | None:
    values = _values(metrics, name)
    return values[-1] if values else None


@dataclass(frozen=True)
class Pace:
    """How fast a run is, from its journal.

    Attributes:
        seconds_per_step: while it runs; evaluations and saves included.
        slowdown: wall time over running time, at least 1: what restarts (waiting, starting, steps taken again) cost.
        outage: seconds that a restart cost on average; None without one.
    """

    seconds_per_step: float
    slowdown: float
    outage: float | None


def pace_of(metrics: Sequence[dict[str, Any]], events: Sequence[dict[str, Any]]) -> Pace | None:
    """The pace; None before two lines of one start are there.

    The journal drops the lines of steps that are taken again, so the gap at a restart holds them, too.
    """
    starts = [event["time"] for event in events if event["event"] == "start"][1:]
    parts = _cut(metrics, starts)
    running = sum(part[-1]["time"] - part[0]["time"] for part in parts)
    steps = sum(part[-1]["step"] - part[0]["step"] for part in parts)
    if steps <= 0 or running <= 0:
        return None
    per_step = running / steps
    gaps = [
        max(0.0, later[0]["time"] - earlier[-1]["time"] - (later[0]["step"] - earlier[-1]["step"]) * per_step)
        for earlier, later in pairwise(parts)
        if _reason_before(later[0]["time"], events) not in WAITS_FOR_A_PERSON
    ]
    return Pace(per_step, 1 + sum(gaps) / running, sum(gaps) / len(gaps) if gaps else None)


def _cut(metrics: Sequence[dict[str, Any]], starts: Sequence[float]) -> list[list[dict[str, Any]]]:
    """The lines, cut where a start lies between two of them."""
    parts: list[list[dict[str, Any]]] = []
    for record in metrics:
        if not parts or any(parts[-1][-1]["time"] < start <= record["time"] for start in starts):
            parts.append([])
        parts[-1].append(record)
    return parts


def _reason_before(time: float, events: Sequence[dict[str, Any]]) -> str | None:
    """Why the run had stopped before the start that leads to `time`; None if it was killed."""
    before = [event for event in events if event["time"] <= time]
    last_start = max((i for i, event in enumerate(before) if event["event"] == "start"), default=0)
    earlier = before[:last_start]
    return str(earlier[-1]["reason"]) if earlier and earlier[-1]["event"] == "stop" else None
