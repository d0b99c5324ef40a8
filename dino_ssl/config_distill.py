"""Every knob of distillation that is not one of `config_finetune`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from dino_ssl.config_finetune import ClassifyConfig, NetworkKey

Design = Literal["same", "review", "fusion", "residual"]
TeacherNorm = Literal["running", "batch"]


@dataclass(frozen=True)
class Teacher:
    """The frozen network that teaches."""

    weights: str = ""
    """RUN or file, as `dino-ssl inspect` reads it, with its classifier where distill.kd or dkd needs that."""
    key: NetworkKey = "teacher"
    """Which network of a pretraining's checkpoint."""
    name: str = ""
    """As model.name, where the file does not tell; empty: the file tells."""
    mean: tuple[float, ...] = ()
    """Channel means of its images in [0, 1]; empty: those of weights."""
    std: tuple[float, ...] = ()
    """Channel deviations of its images in [0, 1]; empty: those of weights."""
    preactivation: bool = True
    """Its stages before the ReLU that ends them (as the paper's code); networks without one have the same."""
    batch_norm: TeacherNorm = "running"
    """running: evaluation mode; batch: the statistics of each batch, as the paper's code on CIFAR."""


@dataclass(frozen=True)
class Distill:
    """Weights of what the student is asked for; 0 leaves a loss out."""

    classification: float = 1.0
    """Cross-entropy with the labels."""
    review: float = 0.0
    """Knowledge review (ReviewKD): 0.6 for ResNet-20, 1 for ResNet-32, 5 for the wider ones, 8 for MobileNets."""
    kd: float = 0.0
    """Hinton's soft targets; 0.9 with classification 0.1 is common."""
    temperature: float = 4.0
    """Of soft targets, kd and dkd."""
    dkd: float = 0.0
    """Decoupled KD."""
    dkd_target: float = 1.0
    """Its weight of the label's class against all others (alpha)."""
    dkd_others: float = 8.0
    """Its weight of the classes that are not the label (beta)."""
    fitnet: float = 0.0
    """Squared error of one level (FitNet); 100 is common."""
    fitnet_level: int = 1
    """Which level, from 0, the finest."""
    attention_transfer: float = 0.0
    """Where the squares of the channels lie, over all stages (AT); 1000 is common."""
    rkd_distance: float = 0.0
    """Distances between images (RKD-D); 25 is common."""
    rkd_angle: float = 0.0
    """Angles between images (RKD-A); 50 is common."""
    cosine: float = 0.0
    """1 - cosine of the pooled features."""
    warmup_epochs: float = 0.0
    """Epochs over which all of these but classification rise from 0, in steps of an epoch; the paper's 20 on CIFAR."""
    student_preactivation: bool = False
    """The student's stages before the ReLU that ends them (the paper's code: on ImageNet, not on CIFAR)."""


@dataclass(frozen=True)
class Review:
    """Knowledge review: which levels are compared, and how. A network's levels are its stages and its pooled output.

    Of a network with more stages than the other, the deepest take part.
    """

    design: Design = "residual"
    """The paper's designs: same (a), review (b), fusion (c), residual (d)."""
    pair: tuple[int, ...] = ()
    """With same: only this level of the student and this one of the teacher, from 0; empty: all levels."""
    mid_limit: int = 512
    """Most channels in which levels are fused (256 for MobileNet); otherwise those of the student's last level."""
    attention: bool = True
    """Fuse by attention (ABF), or else add."""
    hierarchical: bool = True
    """Compare by HCL, or else by the mean squared error."""
    standardize: bool = False
    """Bring each place of the teacher's maps to mean 0 and deviation 1 (for ViT and CMT teachers)."""


@dataclass(frozen=True)
class DistillConfig(ClassifyConfig):
    """Train a small network with labels and with what a frozen, larger one says and sees."""

    output_dir: Path = Path("runs/distill")
    """The run's folder; the same command in the same folder resumes."""
    seeds: int = 1
    """Runs one after another, with seed, seed + 1, ..., each in a folder of its own below output_dir."""
    teacher: Teacher = field(default_factory=Teacher)
    distill: Distill = field(default_factory=Distill)
    review: Review = field(default_factory=Review)
