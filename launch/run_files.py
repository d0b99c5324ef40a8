"""What a run's folder says about its jobs and about how far they are; needs neither Slurm nor torch."""

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

JOBS = "jobs.jsonl"
"""One line per submission: `Job`."""
SILENT_SECONDS = 60.0
"""A heartbeat older than this is that of a process which is gone, or hangs."""


OF_STEP = "eval/of_step"
"""In a line of metrics.jsonl: the checkpoint that a job evaluated."""


@dataclass(frozen=True)
class Job:
    """A submission.

    Attributes:
        job: Slurm's id: 12, or 12_3 for a task of an array.
        log: what rank 0 prints; {rank} stands in the place of the rank.
        cluster: the profile's file.
        changes: keys of the profile that the command line set.
        command: what was typed, for the record.
    """

    job: str
    log: str
    cluster: str
    nodes: int
    ranks: int
    cwd: str
    command: list[str]
    changes: dict[str, Any]
    time: float


def jobs(folder: Path) -> list[Job]:
    """Every submission of the run, oldest first."""
    return [Job(**record) for record in records(folder / JOBS)]


def record_job(folder: Path, job: Job) -> None:
    with (folder / JOBS).open("a") as file:
        file.write(json.dumps(asdict(job)) + "\n")


def record_cancel(folder: Path, job: str) -> None:
    """Remember that a person cancelled the job: without accounting Slurm forgets."""
    (folder / "logs").mkdir(exist_ok=True)
    (folder / "logs" / f"{job}.cancelled").touch()


def was_cancelled(folder: Path, job: str) -> bool:
    """Whether `cancel` took the job out of the queue."""
    return (folder / "logs" / f"{job}.cancelled").exists()


def heartbeat(folder: Path) -> dict[str, Any] | None:
    """The last sign of life, or None before the first."""
    try:
        found = json.loads((folder / "heartbeat.json").read_text())
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def beats(heart: dict[str, Any] | None) -> bool:
    """Whether a process is at work, as far as files can tell."""
    return heart is not None and heart["state"] != "stopped" and time.time() - heart["time"] < SILENT_SECONDS


def restarts(folder: Path) -> list[dict[str, Any]]:
    """Starts and stops, oldest first."""
    return list(records(folder / "restarts.jsonl"))


def metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl."""
    return list(records(folder / "metrics.jsonl"))


def open_evaluations(folder: Path) -> int:
    """Jobs that evaluate checkpoints of the run, sent and not done."""
    return sum(not (sent.parent / "done").exists() for sent in (folder / "eval").glob("step_*/sent"))


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


def is_run(folder: Path) -> bool:
    """Whether a run was submitted or started here."""
    return any((folder / name).exists() for name in (JOBS, "heartbeat.json", "metrics.jsonl"))


def runs_in(folder: Path) -> list[Path]:
    """`folder` itself if it is a run, else the runs below it, and those of sweeps below it, by name."""
    if is_run(folder):
        return [folder]
    places = [*folder.glob("*/"), *folder.glob("*/*/")]
    return sorted(path for path in places if is_run(path) and not is_run(path.parent))


def failure(folder: Path) -> tuple[str, str] | None:
    """Rank and traceback of the first rank that failed in the newest start; None where none did."""
    starts = [event["time"] for event in restarts(folder) if event["event"] == "start"]
    files = [path for path in folder.glob("logs/rank_*.err") if path.stat().st_size > 0]
    # The clocks of two nodes, and of the disk, may differ a little.
    recent = [path for path in files if not starts or path.stat().st_mtime > starts[-1] - 60]
    if not recent:
        return None
    first = min(recent, key=_began)
    return first.stem.removeprefix("rank_"), _newest_part(first.read_text(errors="replace"))


def log_of(folder: Path, job: str | None, rank: int = 0) -> Path | None:
    """What a rank of the job printed; None where there is no such job."""
    return next((Path(found.log.format(rank=rank)) for found in jobs(folder) if found.job == job), None)


def last_lines(path: Path | None, count: int) -> list[str]:
    """The last lines of a text; none where there is no file."""
    if path is None or not path.exists():
        return []
    return path.read_text(errors="replace").splitlines()[-count:]


def _began(path: Path) -> tuple[str, float]:
    """The time in the first line of the newest part: ISO times sort as they are."""
    line = _newest_part(path.read_text(errors="replace")).partition("\n")[0]
    return line.partition(" ")[0], path.stat().st_mtime


def _newest_part(text: str) -> str:
    """What stands below the last line that begins with a time."""
    lines = text.rstrip().splitlines()
    starts = [number for number, line in enumerate(lines) if line[:2] == "20" and line[4:5] == "-" and "T" in line[:12]]
    return "\n".join(lines[starts[-1] :] if starts else lines)
