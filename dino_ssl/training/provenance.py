"""What made a run, beside its configuration: code, packages, machines, energy."""

import ctypes
import re
import socket
import sys
import time
from collections.abc import Callable
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import dino_ssl
from dino_ssl.data.sources import Source
from dino_ssl.training import distributed
from dino_ssl.training.code_state import describe_code

ROOT = Path(dino_ssl.__file__).parents[1]
NEEDED = ("torch", "torchvision", "timm", "numpy", "scikit-learn", "simplejpeg", "safetensors")
MILLIJOULES = 3.6e9
"""In a kilowatt hour."""


def made_with() -> dict[str, Any]:
    """Code, packages and hosts, for rank 0; a collective. Checkpoints hold it, so nothing in it changes with time."""
    hosts = sorted(set(distributed.gather(socket.gethostname())))
    return {**_of_this_process(), "hosts": hosts} if distributed.is_main() else {}


@cache
def _of_this_process() -> dict[str, Any]:
    """As it was when the process began, as far as can be told: what is edited later does not run."""
    return {"code": describe_code(ROOT), "packages": packages(), "python": sys.version.split()[0]}


def describe_start(source: Source, device: torch.device, seed: int, made: dict[str, Any]) -> dict[str, Any]:
    """What run.json says of the newest start."""
    versions = {"dino_ssl": dino_ssl.__version__, "torch": torch.__version__}
    return {
        **versions,
        **made,
        "command": sys.argv,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "ranks": distributed.world_size(),
        "seed": seed,
        "data": {"name": source.name, "num_images": len(source), "fingerprint": source.fingerprint()},
    }


def packages() -> dict[str, str]:
    """Versions of the packages that this one needs and of its extras, as far as they are installed."""
    try:
        lines = [line for line in metadata.requires("dino-ssl") or [] if 'extra == "dev"' not in line]
        needed = [re.split(r"[^\w.-]", line)[0] for line in lines]
    except metadata.PackageNotFoundError:  # a checkout that nobody installed
        needed = list(NEEDED)
    installed = {name: _version(name) for name in sorted({*needed, "pillow"})}
    return {name: version for name, version in installed.items() if version}


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


class Energy:
    """What this process's GPU has used since this was made; other processes on it count, too."""

    def __init__(self, device: torch.device) -> None:
        self._read = _counter(device) if device.type == "cuda" else None
        self._first = self._read() if self._read else None

    def kwh(self) -> float | None:
        """None on the CPU, and where the driver does not tell (GPUs before 2017)."""
        now = self._read() if self._read else None
        return None if now is None or self._first is None else (now - self._first) / MILLIJOULES


def _counter(device: torch.device) -> Callable[[], int | None] | None:
    """What reads the driver's count in millijoules: NVML, which lies beside every driver."""
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return None
    handle = ctypes.c_void_p()
    uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}".encode()
    if nvml.nvmlInit_v2() or nvml.nvmlDeviceGetHandleByUUID(uuid, ctypes.byref(handle)):
        return None

    def read() -> int | None:
        value = ctypes.c_ulonglong()
        refused = nvml.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(value))
        return None if refused else value.value

    return read
