"""What a run's folder says of itself, from its files alone: needs neither the run's process, nor Slurm, nor torch."""

import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import UnionType
from typing import Any

JOBS = "jobs.jsonl"
"""One line per submission by `launch`."""
OF_METRICS = {"step": int, "epoch": int | float, "time": int | float}
OF_EVENTS = {"event": str, "time": int | float, "step": int}
OF_HEARTBEAT = {"state": str, "host": str, "time": int | float, "step": int, "total_steps": int, "epoch": int | float}
EVALUATED_STEP = "eval/of_step"
"""Under this name a line of metrics.jsonl says which earlier checkpoint its numbers are of."""
SILENT_SECONDS = 60.0
"""A heartbeat older than this is that of a process which is gone, or hangs."""


def heartbeat(folder: Path) -> dict[str, Any] | None:
    """The last sign of life, or None before the first."""
    try:
        found = json.loads((folder / "heartbeat.json").read_text())
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) and _has(found, OF_HEARTBEAT) else None


def beats(heart: dict[str, Any] | None) -> bool:
    """Whether a process is at work, as far as files can tell."""
    return heart is not None and heart["state"] != "stopped" and time.time() - heart["time"] < SILENT_SECONDS


def restarts(folder: Path) -> list[dict[str, Any]]:
    """Starts and stops, oldest first."""
    found = (event for event in records(folder / "restarts.jsonl") if _has(event, OF_EVENTS))
    return [event for event in found if event["event"] == "start" or {"reason", "text", "exit_code"} <= event.keys()]


def metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl."""
    return [line for line in records(folder / "metrics.jsonl") if _has(line, OF_METRICS)]


def _has(record: dict[str, Any], kinds: Mapping[str, type | UnionType]) -> bool:
    """Whether nothing that others rely on is missing or damaged."""
    return all(isinstance(record.get(name), kind) for name, kind in kinds.items())


def records(path: Path) -> Iterator[dict[str, Any]]:
    """Each line of a file that is a whole JSON object; none where there is no file."""
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError:
        return
    for line in lines:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):  # torn by a kill, or being written
            continue
        if isinstance(record, dict):
            yield record


def last_stop(folder: Path) -> str | None:
    """Why the newest start ended: done, requeued, stopped, interrupted, failed, diverged, collapsed; or None."""
    events = restarts(folder)
    return str(events[-1]["reason"]) if events and events[-1]["event"] == "stop" else None


def runs_in(folder: Path) -> list[Path]:
    """`folder` itself if it is a run, else the runs below it, and those of sweeps below it, by name."""
    if is_run(folder):
        return [folder]
    places = [*folder.glob("*/"), *folder.glob("*/*/")]
    return sorted(path for path in places if is_run(path) and not is_run(path.parent))


def is_run(folder: Path) -> bool:
    """Whether a run was submitted or started here."""
    return any((folder / name).exists() for name in (JOBS, "heartbeat.json", "metrics.jsonl"))


def state_from_files(
    events: list[dict[str, Any]], heart: dict[str, Any] | None, *, is_submitted: bool
) -> tuple[str, str]:
    """The state of a run and why, where there is no Slurm to ask: running, reporting, queued, lost, unknown, or how it
    stopped."""
    if beats(heart) and heart is not None:
        return ("running" if heart["state"] == "training" else str(heart["state"])), f"on {heart['host']}"
    if not events:
        return ("queued", "submitted; there is no Slurm here to ask") if is_submitted else ("unknown", "")
    last = events[-1]
    if last["event"] == "stop":
        return str(last["reason"]), str(last["text"])
    return "lost", "no sign of life since; killed, or its node was lost"
