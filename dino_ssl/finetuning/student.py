"""A student of distillation: its network, and what serves its training alone."""

from collections.abc import Sequence
from typing import cast

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from dino_ssl.config_distill import DistillConfig
from dino_ssl.errors import UsageError
from dino_ssl.finetuning.classify import Classifier, soft_cross_entropy
from dino_ssl.finetuning.distillation import (
    attention_transfer_loss,
    decoupled_loss,
    feature_cosine_loss,
    hint_loss,
    relational_angle_loss,
    relational_distance_loss,
    soft_target_loss,
)
from dino_ssl.finetuning.knowledge_review import KnowledgeReview, Transform, levels
from dino_ssl.finetuning.teacher import Lesson, taps
from dino_ssl.models.backbone import Backbone


class Student(nn.Module):
    """A backbone with a linear classifier; logits [b, k] of images, or with a lesson every loss that has a weight.

    Args:
        teacher_dims: channels of the teacher's levels.
    Raises:
        UsageError: the two networks have no such levels.
    """

    def __init__(
        self, backbone: nn.Module, num_classes: int, teacher_dims: Sequence[int], config: DistillConfig
    ) -> None:
        super().__init__()
        classifier = Classifier(backbone, num_classes, dropout=config.loss.dropout)
        self.backbone, self.head = classifier.backbone, classifier.head
        self.config = config
        own = cast(Backbone, backbone)
        dims = (*own.stage_dims, own.embed_dim)
        self.num_levels = num_levels_of(backbone, teacher_dims)
        pairs = (dims[-self.num_levels :], tuple(teacher_dims)[-self.num_levels :])
        self.review = _review(*pairs, config) if config.distill.review else None
        self.hint = _hint(*pairs, config.distill.fitnet_level) if config.distill.fitnet else None
        self.embedding = nn.Linear(dims[-1], teacher_dims[-1]) if config.distill.cosine else None

    def forward(
        self,
        images: Float[Tensor, "b c h w"],
        lesson: Lesson | None = None,
        targets: Float[Tensor, "b k"] | None = None,
        labels: Int64[Tensor, " b"] | None = None,
    ) -> Tensor | dict[str, Tensor]:
        """Losses by the names of their weights in `config_distill.Distill`, in float32."""
        if lesson is None:
            return cast(Tensor, self.head(self.backbone(images)))
        assert targets is not None and labels is not None
        pooled, stages = taps(self.backbone, preactivation=self.config.distill.student_preactivation)(images)
        logits = self.head(pooled).float()
        ours, theirs = levels(pooled, stages)[-self.num_levels :], lesson.levels[-self.num_levels :]
        return {
            "classification": soft_cross_entropy(logits, targets),
            **self._of_logits(logits, lesson.logits, labels),
            **self._of_levels(ours, theirs),
            **self._of_features(ours[-1].flatten(1).float(), theirs[-1].flatten(1).float()),
        }

    def _of_logits(self, ours: Tensor, theirs: Tensor | None, labels: Tensor) -> dict[str, Tensor]:
        knobs, found = self.config.distill, {}
        if theirs is None:
            return {}  # checked when the run was opened
        if knobs.kd:
            found["kd"] = soft_target_loss(ours, theirs.float(), knobs.temperature)
        if knobs.dkd:
            found["dkd"] = decoupled_loss(
                ours, theirs.float(), labels, knobs.temperature, alpha=knobs.dkd_target, beta=knobs.dkd_others
            )
        return found

    def _of_levels(self, ours: list[Tensor], theirs: list[Tensor]) -> dict[str, Tensor]:
        knobs, found = self.config.distill, {}
        if self.review is not None:
            found["review"] = self.review(ours, theirs)
        if self.hint is not None:
            target = theirs[knobs.fitnet_level]
            found["fitnet"] = hint_loss(self.hint(ours[knobs.fitnet_level], target.shape[2:]).float(), target.float())
        if knobs.attention_transfer:
            stages = zip(ours[:-1], theirs[:-1], strict=True)
            found["attention_transfer"] = torch.stack(
                [attention_transfer_loss(s.float(), t.float()) for s, t in stages]
            ).sum()
        return found

    def _of_features(self, ours: Float[Tensor, "b c"], theirs: Float[Tensor, "b d"]) -> dict[str, Tensor]:
        knobs, found = self.config.distill, {}
        if knobs.rkd_distance:
            found["rkd_distance"] = relational_distance_loss(ours, theirs)
        if knobs.rkd_angle:
            found["rkd_angle"] = relational_angle_loss(ours, theirs)
        if self.embedding is not None:
            found["cosine"] = feature_cosine_loss(self.embedding(ours), theirs)
        return found


def num_levels_of(backbone: nn.Module, teacher_dims: Sequence[int]) -> int:
    """Levels that both networks have: stages from the deepest on, and the pooled features."""
    return min(len(cast(Backbone, backbone).stage_dims) + 1, len(teacher_dims))


def _review(dims: Sequence[int], teacher_dims: Sequence[int], config: DistillConfig) -> KnowledgeReview:
    knobs = config.review
    try:
        return KnowledgeReview(
            dims,
            teacher_dims,
            design=knobs.design,
            pair=(knobs.pair[0], knobs.pair[1]) if knobs.pair else None,
            mid_limit=knobs.mid_limit,
            attends=knobs.attention,
            hierarchical=knobs.hierarchical,
            standardizes=knobs.standardize,
        )
    except ValueError:
        raise UsageError(f"review.pair={list(knobs.pair)} must be levels from 0 to {len(dims) - 1}") from None


def _hint(dims: Sequence[int], teacher_dims: Sequence[int], level: int) -> Transform:
    if level >= len(dims):
        raise UsageError(f"distill.fitnet_level={level} must be a level from 0 to {len(dims) - 1}")
    return Transform(dims[level], teacher_dims[level])
