"""Where a network looks: the gates of a CBAM network, or the attention of a transformer."""

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from dino_ssl.config_faces import Look
from dino_ssl.errors import UsageError
from dino_ssl.finetuning.attention_similarity import attention_distance, gate_distances
from dino_ssl.models.attention_map import AttentionMap
from dino_ssl.models.backbone import Backbone
from dino_ssl.models.block_features import BlockFeatures
from dino_ssl.models.cbam import Gates

Looks = list[Gates] | list[AttentionMap]


@runtime_checkable
class Gated(Protocol):
    """A backbone with gates in its blocks."""

    num_gates: int

    def features_and_gates(self, images: Float[Tensor, "b c x y"]) -> tuple[BlockFeatures, list[Gates]]: ...


def features_and_looks(
    backbone: Backbone, images: Float[Tensor, "b c x y"], num_blocks: int
) -> tuple[BlockFeatures, Looks]:
    """The last block's features and all gates, or the attention of the last `num_blocks` blocks, earliest first.

    Each block's attention is a pass of its own up to it.

    Raises:
        UsageError: the network has neither, or fewer blocks.
    """
    if isinstance(backbone, Gated) and backbone.num_gates:
        return backbone.features_and_gates(images)
    if num_blocks > backbone.num_attention_blocks:
        raise UsageError(
            f"look.blocks={num_blocks}: the network has {backbone.num_attention_blocks} blocks of attention, no gates; "
            "take a ViT, a CMT or an iresnet with _cbam in its name, or write --look.weight 0"
        )
    maps = [backbone.attention(images, -block) for block in range(num_blocks, 0, -1)]
    return backbone.last_blocks(images, 1)[0], maps


def shapes_of(look: Gates | AttentionMap) -> tuple[torch.Size, torch.Size]:
    """Of what it consists of."""
    return (look.channel.shape, look.spatial.shape) if isinstance(look, Gates) else (look.query.shape, look.key.shape)


def look_distance(student: Looks, teacher: Looks, knobs: Look) -> Float[Tensor, ""]:
    """As the configuration compares them, over all blocks; without its weight."""
    distances = _distances(student, teacher, knobs)
    return distances.sum() if knobs.reduction == "sum" else distances.mean()


def look_similarity(student: Looks, teacher: Looks) -> Float[Tensor, ""]:
    """Mean cosine of gates before their sigmoid, or of the centred logits of saliency; 1 where both look alike."""
    return 1 - _distances(student, teacher, Look(measure="centred")).mean()


def _distances(student: Looks, teacher: Looks, knobs: Look) -> Float[Tensor, "..."]:
    gates = [[look for look in looks if isinstance(look, Gates)] for looks in (student, teacher)]
    if gates[0]:
        return gate_distances(*gates, after_sigmoid=knobs.after_sigmoid)
    ours, theirs = ([look for look in looks if isinstance(look, AttentionMap)] for looks in (student, teacher))
    return torch.stack(
        [
            attention_distance(s, t, rows=knobs.rows, measure=knobs.measure, temperature=knobs.temperature)
            for s, t in zip(ours, theirs, strict=True)
        ]
    )
