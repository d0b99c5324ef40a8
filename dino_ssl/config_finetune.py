"""Every knob of a fine-tuning that is not one of `config`: what all fine-tunings share, and classification."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from dino_ssl.config import Model, OptimizerName, Pixels, RunConfig

ScheduleName = Literal["cosine", "linear", "steps"]
NetworkKey = Literal["teacher", "student"]


@dataclass(frozen=True)
class View(Pixels):
    """The one view of an image that a step sees."""

    mean: tuple[float, ...] = ()
    """Channel means of the data in [0, 1]; empty: those of model.weights, or ImageNet's from scratch."""
    std: tuple[float, ...] = ()
    """Channel deviations of the data in [0, 1]; empty as crops.mean."""
    size: int = 224
    """Side of the view, pixels."""
    scale: tuple[float, float] = (0.08, 1.0)
    """Share of the image's area that the view covers; 1 1 for the whole image."""
    random_shift: int = 0
    """Most pixels by which a view is shifted, zeros coming in (4 for CIFAR with scale 1 1)."""
    flip: float = 0.5
    """Probability of a horizontal flip."""
    color_jitter: float = 0.0
    """Strength of colour jitter, 1 as in pretraining; 0 turns it off."""
    erase: float = 0.0
    """Probability of erasing a random rectangle (Zhong et al. 2017)."""


@dataclass(frozen=True)
class Start(Model):
    """The backbone, and where it starts."""

    name: str = ""
    """As in pretraining; empty: that of weights."""
    weights: str = ""
    """RUN or file of a pretrained backbone, as `dino-ssl inspect` reads it; empty: from scratch."""
    key: NetworkKey = "teacher"
    """Which network of a pretraining's checkpoint."""


@dataclass(frozen=True)
class FinetuneOptim:
    """Optimizer and its schedule."""

    name: OptimizerName = "adamw"
    """adamw for transformers; sgd (momentum 0.9) or lars for convolutions."""
    lr: float = 5e-4
    """Peak learning rate for a global batch of 256; scaled linearly with the batch."""
    schedule: ScheduleName = "cosine"
    """cosine or linear: down to min_lr; steps: a tenth from each of decay_epochs on."""
    decay_epochs: tuple[float, ...] = ()
    """Epochs at which the rate of schedule=steps falls to a tenth."""
    min_lr: float = 1e-6
    """Learning rate at the end of cosine and linear, not scaled."""
    warmup_epochs: float = 5.0
    """Linear warm-up of the learning rate, epochs."""
    weight_decay: float = 0.05
    """Weight decay; biases and 1-D parameters are never decayed."""
    clip_grad: float = 0.0
    """Largest gradient norm; 0 turns clipping off."""
    layer_decay: float = 1.0
    """Factor on the rate from each block to the one below it; 0.65 to 0.75 for pretrained ViTs (BEiT)."""


@dataclass(frozen=True)
class Validation:
    """Measuring on images that are not trained on."""

    test: str | None = None
    """SOURCE of the test images; None takes the data set's own test split."""
    every_epochs: int = 1
    """Epochs between two measurements, the last always; 0 never measures."""
    center_crop: float = 0.875
    """Side of the centre crop over the resized short side; 1.0 for images already cropped."""


@dataclass(frozen=True)
class FinetuneConfig(RunConfig):
    """Train a backbone with labels, from scratch or from a checkpoint."""

    output_dir: Path = Path("runs/finetune")
    """The run's folder; the same command in the same folder resumes."""
    batch_size: int = 256
    """Global batch: images per optimizer step over all ranks and micro-batches."""
    crops: View = field(default_factory=View)
    model: Start = field(default_factory=Start)
    optim: FinetuneOptim = field(default_factory=FinetuneOptim)
    validation: Validation = field(default_factory=Validation)


@dataclass(frozen=True)
class Loss:
    """Cross-entropy and what softens its targets."""

    label_smoothing: float = 0.0
    """Share of the target that is spread over all classes."""
    mixup: float = 0.0
    """Alpha of mixup (Zhang et al. 2018); 0 turns it off."""
    cutmix: float = 0.0
    """Alpha of CutMix (Yun et al. 2019); with mixup, each batch takes one of the two."""
    dropout: float = 0.0
    """Dropout before the classifier."""


@dataclass(frozen=True)
class ClassifyConfig(FinetuneConfig):
    """Train a backbone and a classifier with labels, from scratch or from a checkpoint."""

    loss: Loss = field(default_factory=Loss)
