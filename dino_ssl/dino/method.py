"""Student and teacher: views in, loss out; then the momentum update.

Sizes: b images of this micro-batch, v views of one size, k prototypes.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dino_ssl.config import Parallel, TeacherMode
from dino_ssl.dino.centering import Center
from dino_ssl.dino.collapse import NUM_FEATURES, Observations
from dino_ssl.dino.losses import dino_loss, teacher_probabilities
from dino_ssl.models.heads import DINOHead
from dino_ssl.training import distributed, sharding

WEIGHTS_PER_TENSOR = 16
"""Of every weight tensor, about as many entries are looked at for the distance between student and teacher."""


class MultiCropNetwork(nn.Module):
    """Backbone and head; one backbone pass per crop size, one pass of the head over all of them.

    Logits have the type that autocast gives them: the loss computes in float32 without a copy of them all.

    Source: arXiv:2104.14294; SwAV, arXiv:2006.09882.
    """

    backbone: nn.Module
    head: DINOHead

    def __init__(self, backbone: nn.Module, head: DINOHead) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, views: Sequence[Float[Tensor, "_v b c _s _s"]]) -> Float[Tensor, "all_v b k"]:
        num_images = views[0].shape[1]
        features = [self.backbone(crops.flatten(0, 1)) for crops in merge_equal_sizes(views)]
        logits: Tensor = self.head(torch.cat(features))
        return logits.reshape(-1, num_images, logits.shape[-1])


def merge_equal_sizes(views: Sequence[Tensor]) -> list[Tensor]:
    """Join neighbours of one size, so that BN sees them in one pass, as in the original."""
    merged: list[Tensor] = []
    for crops in views:
        if merged and merged[-1].shape[-1] == crops.shape[-1]:
            merged[-1] = torch.cat((merged[-1], crops))
        else:
            merged.append(crops)
    return merged


class SelfDistillation:
    """A student that learns to say of every view what its moving average, the teacher, says of another.

    Args:
        student: trained by gradient; wrapped here for data parallelism.
        teacher: same architecture without drop path; starts as a copy of the student and takes no gradient.
        teacher_mode: train: BN (if any) uses the statistics of the teacher's own crops, and its running ones follow
            these. eval: it uses its running statistics, which after every step are the student's.
        parallel: how ranks share both; of sharded networks this rank's `parameters()` are parts.
        guide: a frozen network that gives the targets in the teacher's place; the teacher then is nothing but the
            student's moving average.
    """

    def __init__(
        self,
        student: MultiCropNetwork,
        teacher: MultiCropNetwork,
        center: Center,
        *,
        student_temperature: float,
        device: torch.device,
        parallel: Parallel,
        teacher_mode: TeacherMode = "train",
        guide: MultiCropNetwork | None = None,
    ) -> None:
        self.student = student.to(device)
        self.teacher = teacher.to(device).train(teacher_mode == "train")
        self.teacher_mode = teacher_mode
        self.teacher.load_state_dict(self.student.state_dict())
        self.teacher.requires_grad_(False)
        self.targets_from = self.teacher if guide is None else guide.to(device).eval().requires_grad_(False)
        self.center = center.to(device)
        self.student_temperature = student_temperature
        share = -(-NUM_FEATURES // distributed.world_size())
        self.observations = Observations(center.center.shape[-1], device, num_features=share)
        self.targets_from.head.last_layer.register_forward_pre_hook(lambda _, inputs: self.observations.keep(*inputs))
        self.first_teacher = 1.0
        self.parallel_student = distributed.data_parallel(self.student, device, parallel)
        distributed.sharded(self.teacher, device, parallel)

    def loss(self, views: Sequence[Float[Tensor, "_v b c _s _s"]], teacher_temperature: float) -> Float[Tensor, ""]:
        """Loss of a micro-batch; `views[0]` are the global crops, which alone the teacher sees."""
        with torch.no_grad():
            targets = self.targets(self.center, self.targets_from(views[:1]), teacher_temperature)
        student_logits = self.parallel_student(views)
        loss = dino_loss(student_logits, targets, self.student_temperature)
        self.observations.add(targets, student_logits, loss.detach())
        return loss

    def targets(self, center: Center, logits: Float[Tensor, "t b k"], temperature: float) -> Float[Tensor, "t b k"]:
        """The teacher's probabilities by the centre of the step before, which collects these logits for the next."""
        logits = logits.float()
        probabilities = teacher_probabilities(logits, center.center, temperature)
        center.accumulate(logits.flatten(0, 1))
        return probabilities

    @torch.no_grad()
    def update_teacher(self, momentum: float) -> None:
        """Move every weight of the teacher towards the student's; BN buffers stay its own, or become the student's."""
        teacher, student = (sharding.local(network.parameters()) for network in (self.teacher, self.student))
        torch._foreach_lerp_(teacher, student, 1 - momentum)
        self.first_teacher *= momentum
        if self.teacher_mode == "eval":
            for kept, new in zip(self.teacher.buffers(), self.student.buffers(), strict=True):
                kept.copy_(new)

    @torch.no_grad()
    def update_center(self) -> None:
        """Move the centre by the logits of all micro-batches and ranks since the last call."""
        self.move(self.center)

    def move(self, center: Center) -> None:
        """Move one centre so; a collective."""
        logit_sum, num_logits = center.collected()
        center.update(distributed.all_sum(logit_sum) / (num_logits * distributed.world_size()))

    @torch.no_grad()
    def look(self) -> dict[str, Float[Tensor, ""]]:
        """Statistics over all ranks since the last call (`Totals.statistics`), and of the weights; a collective.

        Besides: `center_norm`, the length of the centre; `distance`, that of student and teacher relative to the
        teacher's length, on a sample of the weights; `first_teacher`, the share of its initial weights in the teacher.
        """
        found = self.observations.totals().over(distributed.all_sum).statistics()
        self.observations.forget()
        teacher, student = (_sample(sharding.local(network.parameters())) for network in (self.teacher, self.student))
        squares = distributed.all_sum(torch.stack(((student - teacher).square().sum(), teacher.square().sum())))
        return {
            **found,
            "center_norm": self.center.center.norm(),
            "distance": (squares[0] / squares[1]).sqrt(),
            "first_teacher": torch.tensor(self.first_teacher, dtype=torch.float64),
        }


def _sample(weights: list[Tensor]) -> Float[Tensor, " n"]:
    """About `WEIGHTS_PER_TENSOR` entries of each of `weights`, spread over it."""
    flat = [weight.detach().flatten() for weight in weights]
    return torch.cat([weight[:: max(1, len(weight) // WEIGHTS_PER_TENSOR)] for weight in flat]).double()
