"""Whose attention is shown, and what is shown of networks that have none."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from dino_ssl.errors import UsageError
from dino_ssl.evaluation.attention import mean_over_patches
from dino_ssl.evaluation.query import Query
from dino_ssl.models.attention_map import AttentionMap, NoAttention
from dino_ssl.models.backbone import Backbone

SIMILARITY_TEMPERATURE = 0.5
LEAST_WEIGHT = 1e-6
"""Smaller ones count as this much where their logarithm is taken."""
SIMILARITY_NOTE = (
    "no attention in this network: shown is how far the features of each place go along with those of the query"
)


def attention_from(attention: AttentionMap, query: Query) -> Float[Tensor, "b heads h w"]:
    """The weights that a token gives to the patches; a patch in which several queries lie, their mean.

    They sum to less than 1 where prefix tokens have a share.

    Raises:
        UsageError: the network has no such token.
    """
    mean = query.text == "mean"
    row = mean_over_patches(attention) if mean else attention.rows(_queries(attention, query)).mean(2)
    return row[..., attention.num_prefix_tokens :].reshape(*row.shape[:2], *attention.grid)


def default_query(attention: AttentionMap) -> Query:
    """Who looks where nobody is asked for."""
    return Query("cls" if attention.has_class_token and attention.num_prefix_tokens else "mean")


def _queries(attention: AttentionMap, query: Query) -> Int64[Tensor, " q"]:
    """Where the token stands among the queries, or all those of a patch.

    Raises:
        UsageError: nowhere.
    """
    prefix = attention.num_prefix_tokens
    patch = query.patch(attention.grid)
    if patch is not None:
        return attention.queries_of(*patch)
    first = int(attention.has_class_token)  # registers that come before the first one
    index = 0 if query.text == "cls" else first + query.register - 1
    if prefix == 0 or index >= prefix or (query.text == "cls" and not attention.has_class_token):
        raise UsageError(f"query={query.text}: this network has {_tokens(prefix, attention.has_class_token)}")
    return torch.tensor([index], device=attention.query.device)


def _tokens(num_prefix: int, has_class_token: bool) -> str:
    """What a network has besides patches, for people."""
    if num_prefix == 0:
        return "no class token and no registers; write mean or X,Y"
    if not has_class_token:
        return f"no class token; its registers are 1 to {num_prefix}"
    return "a class token and " + (f"registers 1 to {num_prefix - 1}" if num_prefix > 1 else "no registers")


def asked_by_patch(attention: AttentionMap) -> AttentionMap:
    """The same weights as factors of their own: a query for each patch, the mean over those that lie in it; no bias.

    For networks without prefix tokens. What is no product of few numbers needs as many as there are patches: the
    logarithms of the weights are the queries.
    """
    (rows, columns), side = attention.grid, attention.queries_per_patch
    assert attention.num_prefix_tokens == 0
    parts = []
    for row in range(rows):
        queries = slice(row * side * columns * side, (row + 1) * side * columns * side)
        parts.append(attention.rows(queries).unflatten(2, (side, columns, side)).mean((2, 4)))
    logits = torch.cat(parts, 2).clamp_min(LEAST_WEIGHT).log()
    logits = logits - (logits.amax(-1, keepdim=True) + logits.amin(-1, keepdim=True)) / 2  # short ones round best
    key = torch.eye(rows * columns, device=logits.device).expand(*logits.shape[:2], -1, -1)
    return AttentionMap(logits, key, attention.grid, 0, has_class_token=False)


def num_shown_blocks(backbone: Backbone) -> int:
    """Blocks of which there is something to show."""
    return max(1, backbone.num_attention_blocks)


def attention_or_similarity(
    backbone: Backbone, images: Float[Tensor, "b c x y"], block: int
) -> tuple[AttentionMap, str]:
    """A block's attention, or what comes nearest to it, and a note on that; none where it is attention.

    Raises:
        UsageError: the network has no such block.
    """
    try:
        attention = backbone.attention(images, block)
    except NoAttention as reason:
        if block not in (-1, 0):
            raise UsageError(
                f"block={block}: {reason}; what is shown in its place is of the last block; write -1"
            ) from None
        return similarity(backbone.patch_features(images)), SIMILARITY_NOTE
    return attention, ""


def similarity(features: Float[Tensor, "b d h w"]) -> AttentionMap:
    """How far each place of a feature map reaches in the direction of another, or of their mean, as one head.

    The mean, which is what such networks make of an image, plays the class token. Lengths count in units of the mean
    length: by its direction alone the mean is nearest to places that are half object and half background, while the
    long ones, of which it is made, lie on the object. No gradients are needed.
    """
    places = features.flatten(2).transpose(1, 2)
    tokens = torch.cat([places.mean(1, keepdim=True), places], dim=1)[:, None]
    length = places.norm(dim=-1).mean(1)[:, None, None, None].clamp_min(1e-12)
    query, grid = F.normalize(tokens, dim=-1) / SIMILARITY_TEMPERATURE, (features.shape[2], features.shape[3])
    return AttentionMap(query, tokens / length, grid, num_prefix_tokens=1)
