"""What one block of a backbone says of its images."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from dino_ssl.errors import UsageError


@dataclass(frozen=True)
class BlockFeatures:
    """Features after the network's final norm, if it has one.

    Attributes:
        pooled: the class token; in networks without one, the mean over the grid.
        patches: on their grid.
    """

    pooled: Float[Tensor, "b d"]
    patches: Float[Tensor, "b d h w"]


def only_block(name: str, n: int, patches: Float[Tensor, "b d h w"]) -> list[BlockFeatures]:
    """The last n blocks of a network whose last feature map alone is to be had.

    Raises:
        UsageError: n is not 1.
    """
    if n != 1:
        raise UsageError(f"blocks={n}: {name} gives its last feature map alone; write 1, or take a ViT")
    return [BlockFeatures(patches.mean((2, 3)), patches)]
