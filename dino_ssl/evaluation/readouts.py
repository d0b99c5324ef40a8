"""What is asked of a backbone about its images: what it pools, or its last blocks one by one."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Readout:
    """A function from (backbone, normalised images) to features [b, ...].

    Attributes:
        name: of what it reads, in the keys of caches; another function has another name.
    """

    name: str
    read: Callable[[Any, Tensor], Tensor]

    def __call__(self, backbone: Any, images: Float[Tensor, "b c y x"]) -> Float[Tensor, "b ..."]:
        return self.read(backbone, images)


def blocks(number: int) -> Readout:
    """[b, number, 2, d]: of each of the last blocks, earliest first, its pooled and its mean patch features."""

    def read(backbone: Any, images: Tensor) -> Tensor:
        found = backbone.last_blocks(images, number)
        return torch.stack([torch.stack((one.pooled, one.patches.mean((2, 3))), 1) for one in found], 1)

    return Readout(f"blocks{number}", read)


POOLED = Readout("pooled", lambda backbone, images: backbone(images))
"""[b, embed_dim]: what calling the backbone gives."""
