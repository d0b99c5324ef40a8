"""From a file of weights to what it holds, whatever wrote it; nothing in the file is run."""

import json
import pickle
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from dino_ssl.checksums import sidecar, verify
from dino_ssl.data.unpickling import PlainType, scalar
from dino_ssl.errors import RunError, UsageError

RUN_CHECKPOINT = Path("checkpoints") / "checkpoint.pth"
ARCHIVE = b"PK\x03\x04"
OF_TIMM = ("model.safetensors", "pytorch_model.bin")
"""File names that timm's `config.json` is about."""
IN_FOLDERS = (RUN_CHECKPOINT, Path("checkpoint.pth"), *map(Path, OF_TIMM))


@dataclass(frozen=True)
class WeightFile:
    """What a file holds.

    Attributes:
        path: of the file itself.
        content: tensors by name, or what the file keeps them in.
        card: the `config.json` of timm beside the file; empty where there is none.
    """

    path: Path
    content: dict[str, Any]
    card: dict[str, Any]


def read_weight_file(path: Path) -> WeightFile:
    """Read a file, or the newest checkpoint of a run's folder, or the weights of a folder as timm writes it.

    Raises:
        UsageError: there is no such file, or it is damaged, of an unknown kind, or wants to run something.
    """
    try:
        path = _file_in(path)
        read = _reader_for(path)
        if sidecar(path).exists():
            _check(path)
        content = read(path)
    except OSError as error:
        raise UsageError(f"{error.filename or path} cannot be read: {error.strerror or error}") from None
    if not isinstance(content, dict) or not content:
        raise UsageError(f"{path} holds a {type(content).__name__}, not weights by name")
    card = _card(path.parent) if path.name in OF_TIMM else {}
    return WeightFile(path, {str(name): value for name, value in content.items()}, card)


def _reader_for(path: Path) -> Callable[[Path], Any]:
    if path.suffix not in _READERS:
        raise UsageError(f"{path} must be a file of weights with one of the endings {', '.join(_READERS)}")
    return _READERS[path.suffix]


def _file_in(path: Path) -> Path:
    if path.is_file():
        return path
    if not path.is_dir():
        raise UsageError(f"{path} does not exist; write a run's folder or a file of weights (nothing is downloaded)")
    for name in IN_FOLDERS:
        if (path / name).is_file():
            return path / name
    found = sorted(p.name for p in path.iterdir() if p.suffix in _READERS)
    there = f"; it has {', '.join(found[:5])}: write the path of one of them" if found else ""
    raise UsageError(f"{path} is a folder without {', '.join(map(str, IN_FOLDERS))}{there}")


def _card(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        return {}
    if sidecar(path).exists():
        _check(path)
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from error
    # Other programs have files of that name too.
    return card if isinstance(card, dict) and "architecture" in card else {}


# The original's checkpoints hold its flags and a learning rate of numpy; what these names stand for runs nothing.
_HARMLESS: list[Any] = [
    (SimpleNamespace, "argparse.Namespace"),
    (PlainType, "numpy.dtype"),
    (scalar, "numpy.core.multiarray.scalar"),
    (scalar, "numpy._core.multiarray.scalar"),
]


def _read_torch(path: Path) -> Any:
    _check_archive(path)
    try:
        with torch.serialization.safe_globals(_HARMLESS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        wish = re.search(r"GLOBAL (\S+)|[Cc]lass (\S+)|import of (\S+)", str(error))
        if wish is None:
            raise UsageError(f"{path} is damaged or no file of PyTorch; fetch it again") from None
        name = next(filter(None, wish.groups())).rstrip(".,")
        raise UsageError(f"{path} wants to call {name}, which no weights need: nothing of it was run") from None
    except Exception as error:  # damaged opcodes can raise nearly anything
        raise UsageError(f"{path} is damaged or no file of PyTorch: {_first_line(error)}") from None


def _check_archive(path: Path) -> None:
    """What PyTorch writes since 2020 is a zip archive with checksums, which its reader ignores."""
    with path.open("rb") as file:
        is_archive = file.read(len(ARCHIVE)) == ARCHIVE
    if is_archive:
        _check(path)


def _check(path: Path) -> None:
    try:
        verify(path)
    except RunError as error:
        raise UsageError(f"{error}; fetch it again") from None


def _read_safetensors(path: Path) -> Any:
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise UsageError(f"{path} is damaged or no safetensors file: {_first_line(error)}") from None


def _read_npz(path: Path) -> Any:
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    except Exception as error:  # zip, zlib, numpy and torch each have their own
        raise UsageError(f"{path} is damaged or holds more than arrays of numbers: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0].partition('. ')[0]}"


_READERS: dict[str, Callable[[Path], Any]] = {
    **dict.fromkeys((".pth", ".pt", ".bin", ".ckpt"), _read_torch),
    ".safetensors": _read_safetensors,
    ".npz": _read_npz,
}
