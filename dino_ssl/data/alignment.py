"""Faces turned, scaled and moved so that eyes, nose and corners of the mouth lie where face networks expect them."""

import numpy as np
from jaxtyping import Float, Float64, UInt8

SIDE = 112
TEMPLATE = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)
"""Left eye, right eye (as seen), tip of the nose, left and right corner of the mouth: x, y in pixels of 112 x 112."""


def similarity(points: Float[np.ndarray, "n 2"], targets: Float[np.ndarray, "n 2"]) -> Float64[np.ndarray, "2 3"]:
    """The matrix [sR | t] of scale, rotation and shift, without mirroring, that brings points nearest to targets.

    Raises:
        ValueError: fewer than two different points, or numbers that are not finite.

    Source: Umeyama 1991, IEEE PAMI 13(4), equations 40 to 42.
    """
    mean, target_mean = points.mean(0), targets.mean(0)
    centred, wanted = points - mean, targets - target_mean
    variance = np.square(centred).sum() / len(points)
    if not (np.isfinite(points).all() and np.isfinite(targets).all() and variance > 0):
        raise ValueError("a similarity needs two different points, all finite")
    u, sizes, v = np.linalg.svd(wanted.T @ centred / len(points))
    signs = np.array([1.0, np.sign(np.linalg.det(u) * np.linalg.det(v)) or 1.0])
    rotation = u @ np.diag(signs) @ v
    scale = (sizes * signs).sum() / variance
    return np.column_stack([scale * rotation, target_mean - scale * rotation @ mean])


def aligned(
    pixels: UInt8[np.ndarray, "h w c"], points: Float[np.ndarray, "5 2"], side: int = SIDE
) -> UInt8[np.ndarray, "{side} {side} c"]:
    """The face at `side` pixels; black where the image ends.

    Args:
        points: as in `TEMPLATE`, in pixels of the image; the centre of the first pixel is 0, 0.
    Raises:
        ValueError: see `similarity`.
    """
    matrix = similarity(points, TEMPLATE * (side / SIDE))
    turned = np.linalg.inv(matrix[:, :2])
    y, x = np.mgrid[:side, :side].reshape(2, -1)
    where = turned @ (np.stack([x, y]) - matrix[:, 2:])
    found: UInt8[np.ndarray, "{side} {side} c"] = np.rint(_bilinear(pixels, where)).astype(np.uint8)
    return found.reshape(side, side, -1)


def _bilinear(pixels: UInt8[np.ndarray, "h w c"], where: Float64[np.ndarray, "2 n"]) -> Float64[np.ndarray, "n c"]:
    """Pixels at x, y; those beyond the edge are black."""
    height, width, _ = pixels.shape
    # Beyond the frame everything is as black as right behind it, and such numbers stay small enough for integers.
    x, y = (np.clip(values, -2, size + 1) for values, size in zip(where, (width, height), strict=True))
    framed = np.pad(pixels, ((3, 3), (3, 3), (0, 0))).astype(np.float64)
    left, top = (np.floor(values).astype(np.int64) for values in (x, y))
    right, low = (x - left)[:, None], (y - top)[:, None]
    left, top = left + 3, top + 3
    upper = framed[top, left] * (1 - right) + framed[top, left + 1] * right
    lower = framed[top + 1, left] * (1 - right) + framed[top + 1, left + 1] * right
    mixed: Float64[np.ndarray, "n c"] = upper * (1 - low) + lower * low
    return mixed
