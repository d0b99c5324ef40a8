"""Whose attention is shown, and what is shown of networks that have none."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from dino_ssl.errors import UsageError
from dino_ssl.evaluation.attention import mean_over_patches
from dino_ssl.evaluation.query import Query
from dino_ssl.models.attention_map import AttentionMap, NoAttention
from dino_ssl.models.backbone import Backbone

SIMILARITY_TEMPERATURE = 0.5
SIMILARITY_NOTE = (
    "no attention in this network: shown is how far the features of each place go along with those of the query"
)


def attention_from(attention: AttentionMap, query: Query) -> Float[Tensor, "b heads h w"]:
    """The weights that a token gives to the patches.

    They sum to less than 1 where prefix tokens have a share.

    Raises:
        UsageError: the network has no such token.
    """
    if query.text == "mean":
        row = mean_over_patches(attention)
    else:
        row = attention.rows(torch.tensor([_index(attention, query)], device=attention.query.device))[:, :, 0]
    return row[..., attention.num_prefix_tokens :].reshape(*row.shape[:2], *attention.grid)


def default_query(attention: AttentionMap) -> Query:
    """Who looks where nobody is asked for."""
    return Query("cls" if attention.has_class_token and attention.num_prefix_tokens else "mean")


def _index(attention: AttentionMap, query: Query) -> int:
    """Where the token stands among the queries.

    Raises:
        UsageError: nowhere.
    """
    prefix = attention.num_prefix_tokens
    patch = query.patch(attention.grid)
    if patch is not None:
        if attention.query.shape[2] != attention.key.shape[2]:
            raise UsageError(f"query={query.text}: queries and keys of this network lie on different grids; write mean")
        return prefix + patch[0] * attention.grid[1] + patch[1]
    first = int(attention.has_class_token)  # registers that come before the first one
    index = 0 if query.text == "cls" else first + query.register - 1
    if prefix == 0 or index >= prefix or (query.text == "cls" and not attention.has_class_token):
        raise UsageError(f"query={query.text}: this network has {_tokens(prefix, attention.has_class_token)}")
    return index


def _tokens(num_prefix: int, has_class_token: bool) -> str:
    """What a network has besides patches, for people."""
    if num_prefix == 0:
        return "no class token and no registers; write mean or X,Y"
    if not has_class_token:
        return f"no class token; its registers are 1 to {num_prefix}"
    return "a class token and " + (f"registers 1 to {num_prefix - 1}" if num_prefix > 1 else "no registers")


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
