"""What a backbone says of its attention."""

from dataclasses import dataclass
from math import isqrt

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from dino_ssl.errors import UsageError


class NoAttention(UsageError):  # noqa: N818  (an answer to a question, not a fault)
    """What an architecture without attention, or one whose attention cannot be read, says when it is asked for it."""


@dataclass(frozen=True)
class AttentionMap:
    """Attention of one block, as the factors of its logits: the table of all weights can be large, and is rarely asked.

    Attributes:
        query: already scaled, so that logits are its products with the keys.
        key: of prefix tokens first, then of patches, row by row.
        grid: rows and columns of the keys that are patches.
        num_prefix_tokens: keys before the patches (class token, registers), and queries before those of the patches.
        bias: added to the logits (relative positions), where there is one.
        has_class_token: whether the first prefix token, if there is any, is one.
    """

    query: Float[Tensor, "b heads queries e"]
    key: Float[Tensor, "b heads keys e"]
    grid: tuple[int, int]
    num_prefix_tokens: int
    bias: Float[Tensor, "heads queries keys"] | None = None
    has_class_token: bool = True

    @property
    def queries_per_patch(self) -> int:
        """Queries along a side of each patch, where queries lie on a finer grid than keys; 1 where on the same."""
        return isqrt((self.query.shape[2] - self.num_prefix_tokens) // (self.grid[0] * self.grid[1]))

    def queries_of(self, row: int, column: int) -> Int64[Tensor, " q"]:
        """Where the queries that lie in a patch stand among all."""
        side = self.queries_per_patch
        inside = torch.arange(side, device=self.query.device)
        rows, columns = row * side + inside, column * side + inside
        return self.num_prefix_tokens + (rows[:, None] * self.grid[1] * side + columns).flatten()

    @property
    def weights(self) -> Float[Tensor, "b heads queries keys"]:
        """For each query, non-negative weights over the keys that sum to 1."""
        return self.rows(slice(None))

    def rows(self, queries: slice | Int64[Tensor, " q"]) -> Float[Tensor, "b heads q keys"]:
        """The weights of some queries alone."""
        return self.logits(queries).softmax(dim=-1)

    def logits(self, queries: slice | Int64[Tensor, " q"]) -> Float[Tensor, "b heads q keys"]:
        """What `rows` are the softmax of."""
        logits = self.query[:, :, queries] @ self.key.transpose(-2, -1)
        return logits if self.bias is None else logits + self.bias[:, queries]
