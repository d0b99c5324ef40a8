"""Arrays of a safetensors file, mapped into memory and not read: all processes of a machine share them."""

import json
import zlib
from pathlib import Path

import numpy as np
from jaxtyping import Shaped

TYPES = {"U8": np.uint8, "I32": np.int32, "U32": np.uint32, "I64": np.int64, "U64": np.uint64}


SUM = "crc32"
"""Of all other arrays: the format has no checksum of its own, and a changed label would pass in silence."""

Arrays = dict[str, Shaped[np.ndarray, "..."]]


def sealed(arrays: Arrays) -> Arrays:
    """The arrays as `map_arrays` wants to find them: contiguous, and with their checksum."""
    whole = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    return {**whole, SUM: np.array([_sum(whole)], np.int64)}


def _sum(arrays: Arrays) -> int:
    found = 0
    for name, array in sorted(arrays.items()):
        found = zlib.crc32(f"{name} {array.dtype} {array.shape} ".encode(), found)
        found = zlib.crc32(array.data, found) if array.size else found
    return found


def map_arrays(file: Path) -> tuple[Arrays, dict[str, str]]:
    """The arrays that were `sealed`, by name, and the file's metadata; the package's own reader for NumPy copies them.

    Raises:
        OSError: the file cannot be opened.
        ValueError: it is damaged: the arrays are not what was written.
    """
    content = np.asarray(np.memmap(file, np.uint8, "r"))  # a plain array is sliced several times faster
    start = 8 + int.from_bytes(content[:8].tobytes(), "little")
    try:
        header = json.loads(content[8:start].tobytes())
        about = dict(header.pop("__metadata__", {}))
        arrays = {}
        for name, entry in header.items():
            begin, end = (start + int(offset) for offset in entry["data_offsets"])
            arrays[name] = content[begin:end].view(TYPES[entry["dtype"]]).reshape(entry["shape"])
        stored = arrays.pop(SUM).tolist()
    except (KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise ValueError(f"{file}: {error}") from None
    if stored != [_sum(arrays)]:
        raise ValueError(f"{file}: wrong checksum")
    return arrays, about
