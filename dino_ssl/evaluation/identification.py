"""Who is it? Rank-k identification among a large gallery, as TinyFace is measured.

Sizes: q probes, g images in the gallery, d dimensions.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from dino_ssl.evaluation.knn import COSINE, neighbours

RANKS = (1, 5, 10, 20)


def first_hits(
    probes: Float[Tensor, "q d"],
    probe_labels: Int64[Tensor, "q"],
    gallery: Float[Tensor, "g d"],
    gallery_labels: Int64[Tensor, "g"],
    *,
    most: int = max(RANKS),
) -> Int64[Tensor, "q"]:
    """The rank, from 1, of the first image of the same person; `most` + 1 where it is none of the nearest.

    Cosine similarity; of equal ones the first in the gallery is nearer. The table of all probes by all of the gallery
    is never whole in memory.

    Args:
        gallery_labels: distractors have one that no probe has.
    """
    most = min(most, len(gallery))
    _, places = neighbours(gallery, probes, most, COSINE)
    found = gallery_labels.to(places.device)[places] == probe_labels.to(places.device)[:, None]
    ranks = torch.arange(1, most + 1, device=places.device).expand_as(found)
    return ranks.masked_fill(~found, most + 1).amin(1)


def rank_rates(ranks: Int64[Tensor, "q"], at: Sequence[int] = RANKS) -> dict[int, float]:
    """Share of all probes, also those whose person is not in the gallery, whose first hit is among the first k."""
    return {k: (ranks <= k).double().mean().item() for k in at}
