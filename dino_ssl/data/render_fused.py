"""Render drawn views with a small C++ kernel: what PIL computes, within a rounding, in a twentieth of the time.

The kernel (crops.cpp, crops_kernel.h) is compiled when the package is installed. Where there was no compiler,
`render_opencv` takes its place if OpenCV is there (the extra `opencv`), and otherwise PIL does.
"""

import ctypes
import importlib.util
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Shaped, UInt8

from dino_ssl.data.crops import VIEW

BASIC, AVX2, BEST = 0, 1, 2
"""The most of the machine's instructions that a call may use."""
_OUT_OF_MEMORY = -2


def _load_kernel() -> ctypes.CDLL | None:
    """The compiled kernel; ctypes lets go of the GIL while it runs. None if it was not built for this machine."""
    for path in Path(__file__).parent.glob("_crops*.so"):
        try:
            kernel = ctypes.CDLL(str(path))
        except OSError:
            continue
        pointer, number = ctypes.c_void_p, ctypes.c_int
        kernel.render_views.argtypes = (
            [pointer] + [number] * 3 + [pointer, number, pointer, ctypes.c_ssize_t, number, number]
        )
        kernel.render_views.restype = number
        return kernel
    return None


_KERNEL = _load_kernel()


def _implementation() -> Literal["compiled", "opencv", "pil"]:
    if _KERNEL is not None:
        return "compiled"
    return "opencv" if importlib.util.find_spec("cv2") else "pil"


IMPLEMENTATION = _implementation()
"""What renders on this machine."""


def render(
    pixels: UInt8[np.ndarray, "h w c"], views: Shaped[np.ndarray, " v"], out: UInt8[np.ndarray, "v c s s"]
) -> None:
    """Render the views (VIEW) of one image into `out`, whose first axis may be strided.

    Raises:
        ValueError: a view does not lie inside the image, or its parameters are out of range.
    """
    match IMPLEMENTATION:
        case "compiled":
            render_compiled(pixels, views, out)
        case "opencv":
            from dino_ssl.data.render_opencv import render as render_opencv  # noqa: PLC0415  (an extra)

            render_opencv(pixels, views, out)
        case _:
            from dino_ssl.data.render_pil import render as render_pil  # noqa: PLC0415

            render_pil(pixels, views, out)


def render_compiled(
    pixels: UInt8[np.ndarray, "h w c"],
    views: Shaped[np.ndarray, " v"],
    out: UInt8[np.ndarray, "v c s s"],
    *,
    level: int = BEST,
) -> None:
    """`render` by the kernel.

    Args:
        level: BASIC, AVX2 or BEST.
    """
    assert _KERNEL is not None
    views = np.ascontiguousarray(views)
    _check_layout(pixels, views, out)
    result = _KERNEL.render_views(
        pixels.ctypes.data, *pixels.shape, views.ctypes.data, len(views), out.ctypes.data, out.strides[0],
        out.shape[-1], level,
    )  # fmt: skip
    if result == _OUT_OF_MEMORY:
        raise MemoryError(f"no memory to render the views of an image of {pixels.shape[1]} x {pixels.shape[0]} pixels")
    if result >= 0:
        raise ValueError(
            f"views[{result}] = {views[result]} of an image of {pixels.shape[1]} x {pixels.shape[0]} pixels: the box "
            "must lie inside the image, the order hold -1 to 3, the blur radius lie in 0 to 60"
        )


def _check_layout(pixels: np.ndarray, views: np.ndarray, out: np.ndarray) -> None:
    """The kernel trusts these."""
    size = out.shape[-1]
    assert pixels.dtype == out.dtype == np.uint8 and views.dtype == VIEW
    assert pixels.flags.c_contiguous
    assert out.shape == (len(views), pixels.shape[2], size, size) and out.strides[1:] == (size * size, size, 1)
