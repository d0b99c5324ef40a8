"""What one block of a backbone says of its images."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class BlockFeatures:
    """Features after the network's final norm, if it has one.

    Attributes:
        pooled: the class token; in networks without one, the mean over the grid.
        patches: on their grid.
    """

    pooled: Float[Tensor, "b d"]
    patches: Float[Tensor, "b d h w"]
