"""A-SKD: a student that sees fewer pixels learns to look where its teacher looks.

Sizes: b images, n blocks, c channels.

Source: Shin et al., Teaching Where to Look, ECCV 2022, arXiv:2209.14498; on self-attention it is our own.
"""

from collections.abc import Sequence
from math import log
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from dino_ssl.models.attention_map import AttentionMap
from dino_ssl.models.cbam import Gates

Reduction = Literal["sum", "mean"]
RELEASED_WEIGHTS: dict[Reduction, float] = {"sum": 5.0, "mean": 80.0}
"""Of the released code, and of its authors' next one; of 24 blocks with two gates each, 80 / 48 = 1.67 for each."""
Rows = Literal["saliency", "all"]
"""saliency: one row for each head, of the class token over the patches, or without one the mean over all queries;
all: the row of every query."""
Measure = Literal["kl", "centred"]
"""kl: KL(teacher || student) of rows as distributions; centred: 1 - cosine of their logits less the mean."""


def gate_distances(
    student: Sequence[Gates], teacher: Sequence[Gates], *, after_sigmoid: bool = False
) -> Float[Tensor, "n 2"]:
    """1 - cosine of the gates on channels and on places of each block, averaged over images.

    Args:
        after_sigmoid: compares what multiplies the features. Independent gates are alike there, 0.85 at logits of
            deviation 1, which leaves little to learn from; before it they are not.
    """
    blocks = []
    for ours, theirs in zip(student, teacher, strict=True):
        channel = _gate_distance(ours.channel, theirs.channel, after_sigmoid)
        blocks.append(torch.stack((channel, _gate_distance(ours.spatial, theirs.spatial, after_sigmoid))))
    return torch.stack(blocks)


def _gate_distance(
    student: Float[Tensor, "b *places"], teacher: Float[Tensor, "b *places"], after_sigmoid: bool
) -> Float[Tensor, ""]:
    ours, theirs = student.float().flatten(1), teacher.detach().float().flatten(1)
    if after_sigmoid:
        ours, theirs = ours.sigmoid(), theirs.sigmoid()
    return 1 - F.cosine_similarity(ours, theirs, dim=1).mean()


def attention_distance(
    student: AttentionMap,
    teacher: AttentionMap,
    *,
    rows: Rows = "saliency",
    measure: Measure = "kl",
    temperature: float = 1.0,
) -> Float[Tensor, ""]:
    """How far the attention of a block is from that of the teacher's, averaged over images, heads and rows.

    Cosines of the distributions themselves would say little: independent ones have 0.40 at logits of deviation 1.

    Args:
        temperature: divides the logits; a KL is multiplied by its square.
    """
    ours = log_rows(student, rows, temperature)
    theirs = log_rows(teacher, rows, temperature).detach()
    if measure == "kl":
        return temperature**2 * F.kl_div(ours, theirs, reduction="none", log_target=True).sum(-1).mean()
    # A log-probability is its logit less what all of its row have in common.
    centred, towards = (x - x.mean(-1, keepdim=True) for x in (ours, theirs))
    return 1 - F.cosine_similarity(centred, towards, dim=-1).mean()


def log_rows(attention: AttentionMap, rows: Rows, temperature: float = 1.0) -> Float[Tensor, "b heads q keys"]:
    """Logarithms of rows that sum to 1, in float32; those of `saliency` over the patches alone."""
    patches = slice(attention.num_prefix_tokens, None)
    if rows == "all":
        return _log_softmax(attention.logits(slice(None)) / temperature)
    if attention.has_class_token and attention.num_prefix_tokens:
        return _log_softmax(attention.logits(slice(0, 1))[..., patches] / temperature)
    each = _log_softmax(attention.logits(patches)[..., patches] / temperature)
    return each.logsumexp(2, keepdim=True) - log(each.shape[2])


def _log_softmax(logits: Float[Tensor, "b heads q keys"]) -> Float[Tensor, "b heads q keys"]:
    return logits.float().log_softmax(-1)
