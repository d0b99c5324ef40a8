"""A learnt bias for every pair of a query's and a key's place, which adapts to other grids."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

Grid = tuple[int, int]
"""Rows and columns."""


def resize_bias(
    bias: Float[Tensor, "heads _queries _keys"], *, queries: tuple[Grid, Grid], keys: tuple[Grid, Grid]
) -> Float[Tensor, "heads _new_queries _new_keys"]:
    """Resample a bias over the grid of its queries, then over that of its keys.

    A row of the table is a picture of all keys, a column one of all queries; the table itself is no picture: its
    neighbours may lie at opposite ends of two rows, and resampled as one, it would lose what it says of distances.

    Args:
        queries: grid that the bias was made for, and the wished one.
        keys: likewise.
    """
    return _resample(_resample(bias.mT, *queries).mT, *keys)


def _resample(
    tables: Float[Tensor, "heads channels _places"], old: Grid, new: Grid
) -> Float[Tensor, "heads channels _new_places"]:
    if old == new:
        return tables
    exact = tables.to(torch.promote_types(tables.dtype, torch.float32))
    resized = F.interpolate(exact.unflatten(2, old), size=new, mode="bicubic", align_corners=False)
    return resized.flatten(2).to(tables.dtype)


class PositionBias(nn.Module):
    """A free number for each head, query and key (Guo et al., arXiv:2107.06263), drawn from a standard normal.

    Args:
        queries: grid that the table is made for; other grids resample it.
        keys: likewise.
    """

    def __init__(self, num_heads: int, queries: Grid, keys: Grid) -> None:
        super().__init__()
        self.queries, self.keys = queries, keys
        self.weight = nn.Parameter(torch.randn(num_heads, queries[0] * queries[1], keys[0] * keys[1]))
        self._kept: tuple[tuple[object, ...], Tensor] | None = None

    def forward(self, queries: Grid, keys: Grid) -> Float[Tensor, "heads _new_queries _new_keys"]:
        """The table for these grids, differentiable; evaluation keeps the last one."""
        if (queries, keys) == (self.queries, self.keys):
            return self.weight
        if self.training or torch.is_grad_enabled() or torch.compiler.is_compiling() or self.weight.is_inference():
            return self._resized(queries, keys)
        # An optimiser's step, a copied state and a move to a device each change one of these.
        weight = self.weight
        key = (queries, keys, weight._version, weight.data_ptr(), weight.device, weight.dtype)
        if self._kept is None or self._kept[0] != key:
            self._kept = key, self._resized(queries, keys)
        return self._kept[1]

    def _resized(self, queries: Grid, keys: Grid) -> Tensor:
        return resize_bias(self.weight, queries=(self.queries, queries), keys=(self.keys, keys))
