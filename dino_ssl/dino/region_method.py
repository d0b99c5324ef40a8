"""DINO on views and on the regions of the last feature map at once (EsViT, Li et al., arXiv:2106.09785).

Sizes: b images of this micro-batch, v views of one size, k prototypes.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dino_ssl.dino.losses import dino_loss
from dino_ssl.dino.method import MultiCropNetwork, SelfDistillation, merge_equal_sizes
from dino_ssl.dino.regions import RegionCenter, Regions, region_loss
from dino_ssl.models.backbone import Backbone
from dino_ssl.models.heads import DINOHead


class RegionNetwork(MultiCropNetwork):
    """A second head, for regions, beside that of the views; both from one pass of the backbone."""

    def __init__(self, backbone: nn.Module, head: DINOHead, region_head: DINOHead) -> None:
        super().__init__(backbone, head)
        self.region_head = region_head

    def forward(  # type: ignore[override]  # more than the views' logits
        self, views: Sequence[Float[Tensor, "_v b c _s _s"]]
    ) -> tuple[Float[Tensor, "all_v b k"], list[Regions]]:
        num_images = views[0].shape[1]
        assert isinstance(self.backbone, Backbone)
        found = [self.backbone.last_blocks(crops.flatten(0, 1), 1)[0] for crops in merge_equal_sizes(views)]
        logits: Tensor = self.head(torch.cat([each.pooled for each in found]))
        features = [each.patches.flatten(2).mT for each in found]  # [views x b, regions, d]
        said = self.region_head(torch.cat([each.flatten(0, 1) for each in features]))
        parts = said.split([each.shape[0] * each.shape[1] for each in features])
        regions = [
            Regions(*view)
            for each, part in zip(features, parts, strict=True)
            for view in zip(each.split(num_images), part.unflatten(0, each.shape[:2]).split(num_images), strict=True)
        ]
        return logits.reshape(-1, num_images, logits.shape[-1]), regions


class RegionDistillation(SelfDistillation):
    """`SelfDistillation` whose loss is the mean of those of views and of regions; networks are `RegionNetwork`s."""

    center: RegionCenter

    def loss(self, views: Sequence[Float[Tensor, "_v b c _s _s"]], teacher_temperature: float) -> Float[Tensor, ""]:
        with torch.no_grad():
            teacher_logits, found = self.teacher(views[:1])
            targets = self.targets(self.center, teacher_logits, teacher_temperature)
            of_regions = self.targets(
                self.center.regions, torch.stack([each.said.flatten(0, 1) for each in found]), teacher_temperature
            )
            teacher = [
                Regions(each.features, one.unflatten(0, each.said.shape[:2]))
                for each, one in zip(found, of_regions, strict=True)
            ]
        logits, student = self.parallel_student(views)
        by_view = dino_loss(logits, targets, self.student_temperature)
        self.observations.add(targets, logits, by_view.detach())
        return (by_view + region_loss(student, teacher, self.student_temperature)) / 2

    @torch.no_grad()
    def update_center(self) -> None:
        super().update_center()
        self.move(self.center.regions)
