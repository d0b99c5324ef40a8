"""Maps of weights as colours: enlarged, coloured, laid over the image, and as masks."""

import math
from functools import cache
from typing import Literal

import matplotlib
import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor
from torch.nn import functional as F

Upsampling = Literal["nearest", "bilinear"]
COLOURS = "inferno"
BRIGHTEST = 0.005
"""Share of the patches that have the last colour: a few outliers would leave all others dark."""
LUMA = np.array([0.299, 0.587, 0.114], np.float32)
"""Of RGB (ITU-R BT.601)."""
UNDER_HEAT, OUTSIDE_MASK = 0.6, 0.3
"""Brightness of the grey image, as a share, below an overlay and outside a mask."""
OUTLINE = np.array([255, 214, 10], np.uint8)


def unit_range(maps: Float[Tensor, "*maps h w"]) -> Float[Tensor, "*maps h w"]:
    """Each map from 0 at its smallest weight to 1 at its largest ones; a uniform map is 0 everywhere."""
    return between(maps, limits(maps))


def limits(maps: Float[Tensor, "*maps h w"]) -> Float[Tensor, "2 *maps 1 1"]:
    """Of each map the smallest weight, and the smallest of the largest ones: `BRIGHTEST` of all, at least one."""
    flat = maps.flatten(-2)
    low = flat.amin(-1)[..., None, None]
    high = flat.topk(math.ceil(BRIGHTEST * flat.shape[-1])).values[..., -1:, None]
    return torch.stack([low, high])


def between(maps: Float[Tensor, "*maps h w"], ends: Float[Tensor, "2 *maps 1 1"]) -> Float[Tensor, "*maps h w"]:
    """The maps as shares of the way between two ends, cut off there."""
    low, high = ends
    return torch.clamp((maps - low) / (high - low).clamp_min(torch.finfo(maps.dtype).tiny), 0, 1)


def enlarged(
    maps: Float[Tensor, "*maps h w"], size: tuple[int, int], upsampling: Upsampling
) -> Float[Tensor, "*maps y x"]:
    """Maps at a height and width in pixels.

    Args:
        upsampling: nearest repeats every weight in a square, as the paper does; bilinear is smooth, and looks
            finer than what the network knows.
    """
    stacked = maps.reshape(-1, 1, *maps.shape[-2:])
    if upsampling == "nearest":
        large = F.interpolate(stacked, size, mode="nearest-exact")
    else:
        large = F.interpolate(stacked, size, mode="bilinear", align_corners=False)
    return large.view(*maps.shape[:-2], *size)


def coloured(values: Float[Tensor, "h w"]) -> UInt8[np.ndarray, "h w 3"]:
    """Values in [0, 1] from dark to bright."""
    colours: UInt8[np.ndarray, "h w 3"] = _table()[(values.numpy() * 255).round().astype(np.uint8)]
    return colours


def overlaid(pixels: UInt8[np.ndarray, "h w 3"], values: Float[Tensor, "h w"]) -> UInt8[np.ndarray, "h w 3"]:
    """The image in grey and darker, on which values in [0, 1] shine; small ones leave it as it is."""
    light = coloured(values) / 255 * values.numpy()[..., None] ** 1.3
    grey = (pixels @ LUMA)[..., None] / 255 * UNDER_HEAT
    lit: UInt8[np.ndarray, "h w 3"] = (255 * (1 - (1 - grey) * (1 - light))).round().astype(np.uint8)
    return lit


def masked(pixels: UInt8[np.ndarray, "h w 3"], mask: Bool[np.ndarray, "h w"], line: int) -> UInt8[np.ndarray, "h w 3"]:
    """The image where the mask is true; elsewhere grey and dark; between the two a line, so many pixels wide."""
    grey = (pixels @ LUMA * OUTSIDE_MASK).round().astype(np.uint8)
    picture = np.where(mask[..., None], pixels, grey[..., None])
    picture[outline(mask, line)] = OUTLINE
    return picture


def line_width(patch: float) -> int:
    """Of a line around patches of so many pixels; around the smallest it would hide them."""
    return round(patch / 14)


def outline(mask: Bool[np.ndarray, "h w"], width: int) -> Bool[np.ndarray, "h w"]:
    """Pixels of the mask at most `width` pixels, along a row or a column, from one that is not in it."""
    inner = mask.copy()
    for step in range(1, width + 1):
        inner[step:] &= mask[:-step]
        inner[:-step] &= mask[step:]
        inner[:, step:] &= mask[:, :-step]
        inner[:, :-step] &= mask[:, step:]
    line: Bool[np.ndarray, "h w"] = mask & ~inner
    return line


@cache
def _table() -> UInt8[np.ndarray, "256 3"]:
    colours = matplotlib.colormaps[COLOURS](np.arange(256))[:, :3]
    return (colours * 255).round().astype(np.uint8)
