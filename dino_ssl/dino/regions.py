"""The region-level loss of EsViT: what the teacher says of the region that looks most like the student's.

Sizes: b images, n regions of a student's view, m of a teacher's, d dimensions, k prototypes.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from dino_ssl.dino.centering import Center


class Regions(NamedTuple):
    """The regions of one view: what the backbone gives for each, and what becomes of it in the head.

    Attributes:
        said: of a student logits, of a teacher probabilities.
    """

    features: Float[Tensor, "b n d"]
    said: Float[Tensor, "b n k"]


class RegionCenter(Center):
    """The centre of what is said of whole views, with one of its own for what is said of regions."""

    def __init__(self, prototypes: int, momentum: float = 0.9) -> None:
        super().__init__(prototypes, momentum)
        self.regions = Center(prototypes, momentum)


@torch.no_grad()
def best_matches(student: Float[Tensor, "b n d"], teacher: Float[Tensor, "b m d"]) -> Int64[Tensor, "b n"]:
    """For each region of the student, which of the teacher's has the largest cosine similarity."""
    # In half precision many would be alike.
    with torch.autocast(student.device.type, enabled=False):
        similarity = F.normalize(student.float(), dim=-1) @ F.normalize(teacher.float(), dim=-1).mT
    return similarity.argmax(dim=-1)


def region_loss(student: Sequence[Regions], teacher: Sequence[Regions], temperature: float) -> Float[Tensor, ""]:
    """Mean cross-entropy over all regions of all pairs of a teacher view and a different student view.

    Student views begin with the teacher's, in the same order; sizes of views, and so numbers of regions, may differ.

    Args:
        temperature: the student's, positive.
    Raises:
        ValueError: there is no pair of different views.

    Source: Li et al., arXiv:2106.09785, equation 2.
    """
    losses = []
    for s, view in enumerate(student):
        log_probabilities = torch.log_softmax(view.said.float() / temperature, dim=-1)
        for t, other in enumerate(teacher):
            if s != t:
                match = best_matches(view.features, other.features)[..., None]
                targets = other.said.gather(1, match.expand(-1, -1, other.said.shape[-1]))
                losses.append(-(targets * log_probabilities).sum(-1).mean())
    if not losses:
        raise ValueError(f"{len(teacher)} teacher and {len(student)} student views form no pair of different views")
    return torch.stack(losses).mean()
