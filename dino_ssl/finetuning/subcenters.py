"""Offline cleaning: which images a network with several centres for each class believes.

Sizes: n images, k classes, s centres of a class, d dimensions.

Source: Deng et al., Sub-center ArcFace, ECCV 2020, section 3.4.
"""

from dataclasses import dataclass
from math import cos, radians

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Cleaned:
    """What to train again on, from scratch with one centre for each class.

    Attributes:
        kept: numbers of the images that stay, ascending.
        labels: theirs, counted anew without the classes of which nothing is left.
        classes: old number of each new class.
    """

    kept: Int64[Tensor, " m"]
    labels: Int64[Tensor, " m"]
    classes: Int64[Tensor, " c"]


def cleaned(
    features: Float[Tensor, "n d"],
    labels: Int64[Tensor, " n"],
    centres: Float[Tensor, "k s d"],
    *,
    most_degrees: float = 75.0,
) -> Cleaned:
    """Images that lie near the dominant centre of their class: the one that is nearest to most of its images.

    Of centres with as many images the first is the dominant one.

    Args:
        most_degrees: angle to that centre at which an image is dropped.
    """
    cosines = torch.einsum("nd,nsd->ns", F.normalize(features, dim=1), F.normalize(centres, dim=2)[labels])
    num_classes, num_centres = centres.shape[:2]
    votes = (labels * num_centres + cosines.argmax(1)).bincount(minlength=num_classes * num_centres)
    dominant = votes.view(num_classes, num_centres).argmax(1)
    near = cosines.gather(1, dominant[labels][:, None]).squeeze(1) > cos(radians(most_degrees))
    kept = near.nonzero().squeeze(1)
    classes, renumbered = labels[kept].unique(return_inverse=True)
    return Cleaned(kept, renumbered, classes)
