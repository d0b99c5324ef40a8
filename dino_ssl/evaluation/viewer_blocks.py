"""The attention of a block as text: the factors of its logits in a few bits, from which the viewer computes any row."""

import base64

import torch
from jaxtyping import Float
from torch import Tensor

from dino_ssl.errors import UsageError
from dino_ssl.models.attention_map import AttentionMap

MEASURED_QUERIES = 64


def check(attention: AttentionMap, name: str) -> None:
    """Refuse what the viewer cannot show.

    Args:
        name: says whose attention it is.
    Raises:
        UsageError: attention of several images, with a bias, with other queries than keys, or not finite.
    """
    (num_images, _, num_queries, _), num_keys = attention.query.shape, attention.key.shape[2]
    if num_images != 1:
        raise UsageError(f"{name} is attention of {num_images} images; give the viewer one at a time")
    if attention.bias is not None:
        raise UsageError(f"{name} adds a bias to its logits, which the viewer does not know; leave --viewer out")
    if num_queries != num_keys:
        raise UsageError(f"{name} has {num_queries} queries for {num_keys} keys, not one for each; leave --viewer out")
    if not (attention.query.isfinite().all() and attention.key.isfinite().all()):
        raise UsageError(f"{name} is not finite: the weights are damaged or the model has diverged; choose others")


def num_bytes(attention: AttentionMap, bits: int) -> int:
    """Length of `packed` without packing."""
    _, heads, num_queries, width = attention.query.shape
    return (heads * (num_queries + attention.key.shape[2]) * (4 + width * bits // 8) + 2) // 3 * 4


def packed(attention: AttentionMap, bits: int) -> str:
    """The factors in base64, little-endian: scales of queries and of keys (float32), queries, keys (integers).

    Compression would take off 4 to 9 % at 8 bits (DINOv2 ViT-S/14): not worth its code.
    """
    whole = f"<i{bits // 8}"
    factors = _factors(attention, bits)
    scales = [scale.numpy().astype("<f4").tobytes() for _, scale in factors]
    values = [values.numpy().astype(whole).tobytes() for values, _ in factors]
    return base64.b64encode(b"".join(scales + values)).decode()


def errors(attention: AttentionMap, bits: int) -> tuple[float, float]:
    """How far the viewer's weights are from the exact ones, over queries spread evenly over all.

    Returns:
        The largest difference of a weight, and the mean share of a query's weight that lies elsewhere.
    """
    num_queries = attention.query.shape[2]
    queries = torch.linspace(0, num_queries - 1, min(num_queries, MEASURED_QUERIES)).long()
    query, key = (values * scale for values, scale in _factors(attention, bits))
    seen = AttentionMap(query, key, attention.grid, attention.num_prefix_tokens)
    difference = (seen.rows(queries) - attention.rows(queries)).abs()
    return float(difference.max()), float(difference.sum(-1).mean() / 2)


def _factors(attention: AttentionMap, bits: int) -> list[tuple[Tensor, Tensor]]:
    """Whole numbers and scales of the queries, and of the keys.

    What all keys share moves all logits of a query alike, so that the softmax does not see it. Without it the numbers
    are smaller, and rounding changes the weights of a last block half as much.
    """
    centred = attention.key - attention.key.mean(2, keepdim=True)
    return [_rounded(attention.query, bits), _rounded(centred, bits)]


def _rounded(
    tokens: Float[Tensor, "1 heads t e"], bits: int
) -> tuple[Float[Tensor, "1 heads t e"], Float[Tensor, "1 heads t 1"]]:
    """Whole numbers of `bits` with a sign, and the scale of each token; their products are nearly `tokens`."""
    largest = 2 ** (bits - 1) - 1
    scale = (tokens.abs().amax(-1, keepdim=True) / largest).clamp_min(torch.finfo(torch.float32).tiny)
    return (tokens / scale).round(), scale
