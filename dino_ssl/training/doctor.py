"""Whether this machine, or this job's machines, can train: a line for each thing that runs have died of."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from dino_ssl import __version__
from dino_ssl.data import render_fused
from dino_ssl.data.decoding import BrokenImage
from dino_ssl.data.sources import Source, load, open_source, problems_of
from dino_ssl.errors import UsageError
from dino_ssl.training import distributed
from dino_ssl.training.ranks import cores_of_this_rank, placement, slurm_job

LEAST_FREE = 5 * 2**30
"""Bytes: a few checkpoints of a ViT-S with its optimizer."""
LEAST_CORES = 4
SAMPLES = 32
SLURM_SECONDS = 20
SMALL_MEMORY = 2**30
"""Bytes of /dev/shm below which processes that hand over batches die, as in containers with 64 MB."""


@dataclass(frozen=True)
class Finding:
    """What was found of one thing.

    Attributes:
        verdict: a fault keeps runs from working; a warning costs time or comes later.
    """

    name: str
    verdict: Literal["ok", "warning", "FAULT"]
    text: str


def examine(folder: Path, data: str | None, data_root: Path, device: str) -> Iterator[Finding]:
    """Each finding as it comes; a collective where there are several ranks, of which each looks at its own machine.

    Args:
        folder: where runs are to be written; a folder that is made for this is taken away again.
        data: a SOURCE to look into.
        device: auto, cpu or cuda.
    """
    yield versions()
    yield accelerator(device)
    yield cores()
    yield shared_memory()
    yield from disk(folder)
    yield kernel()
    if data is not None:
        yield images(data, data_root)
    yield ranks(device, folder)
    yield slurm()


def versions() -> Finding:
    packages = f"dino-ssl {__version__}, Python {sys.version.split()[0]}, torch {torch.__version__}"
    return Finding("versions", "ok", f"{packages}, on {socket.gethostname()}")


def accelerator(device: str) -> Finding:
    """The device that runs would take, and whether it computes."""
    try:
        kind = distributed.device_kind(device)
    except UsageError as error:
        return Finding("device", "FAULT", "; ".join(error.problems))
    if kind == "cpu":
        return Finding("device", "ok" if device == "cpu" else "warning", "no GPU is used: small networks only")
    place = distributed.local_device(kind)
    try:
        ones = torch.ones(64, 64, device=place, dtype=torch.bfloat16)
        right = float((ones @ ones).float().mean()) == 64
    except RuntimeError as error:
        return Finding("device", "FAULT", f"{place} does not compute: {str(error).splitlines()[0]}")
    about = torch.cuda.get_device_properties(place)
    free, total = torch.cuda.mem_get_info(place)
    text = f"{about.name}, {free / 2**30:.0f} of {total / 2**30:.0f} GiB free, {torch.cuda.device_count()} of them here"
    if not right:
        return Finding("device", "FAULT", f"{text}; a product of ones is wrong")
    return Finding("device", "ok" if free > 0.8 * total else "warning", text)


def cores() -> Finding:
    """Cores of this process, which has to feed its device."""
    mine, all_here = cores_of_this_rank(), os.cpu_count() or 1
    few = "; few for decoding images: ask for more (--cpus-per-task)" if mine < LEAST_CORES else ""
    return Finding("cores", "warning" if few else "ok", f"{mine} for this rank of {all_here} in the machine{few}")


def shared_memory() -> Finding:
    path = Path("/dev/shm")
    if not path.is_dir():
        return Finding("shared memory", "warning", "there is no /dev/shm; write --loader.num-processes 0")
    free = shutil.disk_usage(path).free
    advice = "; write --loader.num-processes 0, or start the container with --shm-size 8g"
    small = free < SMALL_MEMORY
    return Finding("shared memory", "warning" if small else "ok", f"{free / 2**30:.1f} GiB{advice if small else ''}")


def disk(folder: Path) -> Iterator[Finding]:
    """Room, and what checkpoints and locks need of a disk, tried in the nearest folder that exists."""
    place = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(place).free
    text = f"{free / 2**30:.1f} GiB free in {place}"
    yield Finding("room", "ok" if free >= LEAST_FREE else "warning", text)
    try:
        with tempfile.TemporaryDirectory(dir=place, prefix=".dino-ssl-doctor-") as name:
            yield _writes(Path(name), place)
    except OSError as error:
        yield Finding("output folder", "FAULT", f"{place} cannot be written: {error.strerror}; choose another")


def _writes(scratch: Path, place: Path) -> Finding:
    file = scratch / "a"
    file.write_bytes(b"a")
    with file.open("rb") as opened:
        os.fsync(opened.fileno())
    (scratch / "b").write_bytes(b"b")
    (scratch / "b").replace(file)
    try:
        (scratch / "c").hardlink_to(file)
    except OSError as error:
        text = (
            f"{place} has no hard links ({error.strerror}): the lock of a run's folder needs them; choose another disk"
        )
        return Finding("output folder", "FAULT", text)
    return Finding("output folder", "ok", f"{place} is written, synced, renamed and linked")


def kernel() -> Finding:
    compiled = render_fused.IMPLEMENTATION == "compiled"
    text = "compiled" if compiled else f"not compiled: {render_fused.IMPLEMENTATION} draws crops several times slower"
    return Finding("crop kernel", "ok" if compiled else "warning", text)


def images(data: str, root: Path) -> Finding:
    """Some images, spread over the set."""
    try:
        source = open_source(data, root)
    except UsageError as error:
        return Finding("data", "FAULT", "; ".join(error.problems))
    broken = _broken(source)
    found = f"{source.name}: {len(source):,} images, {'no' if source.labels is None else len(source.classes)} classes"
    if len(broken) == min(SAMPLES, len(source)):
        return Finding("data", "FAULT", f"{found}; none of {len(broken)} can be read, such as {broken[0]}")
    told = [*broken[:1], *problems_of(source)[:1]]
    share = f"; {len(broken)} of {min(SAMPLES, len(source))} cannot be read" if broken else ""
    return Finding("data", "warning" if told else "ok", found + share + "".join(f"; {line}" for line in told))


def _broken(source: Source) -> list[str]:
    places = [place * len(source) // min(SAMPLES, len(source)) for place in range(min(SAMPLES, len(source)))]
    found = []
    for place in places:
        try:
            load(source, place)
        except BrokenImage as error:
            found.append(f"{source.describe(place)}: {error.reason}")
    return found


def ranks(device: str, folder: Path) -> Finding:
    """Whether the ranks of this start find each other, and add up to what they should."""
    here = placement()
    if here.world_size == 1:
        return Finding("ranks", "ok", "one process; start this with torchrun or srun to try the network between ranks")
    try:
        place = distributed.local_device(distributed.device_kind(device))
        with distributed.process_group(place, folder):
            total = float(distributed.all_sum(torch.full((1 << 20,), float(here.rank + 1), device=place)).mean())
            hosts = sorted(set(distributed.gather(socket.gethostname())))
    except (RuntimeError, UsageError) as error:
        return Finding("ranks", "FAULT", f"{here}: they do not meet: {str(error).splitlines()[0]}")
    expected = here.world_size * (here.world_size + 1) / 2
    verdict: Literal["ok", "FAULT"] = "ok" if total == expected else "FAULT"
    return Finding("ranks", verdict, f"{here}, on {', '.join(hosts)}: a sum of ranks is {total:g} of {expected:g}")


def slurm(ask: Callable[[Sequence[str]], str] | None = None) -> Finding:
    """Whether Slurm answers, and would run a job again.

    Args:
        ask: runs a command and returns what it prints; raises OSError or subprocess.SubprocessError.
    """
    if shutil.which("scontrol") is None and ask is None:
        return Finding("Slurm", "ok", "not here")
    job = slurm_job()
    try:
        text = (ask or _printed)(["scontrol", "show", "config"])
    except (OSError, subprocess.SubprocessError) as error:
        verdict: Literal["warning", "FAULT"] = "FAULT" if job else "warning"  # tools without a cluster are no fault
        return Finding("Slurm", verdict, f"scontrol is here and does not answer: {error}")
    where = f"in job {job.name}" if job else "not in a job"
    again = "JobRequeue = 1" in " ".join(text.replace("=", " = ").split())
    advice = "" if again else "; JobRequeue=0: a preempted run is not run again by itself, use chain"
    return Finding("Slurm", "ok" if again else "warning", f"answers, {where}{advice}")


def _printed(command: Sequence[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=SLURM_SECONDS).stdout
