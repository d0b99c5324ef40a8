"""Learnt biases for every pair of a query's and a key's place, which adapt to other grids."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

Grid = tuple[int, int]
"""Rows and columns."""
RELATIVE_STD = 0.02


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
    """What attention adds to its logits for every pair of places; evaluation keeps the last table it made.

    Args:
        queries: grid that it is made for.
        keys: likewise.
    """

    def __init__(self, queries: Grid, keys: Grid) -> None:
        super().__init__()
        self.queries, self.keys = queries, keys
        self._kept: tuple[tuple[object, ...], Tensor] | None = None

    def forward(self, queries: Grid, keys: Grid) -> Float[Tensor, "heads _new_queries _new_keys"]:
        """The bias for these grids, differentiable."""
        learnt = self.learnt()
        if self.training or torch.is_grad_enabled() or torch.compiler.is_compiling() or learnt.is_inference():
            return self.table(queries, keys)
        # An optimiser's step, a copied state and a move to a device each change one of these.
        key = (queries, keys, learnt._version, learnt.data_ptr(), learnt.device, learnt.dtype)
        if self._kept is None or self._kept[0] != key:
            self._kept = key, self.table(queries, keys)
        return self._kept[1]

    def learnt(self) -> nn.Parameter:
        """All that it learns."""
        raise NotImplementedError

    def table(self, queries: Grid, keys: Grid) -> Float[Tensor, "heads _new_queries _new_keys"]:
        """The bias for these grids, computed."""
        raise NotImplementedError


class FreeBias(PositionBias):
    """A free number for each head, query and key (Guo et al., arXiv:2107.06263), drawn from a standard normal."""

    def __init__(self, num_heads: int, queries: Grid, keys: Grid) -> None:
        super().__init__(queries, keys)
        self.weight = nn.Parameter(torch.randn(num_heads, queries[0] * queries[1], keys[0] * keys[1]))

    def learnt(self) -> nn.Parameter:
        return self.weight

    def table(self, queries: Grid, keys: Grid) -> Float[Tensor, "heads _new_queries _new_keys"]:
        if (queries, keys) == (self.queries, self.keys):
            return self.weight
        return resize_bias(self.weight, queries=(self.queries, queries), keys=(self.keys, keys))


class RelativeBias(PositionBias):
    """A number for each head and each way from a key's centre to a query, drawn from a normal of std 0.02.

    A key stands for a square of places, whose centre may lie between them, so that ways along an axis are whole or
    half numbers of places, `2 * queries - reduction` of them in steps of 1 and the same to both sides. On other grids
    the same share of the picture is the same way.
    """

    def __init__(self, num_heads: int, queries: Grid, keys: Grid) -> None:
        super().__init__(queries, keys)
        # Named so that it has no weight decay, as all biases.
        self.bias = nn.Parameter(torch.randn(num_heads, *_num_ways(queries, keys)) * RELATIVE_STD)

    def learnt(self) -> nn.Parameter:
        return self.bias

    def table(self, queries: Grid, keys: Grid) -> Float[Tensor, "heads _new_queries _new_keys"]:
        ways = self.bias if queries == self.queries else self._resampled(queries, keys)
        for axis in (0, 1):
            # A window for each key holds all queries; the last window is that of the first key.
            ways = ways.unfold(1 + axis, queries[axis], queries[axis] // keys[axis]).flip(1 + axis)
        return ways.permute(0, 3, 4, 1, 2).flatten(3, 4).flatten(1, 2)

    def _resampled(self, queries: Grid, keys: Grid) -> Float[Tensor, "heads _rows _columns"]:
        """The ways of another grid, bicubic; beyond the longest way the table goes on as it ends."""
        exact = self.bias.to(torch.promote_types(self.bias.dtype, torch.float32))
        rows, columns = (
            (torch.arange(new, device=exact.device, dtype=exact.dtype) - (new - 1) / 2) * old_side / new_side * 2 / old
            for new, old, new_side, old_side in zip(
                _num_ways(queries, keys), self.bias.shape[1:], queries, self.queries, strict=True
            )
        )
        places = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), -1)[None]
        sampled = F.grid_sample(exact[None], places, mode="bicubic", padding_mode="border", align_corners=False)
        return sampled[0].to(self.bias.dtype)


def _num_ways(queries: Grid, keys: Grid) -> Grid:
    """Different ways between a key's centre and a query along each axis."""
    rows, columns = (2 * query - query // key for query, key in zip(queries, keys, strict=True))
    return rows, columns
