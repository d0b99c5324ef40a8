"""What the configuration of a fine-tuning must satisfy beyond the types of its fields."""

from collections.abc import Iterator, Sequence

from dino_ssl.config_checks import Range, broken_ranges, patch_problems
from dino_ssl.config_finetune import ClassifyConfig, FinetuneConfig

RANGES = (
    Range("must lie between 1 and 8192", lambda x: 1 <= x <= 8192, "crops.size"),
    Range(
        "must not be negative",
        lambda x: 0 <= x < float("inf"),
        "crops.random_shift optim.min_lr optim.warmup_epochs optim.weight_decay optim.clip_grad "
        "validation.every_epochs",
    ),
    Range("must be above 0", lambda x: 0 < x < float("inf"), "optim.lr"),
    Range("must be above 0 and at most 1", lambda x: 0 < x <= 1, "optim.layer_decay validation.center_crop"),
    Range("must lie between 0 and 1", lambda x: 0 <= x <= 1, "crops.flip crops.erase"),
    Range("must be at least 0 and below 1", lambda x: 0 <= x < 1, "model.drop_path"),
    Range("must lie between 0 and 5", lambda x: 0 <= x <= 5, "crops.color_jitter"),
    Range(
        "must be two shares of the area, 0 < smallest <= largest <= 1",
        lambda x: 0 < x[0] <= x[1] <= 1,
        "crops.scale",
    ),
)
CLASSIFY_RANGES = (
    Range("must be at least 0 and below 1", lambda x: 0 <= x < 1, "loss.label_smoothing loss.dropout"),
    Range("must not be negative", lambda x: 0 <= x < float("inf"), "loss.mixup loss.cutmix"),
)


def check_classify(config: ClassifyConfig) -> list[str]:
    """Every problem that shows without looking at the data; empty where the configuration is sound."""
    return check_finetune(config, CLASSIFY_RANGES)


def check_finetune(config: FinetuneConfig, more: Sequence[Range] = ()) -> list[str]:
    """Those that every fine-tuning can have; `more` are ranges of one command's own knobs."""
    return [
        *broken_ranges(config, (*RANGES, *more)),
        *_data(config),
        *_network(config),
        *_channels(config),
        *_schedule(config),
        *patch_problems(config.model, {"crops.size": config.crops.size}),
    ]


def _data(config: FinetuneConfig) -> Iterator[str]:
    if not config.data.strip():
        yield "data is not set; write --data with a folder of class folders, or --data cifar10"


def _network(config: FinetuneConfig) -> Iterator[str]:
    if not config.model.name and not config.model.weights:
        yield (
            "model.name is not set; write --model.weights with a RUN or a file to start from it, "
            "or --model.name with a network to train from scratch"
        )
    if config.parallel.sharding != "none":
        yield f"parallel.sharding={config.parallel.sharding} is for pretraining; write --parallel.sharding none"


def _channels(config: FinetuneConfig) -> Iterator[str]:
    crops = config.crops
    for knob, values in (("mean", crops.mean), ("std", crops.std)):
        if values and len(values) != crops.channels:
            yield f"crops.{knob}={list(values)} must be one number for each channel, crops.channels={crops.channels}"
    if not crops.mean and not config.model.weights and crops.channels != 3:
        yield (
            f"crops.mean is not set, and ImageNet's has 3 numbers, not crops.channels={crops.channels}; write "
            "--crops.mean and --crops.std, which `dino-ssl stats SOURCE` prints"
        )
    if bool(crops.mean) != bool(crops.std):
        yield "crops.mean and crops.std go together; write both, or neither"
    if any(not 0 <= c <= 1 for c in crops.mean) or any(not 0 < c <= 1 for c in crops.std):
        yield "crops.mean must be numbers between 0 and 1, crops.std above 0 and at most 1"


def _schedule(config: FinetuneConfig) -> Iterator[str]:
    optim = config.optim
    if (optim.schedule == "steps") != bool(optim.decay_epochs):
        yield (
            f"optim.schedule={optim.schedule} and optim.decay_epochs={list(optim.decay_epochs)} do not go together; "
            "write --optim.schedule steps --optim.decay-epochs 30 60 80, or neither"
        )
    if any(epoch <= 0 for epoch in optim.decay_epochs):
        yield f"optim.decay_epochs={list(optim.decay_epochs)} must be above 0"
    if optim.min_lr > optim.lr > 0:
        yield f"optim.min_lr={optim.min_lr} must not be above optim.lr={optim.lr}, which it ends"
    if config.steps is None and optim.warmup_epochs > config.epochs > 0:
        yield f"optim.warmup_epochs={optim.warmup_epochs:g} is longer than the run of epochs={config.epochs}"
