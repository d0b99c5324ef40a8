"""Folders as runs leave them, with times that a test can count on."""

import json
import os
import time
from pathlib import Path
from typing import Any

from launch.run_files import Job, record_job


def write_lines(path: Path, records: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def start(at: float, step: int, *, job: str | None = "7", restart: int = 0) -> dict[str, Any]:
    return {"event": "start", "time": at, "step": step, "host": "n1", "pid": 1, "job": job, "restart": restart,
            "ranks": 4, "nodes": 2, "launcher": "submitit"}  # fmt: skip


def stop(at: float, step: int, reason: str, *, job: str | None = "7", code: int = 0, text: str = "") -> dict[str, Any]:
    return {"event": "stop", "time": at, "step": step, "host": "n1", "pid": 1, "job": job, "restart": 0,
            "reason": reason, "exit_code": code, "text": text or reason}  # fmt: skip


def write_heartbeat(folder: Path, *, age: float = 1.0, **changes: Any) -> None:
    beat = {"state": "training", "step": 50, "total_steps": 100, "epoch": 5.0, "images_per_second": 1000.0, "loss": 3.5,
            "knn_top1": None, "time": time.time() - age, "since": time.time() - 500, "host": "n1", "pid": 1, "job": "7",
            "restart": 0, "ranks": 4, "nodes": 2, "launcher": "submitit", "stop": None,
            "checkpoint_seconds": 2.0}  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "heartbeat.json").write_text(json.dumps(beat | changes))


def a_line(step: int, at: float, **values: float) -> dict[str, Any]:
    return {"step": step, "epoch": step / 10, "time": at, "train/loss": 4 - step / 100,
            "speed/images_per_second": 1000.0, **values}  # fmt: skip


def add_job(folder: Path, job: str = "7") -> None:
    log = str(folder / "logs" / f"{job}_{{rank}}_log.out")
    folder.mkdir(parents=True, exist_ok=True)
    record_job(folder, Job(job, log, "gpu.yaml", 2, 4, str(folder.parent), ["submit"], {}, time.time()))


def write_traceback(folder: Path, rank: int, began: str, error: str) -> None:
    path = folder / "logs" / f"rank_{rank}.err"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(f"{began} n1 1 7 0\nTraceback (most recent call last):\n  somewhere\n{error}\n")


def without_slurm(monkeypatch: Any, folder: Path) -> None:
    """A PATH on which there is Python and git, and no Slurm."""
    (folder / "bin").mkdir()
    for name in ("git",):
        found = next((Path(p) / name for p in os.environ["PATH"].split(":") if (Path(p) / name).exists()), None)
        if found:
            (folder / "bin" / name).symlink_to(found)
    monkeypatch.setenv("PATH", str(folder / "bin"))
