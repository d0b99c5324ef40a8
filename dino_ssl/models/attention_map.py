"""What a backbone says of its attention."""

from dataclasses import dataclass

from jaxtyping import Float, Int64
from torch import Tensor


@dataclass(frozen=True)
class AttentionMap:
    """Attention of one block, as the factors of its logits: the table of all weights can be large, and is rarely asked.

    Attributes:
        query: already scaled, so that logits are its products with the keys.
        key: of prefix tokens first, then of patches, row by row.
        grid: rows and columns of the keys that are patches.
        num_prefix_tokens: keys before the patches (class token, registers); the class token is the first query.
        bias: added to the logits (relative positions), where there is one.
    """

    query: Float[Tensor, "b heads queries e"]
    key: Float[Tensor, "b heads keys e"]
    grid: tuple[int, int]
    num_prefix_tokens: int
    bias: Float[Tensor, "heads queries keys"] | None = None

    @property
    def weights(self) -> Float[Tensor, "b heads queries keys"]:
        """For each query, non-negative weights over the keys that sum to 1."""
        return self.rows(slice(None))

    def rows(self, queries: slice | Int64[Tensor, " q"]) -> Float[Tensor, "b heads q keys"]:
        """The weights of some queries alone."""
        logits = self.query[:, :, queries] @ self.key.transpose(-2, -1)
        if self.bias is not None:
            logits = logits + self.bias[:, queries]
        return logits.softmax(dim=-1)
