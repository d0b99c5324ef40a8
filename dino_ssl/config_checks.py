"""What a configuration must satisfy beyond the types of its fields: ranges, and knobs that fit each other.

Pure: no file, no device and no data set is looked at. Each problem is one line that begins with the knob
and says the rule and what to write instead.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from dino_ssl.config import Model, Parallel, PretrainConfig, RunConfig
from dino_ssl.config_schema import flatten, shown


@dataclass(frozen=True)
class Range:
    """A rule on single values and the knobs that it holds for."""

    rule: str
    holds: Callable[[Any], bool]
    knobs: str


MOST_STEPS = 10**8
"""Steps that a run may have: schedules hold a value for each."""
# `holds` is written so that NaN fails it.
OF_EVERY_RUN = (
    Range(
        "must be at least 1",
        lambda x: x >= 1,
        "epochs steps batch_size micro_batch_size shuffle_buffer crops.channels model.patch_size "
        "checkpoint.every_steps checkpoint.keep_last log.every_steps",
    ),
    Range(
        "must not be negative",
        lambda x: 0 <= x < float("inf"),
        "loader.num_workers loader.num_processes checkpoint.keep_every",
    ),
    Range("must be above 0", lambda x: 0 < x < float("inf"), "parallel.bucket_mb"),
    Range("must lie between 0 and 1", lambda x: 0 <= x <= 1, "loader.max_broken"),
    Range("must fit into 32 bits without a sign", lambda x: 0 <= x < 2**32, "seed"),
)
RANGES = (
    Range(
        "must be at least 1",
        lambda x: x >= 1,
        "crops.global_size crops.local_size head.hidden_dim head.bottleneck_dim knn.k knn.max_images",
    ),
    Range("must be at least 2, or every image looks the same to the loss", lambda x: x >= 2, "head.prototypes"),
    Range(
        "must not be negative",
        lambda x: 0 <= x < float("inf"),
        "crops.num_local_crops dino.warmup_teacher_temperature_epochs optim.min_lr optim.warmup_epochs "
        "optim.weight_decay optim.weight_decay_end optim.clip_grad optim.freeze_last_layer_epochs "
        "knn.every_epochs evaluate.every_epochs",
    ),
    Range(
        "must be above 0",
        lambda x: 0 < x < float("inf"),
        "dino.student_temperature dino.teacher_temperature dino.warmup_teacher_temperature optim.lr knn.temperature",
    ),
    Range(
        "must lie between 0 and 1",
        lambda x: 0 <= x <= 1,
        "crops.flip crops.grayscale crops.solarize dino.center_momentum dino.momentum dino.momentum_end",
    ),
    # A share of 1 would drop every block, and an empty crop has no pixel.
    Range("must be at least 0 and below 1", lambda x: 0 <= x < 1, "model.drop_path"),
    Range("must be above 0 and at most 1", lambda x: 0 < x <= 1, "knn.center_crop"),
    # The hue turns by 0.1 of this strength, and half a turn is the most there is.
    Range("must lie between 0 and 5", lambda x: 0 <= x <= 5, "crops.color_jitter"),
    Range("must be 0 or at least 2, since one image has no variance", lambda x: x == 0 or x >= 2, "knn.precise_bn"),
    Range(
        "must be two shares of the area, 0 < smallest <= largest <= 1",
        lambda x: 0 < x[0] <= x[1] <= 1,
        "crops.global_scale crops.local_scale",
    ),
    Range("must be numbers between 0 and 1", lambda x: all(0 <= c <= 1 for c in x), "crops.mean crops.blur"),
    Range("must be numbers above 0 and at most 1", lambda x: all(0 < c <= 1 for c in x), "crops.std"),
)
# A digit too many is told before it fills the memory.
LARGEST_OF_EVERY_RUN = (
    Range("must be at most 8192 pixels", lambda x: x <= 8192, "model.patch_size"),
    Range("must be at most 1000", lambda x: x <= 1000, "crops.channels loader.num_workers loader.num_processes"),
)
LARGEST = (
    Range("must be at most 8192 pixels", lambda x: x <= 8192, "crops.global_size crops.local_size"),
    Range("must be at most 65536", lambda x: x <= 2**16, "head.hidden_dim head.bottleneck_dim"),
    Range("must be at most a million", lambda x: x <= 10**6, "head.prototypes"),
    Range("must be at most 1000", lambda x: x <= 1000, "crops.num_local_crops"),
)


def check(config: PretrainConfig) -> list[str]:
    """Every problem that shows without looking at the data; empty where the configuration is sound."""
    run = float(config.epochs) if config.steps is None else float("inf")
    return [
        *broken_ranges(config, (*RANGES, *LARGEST)),
        *_data(config),
        *_channels(config),
        *_patches(config),
        *_batch_norm(config),
        *_rates(config),
        *_regions(config),
        *_sharding(config),
        *_knn(config),
        *_evaluate(config),
        *_warmups(config, run, f"epochs={config.epochs}"),
    ]


def check_schedule(config: PretrainConfig, steps_per_epoch: int) -> list[str]:
    """Warm-ups against a run whose length is given in `steps`, once the size of the data is known."""
    total = config.epochs * steps_per_epoch if config.steps is None else config.steps
    if total > MOST_STEPS:
        knob = f"epochs={config.epochs}" if config.steps is None else f"steps={config.steps}"
        return [f"{knob} is a run of {total:,} steps; the most is {MOST_STEPS:,}"]
    if config.steps is None:
        return []
    run = config.steps / steps_per_epoch
    return list(_warmups(config, run, f"steps={config.steps} ({run:.3g} epochs)"))


def broken_ranges(config: RunConfig, ranges: Iterable[Range]) -> Iterator[str]:
    """Knobs outside of `ranges`, or of those that every run has."""
    values, defaults = flatten(config), flatten(type(config)())
    for limit in (*OF_EVERY_RUN, *LARGEST_OF_EVERY_RUN, *ranges):
        for knob in limit.knobs.split():
            value = values[knob]
            if value is not None and not limit.holds(value):
                yield f"{knob}={shown(value)} {limit.rule}; the default is {shown(defaults[knob])}"


def _data(config: PretrainConfig) -> Iterator[str]:
    if not config.data.strip():
        yield "data is not set; write --data FOLDER, or --preset digits to try it without data of your own"


def _channels(config: PretrainConfig) -> Iterator[str]:
    channels = config.crops.channels
    for knob, values in (("mean", config.crops.mean), ("std", config.crops.std)):
        if len(values) != channels >= 1:
            yield (
                f"crops.{knob}={shown(values)} must be one number for each channel, crops.channels={channels}; "
                "`dino-ssl stats SOURCE` prints them"
            )


def _patches(config: PretrainConfig) -> Iterator[str]:
    crops = config.crops
    sizes = {"crops.global_size": crops.global_size}
    if crops.num_local_crops > 0:
        sizes["crops.local_size"] = crops.local_size
    yield from patch_problems(config.model, sizes)


def patch_problems(model: Model, sizes: Mapping[str, int]) -> Iterator[str]:
    """Sides in pixels, by knob, that do not divide into the patches of a ViT."""
    patch = model.patch_size
    if not model.name.startswith("vit_") or patch < 1:
        return
    for knob, size in sizes.items():
        if size >= 1 and size % patch:
            near = patch * max(1, round(size / patch))
            yield f"{knob}={size} does not divide into patches of model.patch_size={patch}; try {near}"


def _batch_norm(config: PretrainConfig) -> Iterator[str]:
    normalised = config.head.batch_norm or config.model.name.startswith(("resnet", "cmt_"))
    for knob, size in (("batch_size", config.batch_size), ("micro_batch_size", config.micro_batch_size)):
        if normalised and size == 1:
            why = "head.batch_norm=true" if config.head.batch_norm else f"model.name={config.model.name}"
            yield f"{knob}=1 leaves nothing to normalise over ({why} has batch norm); write at least 2"


def _rates(config: PretrainConfig) -> Iterator[str]:
    optim = config.optim
    if optim.min_lr > optim.lr > 0:
        yield f"optim.min_lr={optim.min_lr} must not be above optim.lr={optim.lr}, which it ends"


def _regions(config: PretrainConfig) -> Iterator[str]:
    """What would be ignored, or was never tried so."""
    if not config.dino.region_loss:
        return
    begin, leave = "dino.region_loss=true", "leave one of them out"
    if config.model.name.startswith("timm/"):
        yield f"{begin} takes vit_*, cmt_* and resnet*, not model.name={config.model.name}; {leave}"
    if config.model.compile:
        yield f"{begin} was not tried with model.compile=true; {leave}"
    if config.dino.frozen_teacher:
        yield f"{begin} needs a teacher with a head for regions, which dino.frozen_teacher has not; {leave}"
    if config.parallel.sharding != "none":
        yield f"{begin} was not tried with parallel.sharding={config.parallel.sharding}; {leave}"


def _sharding(config: PretrainConfig) -> Iterator[str]:
    """What a rank that holds a part of each weight cannot do, or what was never tried so."""
    if config.parallel.sharding == "none":
        return
    begin, none = "parallel.sharding=fsdp2", "--parallel.sharding none"
    if not config.model.name.startswith("vit_"):
        yield f"{begin} splits the blocks of vit_*, not model.name={config.model.name}; write {none}"
    if config.head.batch_norm:
        yield f"{begin} does not go with head.batch_norm=true; write {none}"
    if config.optim.name == "lars":
        yield f"{begin} does not go with optim.name=lars, which needs the norms of whole weights; write adamw or sgd"
    if config.precision == "fp16":
        yield f"{begin} does not go with precision=fp16, whose scaler looks at one rank's part; write --precision bf16"
    if config.model.compile:
        yield f"{begin} was not tried with model.compile=true; write --model.compile false"
    if config.parallel.bucket_mb != Parallel().bucket_mb:
        yield f"{begin} sends block by block and has no parallel.bucket_mb={config.parallel.bucket_mb:g}; leave it out"


def _knn(config: PretrainConfig) -> Iterator[str]:
    knn = config.knn
    if knn.every_epochs > 0 and knn.k > knn.max_images:
        yield f"knn.k={knn.k} asks for more neighbours than knn.max_images={knn.max_images} images have"


def _evaluate(config: PretrainConfig) -> Iterator[str]:
    jobs, every = config.evaluate, config.evaluate.every_epochs
    if every > 0 and not jobs.submit.strip():
        yield (
            f"evaluate.every_epochs={every} needs evaluate.submit; write --evaluate.submit 'sbatch --gpus 1', "
            "or submit the run with `python -m launch.slurm`, which knows it from the cluster's profile"
        )
    if every > 0 and not jobs.methods:
        yield "evaluate.methods=[] leaves nothing to run; write [knn], or evaluate.every_epochs: 0"


def _warmups(config: PretrainConfig, run: float, length: str) -> Iterator[str]:
    """`run` is the length of the run in epochs, `length` says it as the user set it."""
    warmups = {
        "optim.warmup_epochs": config.optim.warmup_epochs,
        "optim.freeze_last_layer_epochs": config.optim.freeze_last_layer_epochs,
        "dino.warmup_teacher_temperature_epochs": config.dino.warmup_teacher_temperature_epochs,
    }
    for knob, epochs in warmups.items():
        if epochs > run > 0:
            yield f"{knob}={epochs:g} is longer than the run of {length}; write at most {run:.3g}"
