"""A whole image at the size of a network's input: nothing cut off, nothing padded."""

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from dino_ssl.data.decoding import bands


def whole_size(width: int, height: int, side: int, patch_size: int, *, square: bool) -> tuple[int, int]:
    """Height and width in pixels, each a multiple of the patch size.

    The aspect is kept up to that rounding, and the area is that of a square of `side` pixels, so that a panorama
    takes no more memory than a square; or it is that square itself.
    """
    across, down = (1.0, 1.0) if square else ((width / height) ** 0.5, (height / width) ** 0.5)
    return _whole_patches(side * down, patch_size), _whole_patches(side * across, patch_size)


def _whole_patches(length: float, patch_size: int) -> int:
    return max(1, round(length / patch_size)) * patch_size


def resized(pixels: UInt8[np.ndarray, "h w c"], height: int, width: int) -> UInt8[Tensor, "c {height} {width}"]:
    """The image at another size (bicubic, PIL); of that size already, it is not resampled."""
    small = [np.asarray(band.resize((width, height), Image.Resampling.BICUBIC)) for band in bands(pixels)]
    return torch.from_numpy(np.atleast_3d(np.dstack(small))).permute(2, 0, 1)


def as_rgb(pixels: UInt8[np.ndarray, "h w c"]) -> UInt8[np.ndarray, "h w 3"]:
    """For the eye: grey as it is, of more channels than three the first three, of two the first."""
    few = pixels[..., :3] if pixels.shape[2] >= 3 else np.repeat(pixels[..., :1], 3, axis=2)
    return np.ascontiguousarray(few)
