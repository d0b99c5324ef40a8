"""What a backbone says of its attention."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class AttentionMap:
    """Attention of one block.

    Attributes:
        weights: for each query, non-negative weights over the keys that sum to 1.
        grid: rows and columns of the keys that are patches.
        num_prefix_tokens: keys before the patches (class token, registers).
    """

    weights: Float[Tensor, "b heads queries keys"]
    grid: tuple[int, int]
    num_prefix_tokens: int
