"""How ranks that srun or submitit started find each other: rank 0 says in the run's folder where it listens.

A port that is computed from the job's number may be taken; here rank 0 listens on one that the system gave it, and
only then tells the others. The folder must be one that all nodes see, as a run's folder has to be anyway.
"""

import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from dino_ssl.durable import write_atomically
from dino_ssl.errors import RunError, UsageError
from dino_ssl.training.ranks import slurm_job

SECONDS_TO_START = 600.0
"""How long ranks wait for each other; nodes may boot one after the other."""
SECONDS_TO_ANSWER = 10.0
SECONDS_BETWEEN_LOOKS = 0.2
T = TypeVar("T")


def meeting_file(folder: Path) -> Path:
    """The same path on all ranks of one start, another one on the next."""
    job = slurm_job()
    if job is None:
        return folder / f".rendezvous-{os.environ.get('SUBMITIT_LOCAL_JOB_ID', 'local')}"
    return folder / f".rendezvous-{job.name}-{job.restart}-{os.environ['SLURM_STEP_ID']}"


def announce(path: Path, port: int) -> list[Path]:
    """On rank 0: write the names of this node and `port`; the folders that had to be made for it, innermost first."""
    made = [folder for folder in (path.parent, *path.parent.parents) if not folder.exists()]
    names = [socket.gethostname(), os.environ.get("SLURMD_NODENAME", "")]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, "\n".join([str(port), *filter(None, names)]).encode())
    except OSError as error:
        raise UsageError(
            f"output_dir={path.parent} cannot be written ({error.strerror}); write --output-dir with another folder"
        ) from error
    return made


def withdraw(path: Path, made: list[Path]) -> None:
    """Leave no trace of `announce`, so that a configuration found wrong later leaves none either."""
    path.unlink(missing_ok=True)
    for folder in made:
        try:
            folder.rmdir()
        except OSError:  # in use by now
            return


def follow(path: Path, connect: Callable[[str, int], T]) -> T:
    """On another rank: connect to where rank 0 listens, as soon as it says so.

    Raises:
        RunError: it said nothing, or did not answer, for `SECONDS_TO_START`.
    """
    end, problem = time.monotonic() + SECONDS_TO_START, "it does not exist"
    while time.monotonic() < end:
        try:
            port, *names = _fresh(path).split()
            host = _first_known(names)
            with socket.create_connection((host, int(port)), timeout=SECONDS_TO_ANSWER):
                pass  # somebody listens: not the address of a start that was killed
            return connect(host, int(port))
        except FileNotFoundError:
            pass
        except (OSError, ValueError) as error:
            problem = str(error).splitlines()[0]
        time.sleep(SECONDS_BETWEEN_LOOKS)
    raise RunError(
        f"{socket.gethostname()} waited {SECONDS_TO_START:.0f} s for rank 0 to say in {path} where it listens "
        f"({problem}); output_dir must lie on a disk that all nodes see, and every rank must start"
    )


def _fresh(path: Path) -> str:
    """Listing the folder makes a network disk look again for a name that was not there."""
    if path.parent.exists():
        os.listdir(path.parent)  # noqa: PTH208
    return path.read_text(encoding="utf-8")


def _first_known(names: list[str]) -> str:
    for name in names:
        try:
            socket.getaddrinfo(name, None)
        except OSError:
            continue
        return name
    raise OSError(f"{' and '.join(names)}: not known on {socket.gethostname()}")
