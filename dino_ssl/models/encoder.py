"""A frozen backbone with everything that its images have to look like."""

from dataclasses import dataclass

from dino_ssl.models.backbone import Backbone


@dataclass(frozen=True)
class Encoder:
    """What evaluations see of a checkpoint.

    Attributes:
        backbone: in evaluation mode, without gradients.
        name: of the architecture, with its patch size if it has one: `vit_small/16`, `dinov2_vits14_reg`, `resnet50`.
        origin: where the weights come from, for people: file, network in it (teacher), step.
        digest: SHA-256 of the backbone's tensors as they were read, in hex; names the weights wherever they lie.
        report: what matched, was interpolated, and was left out; one line.
        size: side of the images it should be evaluated on, pixels.
        center_crop: `size` over the resized short side.
        mean, std: one number per channel, of pixels in [0, 1].
    """

    backbone: Backbone
    name: str
    origin: str
    digest: str
    report: str
    size: int
    center_crop: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def channels(self) -> int:
        return len(self.mean)
