"""Knowledge review: what the deep stages of a student know is compared with the shallow stages of a teacher, too.

Levels are the maps of both networks, finest first, the pooled features as a last map of one place; n of them. All
modules here serve training only and are thrown away with it.

Source: Chen et al. 2021, arXiv:2104.09044; the maps' sizes are the teacher's, whatever they are.
"""

from collections.abc import Sequence
from functools import reduce
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

Design = Literal["same", "review", "fusion", "residual"]
POOLED_SIDES = (4, 2, 1)
"""Sides to which HCL pools, each with half the weight of the one before."""


def hierarchical_context_loss(
    student: Float[Tensor, "b c h w"], teacher: Float[Tensor, "b c h w"]
) -> Float[Tensor, ""]:
    """Mean squared error of the maps and of their averages over 4x4, 2x2 and 1x1 parts, weighted 1, 1/2, 1/4, 1/8.

    Only what is coarser than the maps counts, and the weights are divided by their sum. Of a map that is coarse along
    one side only, that side stays as it is.

    Source: section 3.4 (HCL), with the weights of the released code.
    """
    sides = [side for side in POOLED_SIDES if side < max(student.shape[2:])]
    loss, total = F.mse_loss(student, teacher), 1.0
    for halvings, side in enumerate(sides, 1):
        grid = (min(side, student.shape[2]), min(side, student.shape[3]))
        ours, theirs = (F.adaptive_avg_pool2d(maps, grid) for maps in (student, teacher))
        loss = loss + 0.5**halvings * F.mse_loss(ours, theirs)
        total += 0.5**halvings
    return loss / total


def resized(maps: Float[Tensor, "b c _h _w"], size: Sequence[int]) -> Float[Tensor, "b c _i _j"]:
    """The nearest place of the map for each of a grid of `size`."""
    return maps if maps.shape[2:] == torch.Size(size) else F.interpolate(maps, tuple(size), mode="nearest")


def standardized(maps: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """Mean 0 and deviation 1 over the channels of each place: for teachers whose scale is arbitrary (ViT, CMT)."""
    return F.layer_norm(maps.movedim(1, -1), maps.shape[1:2]).movedim(-1, 1)


class Transform(nn.Module):
    """Student's channels to the teacher's by a 1x1 convolution and BN, then the teacher's grid."""

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.project = _project(in_dim, out_dim, 1)

    def forward(self, maps: Float[Tensor, "b c _h _w"], size: Sequence[int]) -> Float[Tensor, "b d _i _j"]:
        return resized(self.project(maps), size)


class AttentionFusion(nn.Module):
    """A stage's features and those of all deeper stages, weighed place by place (ABF).

    Args:
        mid_dim: channels in which both are weighed and handed on.
        num_inputs: maps that are fused; one alone passes as it is.
        attends: False adds them, each with the weight 1.

    Source: section 3.3. The maps are resized to the nearest place; weights are sigmoids, one map per input.
    """

    def __init__(self, in_dim: int, mid_dim: int, out_dim: int, *, num_inputs: int, attends: bool = True) -> None:
        super().__init__()
        self.reduce = _project(in_dim, mid_dim, 1)
        self.weigh = nn.Conv2d(num_inputs * mid_dim, num_inputs, 1) if attends and num_inputs > 1 else None
        self.expand = _project(mid_dim, out_dim, 3)

    def forward(
        self, maps: Float[Tensor, "b c _h _w"], deeper: Sequence[Float[Tensor, "b m _k _l"]], size: Sequence[int]
    ) -> tuple[Float[Tensor, "b d _i _j"], Float[Tensor, "b m _i _j"]]:
        """What the teacher's level is compared with, and what the next shallower level gets.

        Args:
            size: of the teacher's level.
        """
        reduced = self.reduce(maps)
        fused = resized(self._sum([reduced, *(resized(other, reduced.shape[2:]) for other in deeper)]), size)
        return self.expand(fused), fused

    def _sum(self, inputs: list[Float[Tensor, "b m h w"]]) -> Float[Tensor, "b m h w"]:
        if self.weigh is not None:
            weights = torch.sigmoid(self.weigh(torch.cat(inputs, 1))).split(1, 1)
            inputs = [weight * maps for weight, maps in zip(weights, inputs, strict=True)]
        return reduce(torch.add, inputs)


class KnowledgeReview(nn.Module):
    """The distance between a student's levels and a teacher's, in one of the paper's four designs (its figure 3).

    Args:
        student_dims, teacher_dims: channels of the levels, finest first; as many of both.
        design: (a) same: each level to the teacher's of its number; (b) review: each level to the teacher's of its
            number and all shallower ones, n(n+1)/2 terms; (c) fusion: a level and all deeper ones, fused at once, to
            the teacher's; (d) residual: the same, handed on from the deepest to the finest.
        pair: of the designs same and review: only this level of the student to this one of the teacher, from 0.
        mid_limit: most channels in which levels are fused; they are the student's deepest otherwise.
        attends: fuse by attention (ABF), or else by adding.
        hierarchical: HCL, or else the mean squared error.
        standardizes: `standardized` levels of the teacher.
    Raises:
        ValueError: the numbers of levels differ, or there is no such pair.
    """

    def __init__(
        self,
        student_dims: Sequence[int],
        teacher_dims: Sequence[int],
        *,
        design: Design = "residual",
        pair: tuple[int, int] | None = None,
        mid_limit: int = 512,
        attends: bool = True,
        hierarchical: bool = True,
        standardizes: bool = False,
    ) -> None:
        super().__init__()
        num = len(student_dims)
        if len(teacher_dims) != num:
            raise ValueError(f"{num} levels of the student and {len(teacher_dims)} of the teacher; give as many")
        self.design = design
        self.distance = hierarchical_context_loss if hierarchical else F.mse_loss
        self.standardizes = standardizes
        self.pairs = [pair] if pair is not None else _pairs(design, num)
        if not all(0 <= level < num for one in self.pairs for level in one):
            raise ValueError(f"pair={pair} must be two numbers from 0 to {num - 1}")
        if design in ("same", "review"):
            self.modules_of = nn.ModuleList(Transform(student_dims[i], teacher_dims[j]) for i, j in self.pairs)
            return
        mid_dim = min(mid_limit, student_dims[-1])
        inputs = [num - level if design == "fusion" else min(2, num - level) for level in range(num)]
        self.modules_of = nn.ModuleList(
            AttentionFusion(student_dims[i], mid_dim, teacher_dims[i], num_inputs=inputs[i], attends=attends)
            for i in range(num)
        )
        deeper = [(i, j) for i, j in self.pairs if i > j] if design == "fusion" else []
        self.reduce = nn.ModuleDict({f"{i}_{j}": _project(student_dims[i], mid_dim, 1) for i, j in deeper})

    def forward(
        self, student: Sequence[Float[Tensor, "b _c _h _w"]], teacher: Sequence[Float[Tensor, "b _d _k _l"]]
    ) -> Float[Tensor, ""]:
        """The sum of the terms; its gradient goes to the student and to this module, never to the teacher."""
        return torch.stack(self.terms(student, teacher)).sum()

    def terms(
        self, student: Sequence[Float[Tensor, "b _c _h _w"]], teacher: Sequence[Float[Tensor, "b _d _k _l"]]
    ) -> list[Float[Tensor, ""]]:
        """Of `pairs` in their order, or of the levels, finest first."""
        teacher = [standardized(maps.detach()) if self.standardizes else maps.detach() for maps in teacher]
        if self.design in ("same", "review"):
            compared = [
                (transform(student[i], teacher[j].shape[2:]), teacher[j])
                for transform, (i, j) in zip(self.modules_of, self.pairs, strict=True)
            ]
        else:
            compared = list(zip(self._reviewed(student, teacher), teacher, strict=True))
        return [self.distance(_precise(ours), _precise(theirs)) for ours, theirs in compared]

    def _reviewed(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> list[Tensor]:
        """Each level with all deeper ones in it, from the deepest on."""
        reviewed: list[Tensor] = []
        handed_on: list[Tensor] = []
        for level in reversed(range(len(student))):
            if self.design == "fusion":
                handed_on = [self.reduce[f"{i}_{level}"](student[i]) for i in range(level + 1, len(student))]
            ours, fused = self.modules_of[level](student[level], handed_on, teacher[level].shape[2:])
            reviewed.insert(0, ours)
            handed_on = [fused]
        return reviewed


def levels(pooled: Float[Tensor, "b d"], stages: Sequence[Float[Tensor, "b _c _h _w"]]) -> list[Tensor]:
    """The stages, and the pooled features as the last level."""
    return [*stages, pooled[:, :, None, None]]


def _precise(maps: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """float32, or what is better: autocast leaves maps in half precision."""
    return maps.to(torch.promote_types(maps.dtype, torch.float32))


def _pairs(design: Design, num: int) -> list[tuple[int, int]]:
    """Student's and teacher's levels that are compared; of fusions, that go into the teacher's."""
    if design == "same":
        return [(level, level) for level in range(num)]
    return [(i, j) for i in range(num) for j in range(i + 1)]


def _project(in_dim: int, out_dim: int, kernel: int) -> nn.Sequential:
    """Convolution and BN, with the initial weights of the released code."""
    convolution = nn.Conv2d(in_dim, out_dim, kernel, padding=kernel // 2, bias=False)
    nn.init.kaiming_uniform_(convolution.weight, a=1)
    return nn.Sequential(convolution, nn.BatchNorm2d(out_dim))
