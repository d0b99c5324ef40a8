"""The patches that hold most of the attention."""

from jaxtyping import Bool, Float
from torch import Tensor

ROUNDING = 1e-9
"""Sums this close to the threshold, in float64, are taken for equal to it; weights come in float32."""


def mass_mask(maps: Float[Tensor, "*maps h w"], mass: float) -> Bool[Tensor, "*maps h w"]:
    """The fewest patches of each map that hold `mass` of its sum.

    The weights are sorted from small to large and summed up; those at which the sum exceeds 1 - mass stay. Of equal
    weights at the border, those further down, then further right, stay.

    Args:
        maps: non-negative; each is divided by its own sum first.
        mass: in (0, 1].
    Source: facebookresearch/dino, `visualize_attention.py`; the mass of the paper's figures is 0.6.
    """
    flat = maps.flatten(-2).double()
    weights, order = flat.sort(dim=-1, stable=True)
    sums = weights.cumsum(-1)
    kept = sums > (1 - mass + ROUNDING) * sums[..., -1:]
    return kept.gather(-1, order.argsort(-1)).view(maps.shape)
