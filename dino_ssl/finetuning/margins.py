"""Margins: the angle between an embedding and its own class's centre must be smaller than others ask for.

All is done in float32 (float64 stays), whatever autocast says: where an embedding lies on its centre, half precision
has no angles. Sizes: b images, k classes, s centres of a class, d dimensions.
"""

from dataclasses import dataclass
from math import pi, sin
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

LARGEST_COSINE = 1 - 1e-7
"""Beyond it the exact gradient of the angle is no longer finite."""
Gradient = Literal["exact", "straight_through"]


@dataclass(frozen=True)
class Margin:
    """The cosine c of the own class becomes cos(m1 arccos(c) + m2) - m3.

    ArcFace is (1, 0.5, 0) (arXiv:1801.07698), CosFace (1, 0, 0.35) (arXiv:1801.09414), the combined margins of the
    ArcFace paper (1, 0.3, 0.2) and (0.9, 0.4, 0.15).

    Attributes:
        m1, m2, m3: factor, radians, cosine; constants, whatever the number of classes.
        gradient: exact; or straight_through, which is 1, as arcface_torch has it: the exact one,
            m1 sin(m1 t + m2) / sin t, turns around where t > pi - m2, and grows where t is small.
        continuation: what follows where the moved angle is above pi: the cosine, which rises again; or linear,
            c - m2 sin m2, as A-SKD has it ("hard"), of m2 alone.
    """

    m1: float = 1.0
    m2: float = 0.5
    m3: float = 0.0
    gradient: Gradient = "exact"
    continuation: Literal["cosine", "linear"] = "cosine"

    def __post_init__(self) -> None:
        if self.continuation == "linear" and (self.m1 != 1 or self.m3 != 0):
            raise ValueError(f"a linear continuation is that of m2 alone, not of m1={self.m1} and m3={self.m3}")

    def __call__(self, cosines: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """What own cosines become; finite with a finite gradient everywhere."""
        moved = self._moved(cosines.clamp(-LARGEST_COSINE, LARGEST_COSINE))
        # The difference is 0 to the last bit; what flows back is that of the cosine.
        return moved.detach() + (cosines - cosines.detach()) if self.gradient == "straight_through" else moved

    def _moved(self, cosines: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        angle = self.m1 * cosines.arccos() + self.m2
        moved = angle.cos() - self.m3
        if self.continuation == "linear":
            return torch.where(angle > pi, cosines - self.m2 * sin(self.m2), moved)
        return moved


ARCFACE = Margin()
COSFACE = Margin(m2=0.0, m3=0.4, gradient="straight_through")


def default_margin(backbone: nn.Module) -> Margin:
    """`ARCFACE` for convolutions with batch norm, `COSFACE` for transformers and what else has no batch norm.

    With the exact gradient of ArcFace, ViTs and ConvNeXts are reported not to converge (insightface, issues 1486, 1555,
    2043, 2144); CosFace's is 1 everywhere. Its 0.4 is arcface_torch's for large data; 0.35 the paper's.
    """
    has_batch_norm = any(isinstance(module, nn.BatchNorm2d) for module in backbone.modules())
    return ARCFACE if has_batch_norm and not backbone.num_attention_blocks else COSFACE


def class_cosines(embeddings: Float[Tensor, "b d"], centres: Float[Tensor, "k s d"]) -> Float[Tensor, "b k"]:
    """Cosine with each class's nearest centre."""
    with torch.autocast(embeddings.device.type, enabled=False):
        directions, towards = (F.normalize(_precise(x), dim=-1) for x in (embeddings, centres))
        cosines: Tensor = (directions @ towards.flatten(0, 1).T).unflatten(1, centres.shape[:2])
        return cosines.amax(2)


def margin_logits(
    cosines: Float[Tensor, "b k"],
    labels: Int64[Tensor, " b"],
    margin: Margin,
    *,
    scale: float,
    filter_above: float = 1.0,
) -> Float[Tensor, "b k"]:
    """scale times the cosines, the own class's with the margin.

    Args:
        labels: -1 where the own class is not among the k.
        filter_above: other classes whose cosine is above it count as 0: of noisy labels, the image is probably of that
            class (insightface proposes 0.4); 1 filters nothing.
    """
    with torch.autocast(cosines.device.type, enabled=False):
        cosines = _precise(cosines)
        images = (labels >= 0).nonzero().squeeze(1)
        own = (images, labels[images])
        others = cosines.where(cosines <= filter_above, 0) if filter_above < 1 else cosines
        return scale * others.index_put(own, margin(cosines[own]))


def _precise(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    return x.to(torch.promote_types(x.dtype, torch.float32))
