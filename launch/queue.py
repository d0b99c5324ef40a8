"""What Slurm says about jobs, where there is a Slurm; its accounting is never needed."""

import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from dino_ssl.errors import RunError

SECONDS = 60
"""Longest wait for an answer of Slurm."""


@dataclass(frozen=True)
class Queued:
    """A job that is in the queue.

    Attributes:
        state: such as PENDING, RUNNING, COMPLETING.
        reason: why it waits, or the nodes on which it runs in parentheses of Slurm's.
        left: time to its limit, as Slurm writes it.
        ran: seconds since this start of it.
    """

    state: str
    reason: str
    left: str
    ran: float


def is_here() -> bool:
    """Whether the commands of Slurm are installed."""
    return shutil.which("squeue") is not None


def require() -> None:
    """Raises RunError where there is no Slurm to submit to."""
    if not is_here():
        raise RunError("there is no Slurm here (no squeue); --dry-run prints the script without it")


def ask(*command: str) -> str:
    """The answer of a command of Slurm.

    Raises:
        RunError: it is not installed, does not answer, or refuses.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=SECONDS)
    except FileNotFoundError as error:
        raise RunError(f"there is no {command[0]} here; run this on a login node of the cluster") from error
    except subprocess.TimeoutExpired as error:
        raise RunError(f"{command[0]} did not answer within {SECONDS} seconds; try again later") from error
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip() or f"exit code {done.returncode}"
        raise RunError(f"{command[0]}: {said.splitlines()[-1]}")
    return done.stdout or done.stderr  # `sbatch --test-only` answers there


def test_only(script: str) -> str:
    """What Slurm says about when and where it would run the script.

    Raises:
        RunError: it would not.
    """
    with tempfile.NamedTemporaryFile("w", suffix=".sh") as file:
        file.write(script)
        file.flush()
        return ask("sbatch", "--test-only", file.name).strip()


def queued(jobs: Iterable[str]) -> Mapping[str, Queued]:
    """Those of `jobs` ("12" or "12_3") that wait or run.

    Raises:
        RunError: Slurm does not answer.
    """
    wanted = set(jobs)
    if not wanted:
        return {}
    ids = ",".join(sorted({job.partition("_")[0] for job in wanted}))
    try:
        # -r: one line for each task of an array.
        text = ask("squeue", "-h", "-r", "-j", ids, "-o", "%i|%T|%M|%L|%R")
    except RunError as error:
        if "Invalid job id" in str(error):  # the only one asked for, and long gone
            return {}
        raise
    lines = (line.split("|", 4) for line in text.splitlines())
    return {job: Queued(state, why, left, seconds_of(ran)) for job, state, ran, left, why in lines if job in wanted}


def seconds_of(elapsed: str) -> float:
    """Seconds of a time as squeue writes it, [[DAYS-]HOURS:]MINUTES:SECONDS; 0 for one that it does not know."""
    days, dash, clock = elapsed.rpartition("-")
    parts = clock.split(":")
    if not all(part.isdecimal() for part in [*parts, *([days] if dash else [])]):
        return 0.0
    seconds = sum(int(part) * 60**i for i, part in enumerate(reversed(parts)))
    return float(seconds + 86400 * int(days or 0))


def ended(jobs: Iterable[str]) -> Mapping[str, str]:
    """The last state of each job that accounting knows, such as TIMEOUT; empty where there is no accounting."""
    wanted = set(jobs)
    if not wanted or shutil.which("sacct") is None:
        return {}
    try:
        text = ask("sacct", "-n", "-X", "-P", "-j", ",".join(sorted(wanted)), "-o", "JobID,State")
    except RunError:
        return {}
    lines = (line.split("|", 1) for line in text.splitlines())
    return {job: state.split()[0] for job, state in lines if job in wanted and state}
