"""Partial FC: a classifier of very many classes, whose centres are shared out among ranks and sampled in every step.

Sizes: b images of all ranks, n images of this rank, k classes of this rank, c of them used, s centres of a class,
d dimensions.

Source: An et al., Killing Two Birds with One Stone, CVPR 2022, arXiv:2203.15565, and its released code (version 2).
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from dino_ssl.finetuning.margins import Margin, class_cosines, margin_logits
from dino_ssl.training import distributed, sharding

DRAWN_AT_ONCE = 4096
"""Classes; all ranks draw all centres, so that these do not depend on the number of ranks."""
POSITIVE = 2.0
"""More than any random score."""


class PartialFC(nn.Module):
    """Cross-entropy over all classes of all ranks, of cosines with a margin.

    Every rank must give as many images as the others. Centres are sampled in training mode only.

    Of a sampled step, weight decay and the optimizer's memory still move the centres that were left out, as in the
    released code.

    Args:
        rate: share of each rank's classes that a step compares with; those of the images of the step always.
        num_centres: for each class; the nearest counts.
        filter_above: see `margin_logits`.
    """

    def __init__(
        self,
        embed_dim: int,
        num_classes: int,
        margin: Margin,
        *,
        scale: float,
        num_centres: int = 1,
        rate: float = 1.0,
        filter_above: float = 1.0,
        device: torch.device,
    ) -> None:
        super().__init__()
        self.margin, self.scale, self.rate, self.filter_above = margin, scale, rate, filter_above
        self.own = sharding.own_rows(num_classes)
        rows = _drawn(num_classes, (num_centres, embed_dim), self.own).to(device)
        self.centres = nn.Parameter(sharding.of_own_rows(rows, num_classes))

    def forward(self, embeddings: Float[Tensor, "n d"], labels: Int64[Tensor, " n"]) -> Float[Tensor, ""]:
        """Mean loss of the images of all ranks, on every rank."""
        everyone = distributed.gather_rows(embeddings)
        own = own_labels(distributed.gather_rows(labels), self.own)
        (centres,) = sharding.local([self.centres])
        if self.rate < 1 and self.training:
            chosen = sampled(own, len(self.own), self.rate)
            # Ascending, so that an image's class is found where it would have to be put in.
            own = torch.searchsorted(chosen, own).where(own >= 0, -1)
            centres = centres[chosen]
        cosines = class_cosines(everyone, centres)
        logits = margin_logits(cosines, own, self.margin, scale=self.scale, filter_above=self.filter_above)
        return cross_entropy_of_parts(logits, own)


def own_labels(labels: Int64[Tensor, " b"], own: range) -> Int64[Tensor, " b"]:
    """Counted from this rank's first class; -1 for those of other ranks."""
    return (labels - own.start).where((labels >= own.start) & (labels < own.stop), -1)


def sampled(labels: Int64[Tensor, " b"], num_classes: int, rate: float) -> Int64[Tensor, " c"]:
    """Which classes to use, ascending: those of the images, and others at random, int(rate * num_classes) in all.

    More where the images alone have more.

    Args:
        labels: -1 for images of classes of other ranks.
    """
    positives = labels[labels >= 0].unique()
    scores = torch.rand(num_classes, device=labels.device)
    scores[positives] = POSITIVE
    return scores.topk(max(int(rate * num_classes), len(positives))).indices.sort().values


def cross_entropy_of_parts(logits: Float[Tensor, "b c"], labels: Int64[Tensor, " b"]) -> Float[Tensor, ""]:
    """Mean cross-entropy of images whose logits are shared out among ranks by class; the same on every rank.

    On each, the gradient is that of its own logits.

    Args:
        labels: -1 where another rank has the image's class.
    """
    images = (labels >= 0).nonzero().squeeze(1)
    own = logits.new_zeros(len(logits)).index_put((images,), logits[images, labels[images]])
    # A rank may have no class at all.
    highest = logits.detach().amax(1) if logits.shape[1] else torch.full_like(own, -torch.inf)
    highest = distributed.all_largest(highest)
    mass = (logits - highest[:, None]).exp().sum(1)
    total, target = distributed.all_sum(mass.detach()), distributed.all_sum(own.detach())
    value = (highest + total.log() - target).mean()
    # Its gradient is softmax less the target, as of the cross-entropy; its value is not.
    slope = (mass / total - own).mean()
    return value + (slope - slope.detach())


def _drawn(num_classes: int, shape: tuple[int, int], own: range) -> Float[Tensor, "k s d"]:
    """This rank's rows of a normal table of deviation 0.01, which all ranks draw from the same global state."""
    rows = [torch.zeros(0, *shape)]
    for first in range(0, num_classes, DRAWN_AT_ONCE):
        block = 0.01 * torch.randn(min(DRAWN_AT_ONCE, num_classes - first), *shape)
        rows.append(block[max(0, own.start - first) : max(0, own.stop - first)])
    return torch.cat(rows)
