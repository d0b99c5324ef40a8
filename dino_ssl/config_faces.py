"""Every knob of the fine-tunings for faces that is not one of all fine-tunings."""

from dataclasses import dataclass, field
from typing import Literal

from dino_ssl.config_finetune import FinetuneConfig, Validation, View

NeckName = Literal["cls", "gap", "cls+gap", "flatten"]
GradientName = Literal["auto", "exact", "straight_through"]
DegradationName = Literal["bicubic", "askd_release", "random_kernel"]


@dataclass(frozen=True)
class FaceView(View):
    """Aligned faces, whole."""

    size: int = 112
    """Side of the view, pixels; CMTs want multiples of 32."""
    scale: tuple[float, float] = (1.0, 1.0)
    """Share of the image's area that the view covers; 1 1 for the whole image."""


@dataclass(frozen=True)
class Embedding:
    """From the backbone's last block to the vector that is compared."""

    neck: NeckName = "flatten"
    """flatten sees every place, for one size of images for good; cls, gap and cls+gap take any size."""
    dim: int = 512
    """Numbers in an embedding."""
    dropout: float = 0.0
    """Dropout before the last linear layer (A-SKD: 0.4)."""
    lora_rank: int = 0
    """Rank of what is learnt beside the attention of pretrained transformers, all else of which stays as it is (16 for
    fewer than 10,000 people); 0 trains everything."""


@dataclass(frozen=True)
class MarginKnobs:
    """The loss over identities."""

    m: tuple[float, ...] = ()
    """m1 m2 m3 of cos(m1 t + m2) - m3; empty: ArcFace's 1 0.5 0 for convolutions with BN, CosFace's 1 0 0.4 for all
    else, which ArcFace is reported to keep from converging."""
    gradient: GradientName = "auto"
    """exact or straight_through (1, whatever the angle); auto: exact with ArcFace, straight through with CosFace."""
    is_hard: bool = False
    """Whether a straight line follows where t + m2 is above pi, as A-SKD has it; of m2 alone."""
    scale: float = 64.0
    """Factor on cosines (A-SKD: 32)."""
    centres: int = 1
    """Centres of each identity, the nearest of which counts; 3 for noisy labels (Sub-center ArcFace)."""
    sampling: float = 1.0
    """Share of the other identities that a step compares with (Partial FC); those of the batch always."""
    filter_above: float = 1.0
    """Other identities above this cosine count as 0 (0.4 for noisy labels); 1 filters none."""


@dataclass(frozen=True)
class FaceValidation(Validation):
    """Verifying pairs of people who are not trained on."""

    test: str | None = None
    """Pairs: X.bin, LFW's pairs.txt, a list, or a SOURCE with labels of other people; None never measures."""
    num_pairs: int = 6000
    """Pairs that are drawn from a SOURCE."""
    protocol: Literal["insightface", "askd"] = "insightface"
    """Whose ten folds; their numbers are not comparable."""
    center_crop: float = 1.0
    """Side of the centre crop over the resized short side; 1.0 for images already cropped."""


@dataclass(frozen=True)
class ArcfaceConfig(FinetuneConfig):
    """Train an embedding of faces (or of any classes) with an angular margin."""

    crops: FaceView = field(default_factory=FaceView)
    embedding: Embedding = field(default_factory=Embedding)
    margin: MarginKnobs = field(default_factory=MarginKnobs)
    validation: FaceValidation = field(default_factory=FaceValidation)


@dataclass(frozen=True)
class LowResolution:
    """What the student sees."""

    sides: tuple[int, ...] = (28,)
    """Sides in pixels to which images are made smaller, one at random for each; verification uses the first."""
    mode: DegradationName = "bicubic"
    """How: bicubic (antialiased), askd_release (nearest pixels and a vertical blur) or random_kernel."""


@dataclass(frozen=True)
class Look:
    """What the student learns from the teacher; with all weights 0 it is the baseline."""

    teacher: str = ""
    """RUN or file of `finetune arcface`, trained on full resolution."""
    weight: float = 5.0
    """Of where to look; the released code's 5 goes with reduction=sum, its authors' later 80 with mean."""
    reduction: Literal["sum", "mean"] = "sum"
    """Over the blocks and their two kinds of gates."""
    after_sigmoid: bool = False
    """Whether gates are compared after their sigmoid, where even independent ones are alike."""
    blocks: int = 1
    """Last blocks of a transformer whose attention is compared; CBAM networks compare all gates."""
    rows: Literal["saliency", "all"] = "saliency"
    """Of a transformer: one row of attention for each head, or that of every query."""
    measure: Literal["kl", "centred"] = "kl"
    """Of a transformer: KL of rows, or 1 - cosine of their centred logits."""
    temperature: float = 1.0
    """Of a transformer: divides the logits of attention."""
    feature_weight: float = 0.0
    """Of 1 - cosine of the embeddings (F-SKD)."""
    logit_weight: float = 0.0
    """Of the teacher's softened probabilities of identities (KD); on one rank only."""
    logit_temperature: float = 4.0
    """Divides the logits of KD."""


@dataclass(frozen=True)
class AskdConfig(ArcfaceConfig):
    """Teach a network that sees fewer pixels where to look (A-SKD), with an angular margin on top."""

    low_resolution: LowResolution = field(default_factory=LowResolution)
    look: Look = field(default_factory=Look)
