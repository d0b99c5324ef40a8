"""One run folder is run by one job at a time, also across nodes, and although a holder may die without a word.

Locks of the system do not reach across nodes on every network disk. Instead the holder is whoever made the file with
the highest number in RUN/lock: a file that is made by linking is made by one process only, everywhere. Who takes over
from a dead holder makes the next number. That a holder lives is seen by its process, its job, or its heartbeat.
"""

import json
import logging
import os
import shutil
import socket
import subprocess
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from dino_ssl.durable import sync_file, write_atomically
from dino_ssl.errors import UsageError
from dino_ssl.training.heartbeat import HEARTBEAT
from dino_ssl.training.ranks import slurm_job

SECONDS_UNTIL_DEAD = 120.0
"""A heartbeat older than this is that of a dead process; network disks show it up to a minute late."""
SQUEUE_SECONDS = 60
logger = logging.getLogger("dino_ssl")


@dataclass(frozen=True)
class Holder:
    """Who runs the folder.

    Attributes:
        machine: differs between machines, their boots and their containers; within one, `pid` means one process.
        ticks: when that process began, by the machine's clock, since numbers of processes are used again.
        state: "running", "requeued" (its job will come back) or "gone".
    """

    host: str
    machine: str
    pid: int
    ticks: int
    job: str | None
    restart: int
    since: float
    state: str = "running"

    def __str__(self) -> str:
        job = f"job {self.job}, " if self.job else ""
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.since))
        return f"{job}process {self.pid} on {self.host}, since {since}"


def this_process() -> Holder:
    job = slurm_job()
    boot = Path("/proc/sys/kernel/random/boot_id")
    machine = f"{boot.read_text().strip() if boot.exists() else ''} {_pid_namespace()}"
    return Holder(
        host=socket.gethostname(),
        machine=machine,
        pid=os.getpid(),
        ticks=_ticks(os.getpid()) or 0,
        job=job.name if job else None,
        restart=job.restart if job else 0,
        since=time.time(),
    )


def _pid_namespace() -> int:
    path = Path("/proc/self/ns/pid")
    return path.stat().st_ino if path.exists() else 0


def _ticks(pid: int) -> int | None:
    """When the process began; None if there is none, or a dead one that nobody has fetched."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


class FolderLock:
    """The folder, held by this process from the making of this object to `release`.

    Raises:
        UsageError: another process, which is named, holds the folder; or it cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "lock"
        self.holder = this_process()
        try:
            self.path = self._acquire()
        except OSError as error:
            raise UsageError(
                f"output_dir={folder} cannot be written ({error.strerror}); write --output-dir with another folder"
            ) from error

    def is_mine(self) -> bool:
        """False once somebody took this process for dead and took over."""
        return self._newest()[0] == self.path

    def release(self, *, comes_back: bool = False) -> None:
        """Let others have the folder; with `comes_back` not before the job of this process has left the queue."""
        if self.is_mine():
            self._write(replace(self.holder, state="requeued" if comes_back else "gone"))

    def _acquire(self) -> Path:
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        self.folder.mkdir(exist_ok=True)
        path, number = self._newest()
        if path is not None:
            holder = _read(path)
            if holder is not None and (why := self._sign_of_life(holder)):
                raise UsageError(
                    f"output_dir={self.folder.parent} is run by {holder} ({why}); wait for its end, stop it"
                    f"{f' with scancel {holder.job}' if holder.job else ''}, or write --output-dir for another folder"
                )
        mine = self.folder / f"{number + 1:06d}.json"
        if not self._made(mine):  # another was faster
            return self._acquire()
        if self._newest()[0] != mine:  # several others were, since the look
            mine.unlink()
            return self._acquire()
        if path is not None:
            path.unlink(missing_ok=True)
        return mine

    def _made(self, path: Path) -> bool:
        """Make the file whole, unless it exists: under a name of its own first, then as a link."""
        unfinished = self.folder / f".{self.holder.host}-{self.holder.pid}"
        unfinished.write_text(json.dumps(asdict(self.holder)))
        sync_file(unfinished)
        try:
            path.hardlink_to(unfinished)
        except FileExistsError:
            return False
        finally:
            unfinished.unlink()
        return True

    def _newest(self) -> tuple[Path | None, int]:
        paths = sorted(self.folder.glob("??????.json"))
        return (paths[-1], int(paths[-1].stem)) if paths else (None, 0)

    def _write(self, holder: Holder) -> None:
        write_atomically(self.path, json.dumps(asdict(holder)).encode())

    def _sign_of_life(self, holder: Holder) -> str:
        """Why `holder` counts as alive; empty if it is dead."""
        me = self.holder
        if holder.state == "gone":
            return ""
        if holder.machine == me.machine and holder.state == "running":
            return "it is alive" if _ticks(holder.pid) == holder.ticks else ""
        if holder.job is not None and holder.job == me.job:
            return "" if me.restart > holder.restart or holder.state == "requeued" else self._heartbeat()
        queued = _state_in_queue(holder.job) if holder.job else None
        match queued:
            case None | "RUNNING" | "COMPLETING":
                return self._heartbeat()
            case "":
                return ""
            case _:
                return f"its job is {queued}"

    def _heartbeat(self) -> str:
        """By the clock of the disk, of which there is one: those of two nodes may differ."""
        probe = self.folder / f".probe-{self.holder.host}-{self.holder.pid}"
        probe.write_text("")
        try:
            age = probe.stat().st_mtime - _modified(self.folder.parent / HEARTBEAT, or_else=self.folder)
        finally:
            probe.unlink()
        return f"its last heartbeat is {age:.0f} s old" if age < SECONDS_UNTIL_DEAD else ""


def _modified(path: Path, or_else: Path) -> float:
    try:
        with path.open("rb") as file:  # opening makes a network disk look again
            return os.fstat(file.fileno()).st_mtime
    except FileNotFoundError:
        return or_else.stat().st_mtime


def _read(path: Path) -> Holder | None:
    try:
        return Holder(**json.loads(path.read_text()))
    except (FileNotFoundError, ValueError, TypeError, RecursionError) as error:
        logger.warning("%s says nothing of who holds the folder (%s)", path, error)
        return None


def _state_in_queue(job: str) -> str | None:
    """Slurm's word for the job, "" if it has left the queue, None if nobody can say."""
    if shutil.which("squeue") is None:
        return None
    try:
        done = subprocess.run(
            ["squeue", "-h", "-j", job, "-o", "%T"],
            capture_output=True, text=True, check=False, timeout=SQUEUE_SECONDS,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode:
        return "" if "Invalid job id" in done.stderr else None
    return done.stdout.split()[0] if done.stdout.split() else ""
