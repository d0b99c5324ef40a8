"""Following what a rank prints, over requeues and over submissions."""

import sys
import time
from pathlib import Path

from dino_ssl.errors import RunError
from launch import queue, run_files

SECONDS = 1.0
"""Between two looks at the file."""
LOOKS = 10
"""Looks without anything new before Slurm is asked whether there is anybody left to write."""


def follow(folder: Path, rank: int, *, lines: int, is_once: bool) -> None:
    """Print the last `lines` of the rank's newest log, then what is added, until the run has ended.

    Raises:
        RunError: the run was never submitted, or has no such rank.
    """
    path = _newest_log(folder, rank)
    position = _print_end(path, lines)
    quiet = 0
    while not is_once:
        newest = _newest_log(folder, rank)
        if newest != path:
            print(f"==> {newest}")
            path, position = newest, 0
        moved = _print_from(path, position)
        quiet = 0 if moved != position else quiet + 1
        position = moved
        if quiet and quiet % LOOKS == 0 and not _is_alive(folder):
            return
        time.sleep(SECONDS)


def _newest_log(folder: Path, rank: int) -> Path:
    jobs = run_files.jobs(folder)
    if not jobs:
        raise RunError(f"{folder} was never submitted; what it printed went to its own terminal")
    if rank >= jobs[-1].ranks:
        raise RunError(f"--rank={rank}: job {jobs[-1].job} has the ranks 0 to {jobs[-1].ranks - 1}")
    started = [job for job in jobs if Path(job.log.format(rank=rank)).exists()]
    return Path((started or jobs)[-1].log.format(rank=rank))


def _print_end(path: Path, lines: int) -> int:
    if not path.exists():
        print(f"(waiting for {path})", file=sys.stderr)
        return 0
    data = path.read_bytes()
    shown = data.decode(errors="replace").splitlines(keepends=True)[-lines:] if lines else []
    print("".join(shown), end="", flush=True)
    return len(data)


def _print_from(path: Path, position: int) -> int:
    if not path.exists():
        return 0
    with path.open("rb") as file:
        file.seek(position)
        added = file.read()
    print(added.decode(errors="replace"), end="", flush=True)
    return position + len(added)


def _is_alive(folder: Path) -> bool:
    if run_files.beats(run_files.heartbeat(folder)):
        return True
    return queue.is_here() and bool(queue.queued(job.job for job in run_files.jobs(folder)))
