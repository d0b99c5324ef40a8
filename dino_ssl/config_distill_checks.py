"""What the configuration of a distillation must satisfy beyond the types of its fields."""

from collections.abc import Iterator

from dino_ssl.config_checks import Range
from dino_ssl.config_distill import DistillConfig
from dino_ssl.config_finetune_checks import CLASSIFY_RANGES, check_finetune

LOSSES = ("review", "kd", "dkd", "fitnet", "attention_transfer", "rkd_distance", "rkd_angle", "cosine")
"""Knobs of `distill` that are weights of what the teacher gives."""
RANGES = (
    *CLASSIFY_RANGES,
    Range(
        "must not be negative",
        lambda x: 0 <= x < float("inf"),
        " ".join(f"distill.{name}" for name in (*LOSSES, "classification", "dkd_target", "dkd_others"))
        + " distill.warmup_epochs distill.fitnet_level",
    ),
    Range("must be above 0", lambda x: 0 < x < float("inf"), "distill.temperature"),
    Range("must be at least 1", lambda x: x >= 1, "seeds review.mid_limit"),
)


def check_distill(config: DistillConfig) -> list[str]:
    """Every problem that shows without looking at the data; empty where the configuration is sound."""
    return [*check_finetune(config, RANGES), *_teacher(config), *_student(config), *_losses(config)]


def _teacher(config: DistillConfig) -> Iterator[str]:
    teacher = config.teacher
    if not teacher.weights:
        yield "teacher.weights is not set; write --teacher.weights with the RUN or the file of the network that teaches"
    for knob, values in (("mean", teacher.mean), ("std", teacher.std)):
        if values and len(values) != config.crops.channels:
            yield f"teacher.{knob}={list(values)} must be one number for each channel, not {len(values)}"
    if bool(teacher.mean) != bool(teacher.std):
        yield "teacher.mean and teacher.std go together; write both, or neither"
    if any(not 0 <= c <= 1 for c in teacher.mean) or any(not 0 < c <= 1 for c in teacher.std):
        yield "teacher.mean must be numbers between 0 and 1, teacher.std above 0 and at most 1"


def _student(config: DistillConfig) -> Iterator[str]:
    if (config.distill.rkd_distance or config.distill.rkd_angle) and 1 in (config.batch_size, config.micro_batch_size):
        yield "distill.rkd_* compare images of a micro-batch with each other; write a --micro-batch-size of 2 or more"
    if config.model.compile:
        yield "model.compile compiles what a backbone gives, not its stages, which are compared; leave it out"


def _losses(config: DistillConfig) -> Iterator[str]:
    if not any(vars(config.distill)[name] for name in LOSSES):
        yield (
            "nothing is asked of the teacher; write --distill.review 1 or --distill.kd 0.9, or train without it: "
            "dino-ssl finetune classify"
        )
    if config.distill.dkd and (config.loss.mixup or config.loss.cutmix):
        yield "distill.dkd needs one label for each image, which mixup and CutMix do not leave; write --distill.kd"
    pair = config.review.pair
    if pair and (config.review.design != "same" or len(pair) != 2 or min(pair) < 0):
        yield (
            f"review.pair={list(pair)} must be two levels, from 0, of review.design=same; "
            "write --review.design same --review.pair 2 1"
        )
