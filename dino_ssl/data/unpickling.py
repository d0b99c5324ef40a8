"""Pickles of arrays, read without running anything: only numpy arrays and plain values can come out."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from dino_ssl.errors import UsageError


def load(file: Path) -> dict[str, Any]:
    """Read a pickled dictionary of arrays, lists, texts and numbers, of Python 2 or 3.

    Returns:
        The dictionary; keys that were bytes are texts.
    Raises:
        UsageError: see `load_value`; or it holds no dictionary.
    """
    content = load_value(file, encoding="latin1")  # what Python 2's arrays need
    if not isinstance(content, dict):
        raise UsageError(f"{file} holds a {type(content).__name__}, not a dictionary of arrays")
    return {key.decode("latin1") if isinstance(key, bytes) else str(key): content[key] for key in content}


def load_value(file: Path, encoding: str = "bytes") -> Any:
    """Read whatever arrays, lists, tuples, texts and numbers a pickle holds.

    Args:
        encoding: of the texts of Python 2; `bytes` leaves them bytes.
    Raises:
        UsageError: the file is missing or damaged, or asks for anything else to be called.
    """
    try:
        with file.open("rb") as stream:
            return _ArrayUnpickler(stream, encoding=encoding).load()
    except FileNotFoundError:
        raise UsageError(f"{file} does not exist") from None
    except _ForbiddenError as error:
        raise UsageError(f"{file} wants to call {error}, which no data set needs: it was not run") from None
    except Exception as error:  # damaged opcodes can raise nearly anything
        raise UsageError(f"{file} is damaged or no pickle: {error}; fetch it again") from None


class _ForbiddenError(Exception):
    """A name that is not on the list of `_ArrayUnpickler`."""


class _ArrayUnpickler(pickle.Unpickler):
    """Every object that a pickle may call goes through `find_class`: numpy's constructors, nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        # numpy 2 renamed numpy.core to numpy._core; files of both are about.
        allowed = _CONSTRUCTORS.get((module.replace("numpy._core", "numpy.core"), name))
        if allowed is None:
            raise _ForbiddenError(f"{module}.{name}")
        return allowed


def _latin1(text: str, encoding: str) -> bytes:
    """Stands in for `_codecs.encode`, by which protocols up to 2 write bytes; no codec is looked up."""
    if encoding != "latin1":
        raise _ForbiddenError(f"_codecs.encode with {encoding!r}")
    return text.encode("latin1")


class PlainType:
    """Stands in for `numpy.dtype`: numbers, booleans and text only.

    A pickle may describe a real one to the last flag, and so have bytes of its own taken for addresses of objects.
    """

    def __init__(self, name: str, align: object = None, copy: object = None) -> None:
        if not isinstance(name, str) or np.dtype(name).kind not in "biufcSU":
            raise _ForbiddenError(f"numpy.dtype with {name!r}")
        self.dtype = np.dtype(name)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, order, *parts = state  # parts: of a structured type; then sizes, which the name says already
        if any(part is not None for part in parts[:3]):
            raise _ForbiddenError("numpy.dtype with fields")
        self.dtype = self.dtype.newbyteorder(order)


class _Array(np.ndarray):
    """An array as pickles make it: empty at first, then filled, once."""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        *_, shape, kind, is_fortran, raw = state
        if self.__dict__ or not isinstance(kind, PlainType) or not isinstance(raw, bytes | str):
            raise _ForbiddenError("numpy.ndarray with more than numbers and text")
        self.is_filled = True
        super().__setstate__((1, shape, kind.dtype, is_fortran, raw))  # type: ignore[arg-type]


def _only_named(*arguments: object) -> Any:
    """Stands in for the class of arrays, which a pickle names and has no reason to call."""
    raise _ForbiddenError("numpy.ndarray")


def _reconstruct(*arguments: object) -> Any:
    return np.ndarray.__new__(_Array, (0,), np.uint8)


def _from_buffer(buffer: bytes | bytearray, kind: PlainType, shape: Any, order: Any) -> Any:
    return np.frombuffer(buffer, kind.dtype).reshape(shape, order=order)


def scalar(kind: PlainType, raw: bytes) -> Any:
    """A number of numpy from its bytes."""
    return np.frombuffer(raw, kind.dtype)[0]


_CONSTRUCTORS: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "ndarray"): _only_named,
    ("numpy", "dtype"): PlainType,
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy.core.multiarray", "scalar"): scalar,
    ("numpy.core.numeric", "_frombuffer"): _from_buffer,
    ("_codecs", "encode"): _latin1,
}
