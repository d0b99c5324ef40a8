"""Arrays of a safetensors file, mapped into memory and not read: all processes of a machine share them."""

import json
from pathlib import Path

import numpy as np
from jaxtyping import Shaped

TYPES = {"U8": np.uint8, "I32": np.int32, "U32": np.uint32, "I64": np.int64, "U64": np.uint64}


Arrays = dict[str, Shaped[np.ndarray, "..."]]


def map_arrays(file: Path) -> tuple[Arrays, dict[str, str]]:
    """The arrays by name, and the file's metadata; the package's own reader for NumPy copies them.

    Raises:
        OSError: the file cannot be opened.
        ValueError: it is damaged.
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
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{file}: {error}") from None
    return arrays, about
