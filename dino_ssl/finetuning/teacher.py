"""The frozen network of a distillation."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from dino_ssl.config_distill import DistillConfig
from dino_ssl.errors import UsageError
from dino_ssl.finetuning.knowledge_review import levels
from dino_ssl.models.backbone import Backbone, check_crop_sizes
from dino_ssl.models.weight_keys import classifier_in
from dino_ssl.models.weights import load


@dataclass(frozen=True)
class Lesson:
    """What a teacher says of a batch.

    Attributes:
        logits: None where it has no classifier.
        levels: its stages, finest first, and its pooled features as a last map of one place.
    """

    logits: Float[Tensor, "b k"] | None
    levels: list[Float[Tensor, "b _d _h _w"]]


class Teacher(nn.Module):
    """A backbone, with its classifier if it has one, that never learns.

    Args:
        pixels: mean and deviation with which its images are normalised when they come here.
        own_pixels: those that it wants.
        batch_norm: running or batch, see `config_distill.Teacher`.
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        classifier: tuple[Tensor, Tensor] | None,
        *,
        pixels: tuple[tuple[float, ...], tuple[float, ...]],
        own_pixels: tuple[tuple[float, ...], tuple[float, ...]],
        preactivation: bool,
        batch_norm: str,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.preactivation = preactivation
        self.head = None if classifier is None else _linear(*classifier)
        mean, std, own_mean, own_std = (torch.tensor(values)[:, None, None] for values in (*pixels, *own_pixels))
        self.register_buffer("scale", std / own_std, persistent=False)
        self.register_buffer("shift", (mean - own_mean) / own_std, persistent=False)
        self.eval().requires_grad_(False)
        for module in self.modules() if batch_norm == "batch" else ():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                module.train()
                module.momentum = 0.0  # the running statistics stay those of the file

    @torch.no_grad()
    def forward(self, images: Float[Tensor, "b c h w"]) -> Lesson:
        pooled, stages = taps(self.backbone, preactivation=self.preactivation)(images * self.scale + self.shift)
        return Lesson(None if self.head is None else self.head(pooled), levels(pooled, stages))

    @property
    def dims(self) -> tuple[int, ...]:
        """Channels of the levels."""
        backbone = cast(Backbone, self.backbone)
        return (*backbone.stage_dims, backbone.embed_dim)

    @property
    def num_classes(self) -> int:
        """0 without a classifier."""
        return 0 if self.head is None else self.head.out_features


class Logits(nn.Module):
    """A teacher as something whose accuracy can be measured.

    Args:
        teacher: with a classifier.
    """

    def __init__(self, teacher: Teacher) -> None:
        super().__init__()
        self.teacher = teacher

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        logits = self.teacher(images).logits
        assert logits is not None
        return F.log_softmax(logits.float(), 1)


def open_teacher(config: DistillConfig, classes: Sequence[str]) -> Teacher:
    """Read the teacher; images come as `config.crops` normalises them.

    Args:
        classes: of the data, in the order of the student's logits. The teacher's logits get that order if its file
            names their classes; it has none for other classes. Files that name none are taken at their word.
    Raises:
        UsageError: the file cannot be used, or does not take such images.
    """
    knobs, crops = config.teacher, config.crops
    loaded = load(Path(knobs.weights), key=knobs.key, arch=knobs.name or None, size=crops.size)
    encoder = loaded.encoder
    assert isinstance(encoder.backbone, nn.Module)
    if encoder.channels != crops.channels:
        raise UsageError(f"teacher.weights={knobs.weights} takes {encoder.channels} channels, not {crops.channels}")
    check_crop_sizes(encoder.backbone, {"crops.size": crops.size}, crops.channels)
    check_stages(encoder.backbone, config, preactivation=knobs.preactivation, knob="teacher.preactivation")
    return Teacher(
        encoder.backbone,
        _in_order(classifier_in(loaded.file.content, knobs.key, loaded.file.path), loaded.file.content, classes),
        pixels=(crops.mean, crops.std),
        own_pixels=(knobs.mean or encoder.mean, knobs.std or encoder.std),
        preactivation=knobs.preactivation,
        batch_norm=knobs.batch_norm,
    )


def _in_order(
    classifier: tuple[Tensor, Tensor] | None, content: Mapping[str, Any], classes: Sequence[str]
) -> tuple[Tensor, Tensor] | None:
    """The classifier with one row for each of `classes`, where the file says which rows it has."""
    named = content.get("classes")
    if classifier is None or not isinstance(named, list):
        return classifier
    if sorted(named) != sorted(classes):
        return None
    rows = [named.index(name) for name in classes]
    return classifier[0][rows], classifier[1][rows]


def taps(
    backbone: nn.Module, *, preactivation: bool
) -> Callable[[Float[Tensor, "b c h w"]], tuple[Tensor, list[Tensor]]]:
    """What gives a backbone's pooled features and its stages."""
    given = cast(Backbone, backbone)
    return given.pooled_and_preactivations if preactivation else given.pooled_and_stages


def check_stages(backbone: nn.Module, config: DistillConfig, *, preactivation: bool, knob: str) -> None:
    """Ask for the stages of one black image, before any long work.

    Raises:
        UsageError: the network does not give them so.
    """
    was_training = backbone.training
    backbone.eval()
    try:
        with torch.no_grad():
            taps(backbone, preactivation=preactivation)(
                torch.zeros(1, config.crops.channels, config.crops.size, config.crops.size)
            )
    except UsageError as error:
        raise UsageError(f"{knob}={str(preactivation).lower()}: {error}") from error
    backbone.train(was_training)


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0])
    linear.load_state_dict({"weight": weight, "bias": bias})
    return linear
