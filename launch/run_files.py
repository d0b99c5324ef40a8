"""What a run's folder says about its jobs and about how far they are; needs neither Slurm nor torch."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dino_ssl.training.run_folder import (
    EVALUATED_STEP,
    JOBS,
    beats,
    heartbeat,
    is_run,
    last_stop,
    metrics,
    records,
    restarts,
    runs_in,
    state_from_files,
)

__all__ = [
    "EVALUATED_STEP",
    "beats",
    "heartbeat",
    "is_run",
    "last_stop",
    "metrics",
    "records",
    "restarts",
    "runs_in",
    "state_from_files",
]


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


def open_evaluations(folder: Path) -> int:
    """Jobs that evaluate checkpoints of the run, sent and not done."""
    return sum(not (sent.parent / "done").exists() for sent in (folder / "eval").glob("step_*/sent"))


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
