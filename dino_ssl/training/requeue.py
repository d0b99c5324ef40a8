"""What becomes of a run that a signal stops: whether Slurm runs it again, and with which exit code it leaves.

Slurm runs a job that exits again in no case: one that exits 0 is completed, any other failed. It has to be asked,
by `scontrol requeue`, while the job is running. Where Slurm is ending the job already, it is not asked: it runs the
job again by itself (a preemption without grace, `scontrol requeue` from outside) or must not (`scancel`, the limit).
"""

import logging
import os
import re
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass
from typing import NoReturn

from dino_ssl.training.ranks import SlurmJob, placement, slurm_job
from dino_ssl.training.signals import STOPPING

RUN_AGAIN = 75
"""Exit code of a run that was stopped to be run again (EX_TEMPFAIL)."""
RUNNING = ("RUNNING", "SIGNALING")
SCONTROL_SECONDS = 60
SECONDS_FOR_RANK_0 = 30.0
logger = logging.getLogger("dino_ssl")


@dataclass(frozen=True)
class Outcome:
    """How a stopped run leaves.

    Attributes:
        reason: "requeued", or "stopped" where nobody was asked to run it again.
    """

    reason: str
    exit_code: int
    text: str


def answer(number: int, job: SlurmJob | None = None) -> Outcome:
    """Requeue the job of this process if it should run again; for one rank, after all have saved.

    Args:
        number: the signal.
        job: None: the one that the environment names.
    """
    name, job = signal.Signals(number).name, job or slurm_job()
    if job is None:
        return Outcome("stopped", _exit_code(number), name)
    if shutil.which("scontrol") is None:
        return _not_requeued(name, job, "there is no scontrol on this node")
    state, may_requeue = _look(job)
    if state and state not in RUNNING:
        return Outcome("stopped", 128 + signal.SIGTERM, f"{name}; Slurm is ending job {job.name} itself ({state})")
    if not may_requeue:
        return _not_requeued(name, job, "it was submitted with --no-requeue, or the cluster has JobRequeue=0")
    refusal = _scontrol("requeue", job.name)[1]
    # Where Slurm was faster, the answer is that the job is pending or completing: what was wanted.
    if refusal and _look(job)[0] in ("", *RUNNING):
        return _not_requeued(name, job, refusal)
    return Outcome("requeued", RUN_AGAIN, f"{name}; asked Slurm to run job {job.name} again")


def leave_at_once(number: int) -> None:
    """End this process, which has nothing to save and no folder yet; rank 0 answers for all."""
    if placement().rank > 0:
        # An exit that srun sees first would have it kill rank 0 before its answer.
        time.sleep(SECONDS_FOR_RANK_0 if slurm_job() else 0)
        os._exit(_exit_code(number))
    leave(answer(number))


def leave(outcome: Outcome) -> NoReturn:
    """Whatever the other threads are doing."""
    logger.warning("stopped by %s", outcome.text)
    os._exit(outcome.exit_code)


def _exit_code(number: int) -> int:
    """Without Slurm: SIGTERM's own; the others are a scheduler's, which may look for a code of ours."""
    return 128 + number if number == signal.SIGTERM else RUN_AGAIN


def _not_requeued(name: str, job: SlurmJob, why: str) -> Outcome:
    text = f"{name}; job {job.name} was not requeued: {why}; submit it again to go on"
    return Outcome("stopped", RUN_AGAIN, text)


def _look(job: SlurmJob) -> tuple[str, bool]:
    """The job's state, empty if Slurm does not say, and whether it may be requeued."""
    text = _scontrol("show", "job", "-o", job.name)[0]
    state = re.search(r"\bJobState=(\w+)", text)
    return (state[1] if state else ""), "Requeue=0" not in text


def _scontrol(*arguments: str) -> tuple[str, str]:
    """What it printed, and what it complained of.

    The signals that a requeue provokes would kill the process that asks for it: it inherits them blocked.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        done = subprocess.run(
            ["scontrol", *arguments], capture_output=True, text=True, check=False, timeout=SCONTROL_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return "", str(error)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return done.stdout, done.stderr.strip() if done.returncode else ""
