"""Images of fewer pixels, brought back to their size: what a camera far away would have seen.

Resampling is linear, so images may be normalised before or after.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2.functional import gaussian_blur

from dino_ssl.errors import UsageError

Degradation = Literal["bicubic", "askd_release", "random_kernel"]
"""bicubic: down with antialiasing, and up. askd_release: as the released code of A-SKD, nearest pixels down and up,
then a blur from above to below alone. random_kernel: a kernel drawn for each image and direction."""
KERNELS = ("nearest", "bilinear", "area", "bicubic")
"""Of `random_kernel`; without antialiasing, as OpenCV has them."""
RELEASED_BLUR = (0.1, 2.0)
"""Deviations along rows and columns, pixels; the released code means a range of deviations, and gets these two."""


def degraded(images: Float[Tensor, "b c s s"], side: int, mode: Degradation = "bicubic") -> Float[Tensor, "b c s s"]:
    """Images of `side` pixels, resized back; of their own side, as they are in every mode.

    PyTorch's global random state draws for `random_kernel`.

    Raises:
        UsageError: `side` is not between 1 and that of the images.
    """
    largest = images.shape[-1]
    if not 1 <= side <= largest:
        raise UsageError(f"an image of {largest} pixels cannot be degraded to {side}; write 1 to {largest}")
    if side == largest:
        return images
    match mode:
        case "bicubic":
            small = F.interpolate(images, size=(side, side), mode="bicubic", antialias=True)
            return F.interpolate(small, size=(largest, largest), mode="bicubic")
        case "askd_release":
            resized = _there_and_back(images, side, "nearest", "nearest")
            blurred: Tensor = gaussian_blur(resized, [5, 5], list(RELEASED_BLUR))
            return blurred
        case "random_kernel":
            return _by_random_kernels(images, side)


def randomly_degraded(
    images: Float[Tensor, "b c s s"], sides: Sequence[int], mode: Degradation = "bicubic"
) -> Float[Tensor, "b c s s"]:
    """Each image degraded to one of `sides`, all equally likely; PyTorch's global random state draws.

    Raises:
        UsageError: a side is not between 1 and that of the images.
    """
    drawn = torch.randint(len(sides), (len(images),))
    result = images.clone()
    for index in drawn.unique().tolist():
        chosen = (drawn == index).to(images.device)
        result[chosen] = degraded(images[chosen], sides[index], mode)
    return result


def _by_random_kernels(images: Float[Tensor, "b c s s"], side: int) -> Float[Tensor, "b c s s"]:
    drawn = torch.randint(len(KERNELS), (len(images), 2))
    result = torch.empty_like(images)
    for down, up in drawn.unique(dim=0).tolist():
        chosen = (drawn == torch.tensor([down, up])).all(1).to(images.device)
        result[chosen] = _there_and_back(images[chosen], side, KERNELS[down], KERNELS[up])
    return result


def _there_and_back(images: Float[Tensor, "b c s s"], side: int, down: str, up: str) -> Float[Tensor, "b c s s"]:
    small = F.interpolate(images, size=(side, side), mode=down)
    return F.interpolate(small, size=images.shape[2:], mode=up)
