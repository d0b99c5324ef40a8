"""What a run tells about its starts and ends: restarts.jsonl, heartbeat.json, logs/rank_N.err; and its lock."""

import json
import logging
import os
import socket
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dino_ssl.durable import naming
from dino_ssl.errors import CollapsedError, DivergedError, Stopped, UsageError
from dino_ssl.training import distributed, requeue, signals
from dino_ssl.training.folder_lock import FolderLock
from dino_ssl.training.heartbeat import Heartbeat
from dino_ssl.training.provenance import Energy
from dino_ssl.training.ranks import Placement, placement, slurm_job
from dino_ssl.training.run import Run

RESTARTS = "restarts.jsonl"
"""One JSON object for each start and stop; a start without a stop was killed, or its node was lost."""
logger = logging.getLogger("dino_ssl")


def is_over(folder: Path) -> bool:
    """Whether the newest start of the run has said how it ended."""
    path = folder / RESTARTS
    with naming(path):
        lines = path.read_text(encoding="utf-8").splitlines()
    return bool(lines) and json.loads(lines[-1])["event"] == "stop"


@contextmanager
def failures_recorded(folder: Path) -> Iterator[None]:
    """Leave the traceback of whatever ends this rank in RUN/logs/rank_N.err."""
    try:
        yield
    except UsageError:
        raise  # all ranks say the same, and the folder may be another run's
    except Exception as error:
        _write_traceback(folder / "logs", error)
        raise


def _write_traceback(logs: Path, error: Exception) -> None:
    job = slurm_job()
    where = f"{socket.gethostname()} {os.getpid()}" + (f" {job.name} {job.restart}" if job else "")
    when = time.strftime("%Y-%m-%dT%H:%M:%S") + f"{time.time() % 1:.3f}"[1:]
    try:
        logs.mkdir(parents=True, exist_ok=True)
        with (logs / f"rank_{placement().rank}.err").open("a", encoding="utf-8") as file:
            file.write(f"{when} {where}\n{''.join(traceback.format_exception(error))}\n")
    except OSError:  # a full disk: the traceback is on stderr, too
        pass


@contextmanager
def held(folder: Path) -> Iterator[FolderLock | None]:
    """Hold the folder; rank 0 has the lock, and all hear of a refusal.

    Raises:
        UsageError: another job runs the folder.
    """
    lock, refusal = None, None
    if distributed.is_main():
        try:
            lock = FolderLock(folder)
        except UsageError as error:
            refusal = error.problems
    if refused := distributed.broadcast(refusal):
        raise UsageError(*refused)
    requeued = False
    try:
        yield lock
    except Stopped as stopped:
        requeued = stopped.reason == "requeued"
        raise
    finally:
        if lock is not None:
            with _less_important(folder):
                lock.release(comes_back=requeued)


@contextmanager
def recorded(run: Run[Any], lock: FolderLock | None) -> Iterator[None]:
    """Write the start and, however the block ends, the stop; between them the heartbeat. Rank 0 does."""
    if lock is None:
        yield
        return
    record = _Record(run, lock)
    signals.when_leaving(record.leave)
    try:
        yield
    except BaseException as error:
        signals.answered()
        record.stop(*_ending(error))
        raise
    signals.answered()
    record.stop("done", 0, "done")


@contextmanager
def _less_important(folder: Path) -> Iterator[None]:
    """What ends the run is to be heard of, and may be the same full disk."""
    try:
        yield
    except OSError as error:
        logger.warning("cannot write in %s: %s", folder, error.strerror)


def _ending(error: BaseException) -> tuple[str, int, str]:
    """Reason, exit code and text."""
    match error:
        case Stopped():
            return error.reason, error.exit_code, error.text
        case KeyboardInterrupt():
            return "interrupted", 130, "interrupted"
        case DivergedError():
            return "diverged", error.exit_code, str(error)
        case CollapsedError():
            return "collapsed", error.exit_code, str(error)
        case _:
            return "failed", 1, f"{type(error).__name__}: {error}"


class _Record:
    """The files of one start of one run, and what ends it at once."""

    def __init__(self, run: Run[Any], lock: FolderLock) -> None:
        self.run = run
        self.lock = lock
        self.here = placement()
        self.energy = Energy(run.device)
        with naming(run.folder / RESTARTS):
            self._append({"event": "start", **self._who(), **_shape(self.here)})
        self.heartbeat = Heartbeat(run.folder, self._look, self._check_lock)
        self.heartbeat.start()

    def stop(self, reason: str, exit_code: int, text: str) -> None:
        ending = {"reason": reason, "exit_code": exit_code, "text": text, "kwh": self._kwh()}
        with _less_important(self.run.folder):
            self._append({"event": "stop", **self._who(), **ending})
        self.heartbeat.stop(state="stopped", stop=text)

    def leave(self, number: int) -> None:
        """Answer a signal while there is nothing to save; in a thread, since the main one may wait for others."""
        outcome = requeue.answer(number)
        self.stop(outcome.reason, outcome.exit_code, outcome.text)
        with _less_important(self.run.folder):
            self.lock.release(comes_back=outcome.reason == "requeued")
        requeue.leave(outcome)

    def _who(self) -> dict[str, Any]:
        holder = self.lock.holder
        names = {"host": holder.host, "pid": holder.pid, "job": holder.job, "restart": holder.restart}
        return {"time": time.time(), "step": self.run.step, **names}

    def _look(self) -> dict[str, Any]:
        run, latest = self.run, self.run.journal.latest
        return {
            "state": "reporting" if run.is_over() else "training",
            "total_steps": run.task.total_steps,
            "epoch": run.step / run.task.steps_per_epoch,
            "images_per_second": latest.get("speed/images_per_second"),
            "loss": latest.get("train/loss"),
            "knn_top1": latest.get("eval/knn_top1"),
            "checkpoint_seconds": run.seconds_of_save,
            "since": self.lock.holder.since,
            **self._who(),
            **_shape(self.here),
            "kwh": self._kwh(),
            "stop": None,
        }

    def _kwh(self) -> float | None:
        """Of this start, all ranks taken for alike; None where the GPU does not tell."""
        own = self.energy.kwh()
        return None if own is None else own * self.here.world_size

    def _append(self, line: dict[str, Any]) -> None:
        with (self.run.folder / RESTARTS).open("a") as file:
            file.write(json.dumps(line) + "\n")

    def _check_lock(self) -> None:
        """Suspended for so long that another job took over: two would write one folder."""
        if not self.lock.is_mine():
            logger.error("%s was taken over by another job while this one gave no sign of life", self.run.folder)
            os._exit(1)


def _shape(here: Placement) -> dict[str, Any]:
    return {"ranks": here.world_size, "nodes": here.num_nodes, "launcher": here.launcher}
