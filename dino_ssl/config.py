"""Every knob of a pretraining run: unit, range, source, and the one place where its default stands.

The defaults are the ViT-S/16 of the paper (Caron et al. 2021, arXiv:2104.14294). Sizes are in pixels, rates
per step, warm-ups in epochs (fractions allowed), probabilities in [0, 1].
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

BiasKind = Literal["free", "relative"]
Compat = Literal["none", "dino"]
Device = Literal["auto", "cpu", "cuda"]
OnCollapse = Literal["warn", "stop", "rewind"]
OptimizerName = Literal["adamw", "sgd", "lars"]
EvaluationName = Literal["knn", "linear"]
GradientType = Literal["fp32", "bf16"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
Renderer = Literal["fused", "pil", "device"]
Sharding = Literal["none", "fsdp2"]
TeacherMode = Literal["train", "eval"]


@dataclass(frozen=True)
class Pixels:
    """How images become what a network sees."""

    channels: int = 3
    """3 for colour, 1 for grey, others as arrays have them (then no hue, no saturation)."""
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    """Channel means of the data in [0, 1], as `dino-ssl stats` prints them; ImageNet's by default."""
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    """Channel deviations of the data in [0, 1]; ImageNet's by default."""
    renderer: Renderer = "fused"
    """fused: fast; pil: operation by operation as the original; device: on the GPU, the CPU only decodes."""


@dataclass(frozen=True)
class Crops(Pixels):
    """Views of an image (paper, section 3.1 and appendix; augmentation of BYOL)."""

    global_size: int = 224
    """Side of the two global crops, pixels."""
    global_scale: tuple[float, float] = (0.4, 1.0)
    """Share of the image's area that a global crop covers."""
    num_local_crops: int = 8
    """Local crops per image; 0 trains on the two global crops alone."""
    local_size: int = 96
    """Side of a local crop, pixels."""
    local_scale: tuple[float, float] = (0.05, 0.4)
    """Share of the image's area that a local crop covers."""
    flip: float = 0.5
    """Probability of a horizontal flip; 0 where left and right mean something (digits, text)."""
    color_jitter: float = 1.0
    """Strength of brightness, contrast, saturation (0.4, 0.4, 0.2) and hue (0.1); 0 turns it off."""
    grayscale: float = 0.2
    """Probability of dropping the colours."""
    blur: tuple[float, float, float] = (1.0, 0.1, 0.5)
    """Probability of Gaussian blur: first global, second global, local crops; 0 0 0 below 64 pixels."""
    solarize: float = 0.2
    """Probability of solarization, second global crop only."""


@dataclass(frozen=True)
class Model:
    """The backbone."""

    name: str = "vit_small"
    """vit_micro, _tiny, _small, _base, _large, _huge, _giant, cmt_micro, _tiny, _xs, _small, _base,
    resnet18, resnet50, timm/NAME, of CIFAR resnet20 to resnet110 and wrn_16_2 to wrn_40_2."""
    patch_size: int = 16
    """Side of a patch, pixels (ViT only)."""
    drop_path: float = 0.1
    """Stochastic depth of the student, rising linearly to this rate at the last block."""
    position_bias: BiasKind = "free"
    """What attention learns of places (CMT only). free: a number for each query and key, as released;
    relative: one for each way between them, for training from scratch (no weight decay)."""
    small_stem: bool = False
    """3x3 stem that keeps every pixel, for images of about 32 (CMT; ResNet: He et al. 2016, CIFAR)."""
    activation_checkpointing: bool = False
    """Recompute blocks in the backward pass: about a third more time, far less memory."""
    compile: bool = False
    """torch.compile the backbones: a minute at the start, faster steps on a GPU."""


@dataclass(frozen=True)
class Head:
    """The projection head: three layers, L2 norm, weight-normalised prototypes (paper, appendix C)."""

    prototypes: int = 65536
    """Output dimension K; 1024 to 4096 suit data sets below 100,000 images."""
    hidden_dim: int = 2048
    """Width of the two hidden layers."""
    bottleneck_dim: int = 256
    """Dimension that is L2-normalised before the prototypes."""
    batch_norm: bool = False
    """Batch normalisation in the hidden layers (for ResNets trained with SGD)."""
    norm_last_layer: bool = True
    """Keep the prototypes at unit length: stabler; False can gain a little on long runs."""


@dataclass(frozen=True)
class Dino:
    """Self-distillation: temperatures, centering and the momentum teacher."""

    student_temperature: float = 0.1
    """Temperature of the student's softmax."""
    teacher_temperature: float = 0.04
    """Temperature of the teacher after warm-up; lower is sharper, above 0.07 is unstable."""
    warmup_teacher_temperature: float = 0.04
    """Temperature of the teacher at the start; lower it if the loss stays flat."""
    warmup_teacher_temperature_epochs: float = 0.0
    """Linear warm-up of the teacher's temperature, epochs."""
    center_momentum: float = 0.9
    """Moving average of the centre; 0.999 collapses (paper, table 10)."""
    momentum: float = 0.996
    """Momentum of the teacher at the start; nearer to 1 for batches below 256."""
    momentum_end: float = 1.0
    """Momentum of the teacher at the end of its cosine."""
    region_loss: bool = False
    """Also distil every region of the last feature map, at equal weight (EsViT, arXiv:2106.09785)."""
    frozen_teacher: str = ""
    """RUN of a larger pretraining whose frozen teacher gives the targets; empty: the moving average."""
    teacher_mode: TeacherMode = "train"
    """Batch norm of the teacher. train: by its own crops, as the original; eval: by the student's statistics."""


@dataclass(frozen=True)
class Optim:
    """Optimizer and its schedules; warm-up is linear, decay is a cosine."""

    name: OptimizerName = "adamw"
    """adamw for transformers; sgd or lars for ResNets."""
    lr: float = 5e-4
    """Peak learning rate for a global batch of 256; scaled linearly with the batch."""
    min_lr: float = 1e-6
    """Learning rate at the end, not scaled."""
    warmup_epochs: float = 10.0
    """Linear warm-up of the learning rate, epochs."""
    weight_decay: float = 0.04
    """Weight decay at the start; biases and 1-D parameters are never decayed."""
    weight_decay_end: float = 0.4
    """Weight decay at the end of its cosine."""
    clip_grad: float = 3.0
    """Largest gradient norm; 0 turns clipping off."""
    freeze_last_layer_epochs: float = 1.0
    """Epochs in which the prototypes stay fixed; longer if the loss does not fall."""


@dataclass(frozen=True)
class Loader:
    """How images reach the device; the batches are the same whatever stands here."""

    num_workers: int | None = None
    """Threads (pil: processes) per rank that make crops; None: all cores but one, at most 16."""
    num_processes: int | None = None
    """Processes that share these threads; 0: the training's own. None: 0 on a CPU, a quarter on a GPU."""
    max_broken: float = 0.01
    """Largest share of unreadable images before the run stops with their list."""


@dataclass(frozen=True)
class Parallel:
    """How several ranks share the work (docs/scaling.md)."""

    sharding: Sharding = "none"
    """none: DDP; fsdp2: in parts, from ViT-L on."""
    gradients: GradientType = "fp32"
    """Type they travel in; bf16: half the bytes."""
    bucket_mb: float = 25.0
    """MiB of gradients that DDP sends together."""


@dataclass(frozen=True)
class Knn:
    """Weighted k-NN of the teacher, while training and at the end (where labels exist)."""

    every_epochs: int = 5
    """Epochs between two evaluations; 0 turns k-NN off."""
    train: str | None = None
    """SOURCE of the labelled bank; None takes the training images."""
    test: str | None = None
    """SOURCE of the queries; None takes the data set's own test split, or leaves one out of the bank."""
    k: int = 20
    """Neighbours."""
    temperature: float = 0.07
    """Temperature of the weights exp(similarity / temperature)."""
    center_crop: float = 0.875
    """Side of the centre crop over the resized short side: 224 of 256; 1.0 for images already cropped."""
    max_images: int = 10_000
    """Largest bank and largest query set while training; the table at the end uses every image."""
    precise_bn: int = 0
    """Images of the bank that batch norm statistics are estimated from for k-NN; 0: those of the training."""


@dataclass(frozen=True)
class Evaluate:
    """Evaluations of checkpoints as jobs of their own, beside the training (docs/slurm.md)."""

    every_epochs: int = 0
    """Epochs between two checkpoints that are evaluated so, the last always; 0 sends no jobs."""
    methods: tuple[EvaluationName, ...] = ("knn", "linear")
    """Commands that a job runs on its checkpoint."""
    submit: str = ""
    """Command that starts a job; gets the path of a shell script. `python -m launch.slurm submit` sets it."""


@dataclass(frozen=True)
class Collapse:
    """The sentinel, whose statistics are in metrics.jsonl."""

    on_collapse: OnCollapse = "warn"
    """warn; stop: exit code 4; rewind: to the last healthy checkpoint, at half the rate."""


@dataclass(frozen=True)
class Checkpoint:
    """Saving; a run started again in the same folder resumes from the last good checkpoint."""

    every_steps: int | None = None
    """Steps between two checkpoints; None saves at the end of every epoch."""
    keep_last: int = 2
    """Newest checkpoints that stay."""
    keep_every: int = 0
    """Every Mth checkpoint stays for good; 0 keeps none but the newest."""


@dataclass(frozen=True)
class Log:
    """The journal beside metrics.jsonl and log.txt, which are always written."""

    every_steps: int = 10
    """Steps between two lines of metrics.jsonl; the only steps that wait for the device."""
    tensorboard: bool = False
    """Write TensorBoard events (needs the extra dino-ssl[tensorboard])."""
    wandb: bool = False
    """Send metrics to Weights & Biases (needs the extra dino-ssl[wandb])."""


@dataclass(frozen=True)
class RunConfig:
    """What every training has, whatever it trains."""

    data: str = ""
    """SOURCE of the images: a folder (with or without class folders), or a name such as digits, cifar10."""
    data_root: Path = Path("data")
    """Folder in which named data sets lie."""
    shuffle_buffer: int = 16384
    """Images of tar shards that are shuffled together; every other SOURCE is shuffled as a whole."""
    output_dir: Path = Path("runs/pretrain")
    """The run's folder; the same command in the same folder resumes."""
    epochs: int = 100
    """Passes over the data."""
    steps: int | None = None
    """Optimizer steps; overrides epochs."""
    batch_size: int = 512
    """Global batch: images per optimizer step over all ranks and micro-batches."""
    micro_batch_size: int | None = None
    """Most images a rank holds at once; smaller ones accumulate gradients. None: its share of batch_size."""
    seed: int = 0
    """Seed of weights, order, crops and drop path."""
    device: Device = "auto"
    """auto takes CUDA where there is one."""
    precision: Precision = "auto"
    """auto: bf16 autocast on GPUs that have it, fp32 elsewhere."""
    crops: Pixels = field(default_factory=Pixels)
    loader: Loader = field(default_factory=Loader)
    parallel: Parallel = field(default_factory=Parallel)
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    log: Log = field(default_factory=Log)


@dataclass(frozen=True)
class PretrainConfig(RunConfig):
    """Pretrain a backbone with DINO on images without labels."""

    compat: Compat = "none"
    """dino: the original's choices where ours differ (docs/deviations.md lists them)."""
    crops: Crops = field(default_factory=Crops)
    model: Model = field(default_factory=Model)
    head: Head = field(default_factory=Head)
    dino: Dino = field(default_factory=Dino)
    optim: Optim = field(default_factory=Optim)
    knn: Knn = field(default_factory=Knn)
    evaluate: Evaluate = field(default_factory=Evaluate)
    collapse: Collapse = field(default_factory=Collapse)
