"""What the configuration of a fine-tuning for faces must satisfy beyond the types of its fields."""

from collections.abc import Iterator

from dino_ssl.config_checks import Range
from dino_ssl.config_faces import ArcfaceConfig, AskdConfig
from dino_ssl.config_finetune_checks import check_finetune

INFINITY = float("inf")
RANGES = (
    Range("must be 1 or more", lambda x: x >= 1, "embedding.dim margin.centres"),
    Range("must not be negative", lambda x: x >= 0, "embedding.lora_rank"),
    Range("must be at least 0 and below 1", lambda x: 0 <= x < 1, "embedding.dropout"),
    Range("must be above 0", lambda x: 0 < x < INFINITY, "margin.scale"),
    Range("must be above 0 and at most 1", lambda x: 0 < x <= 1, "margin.sampling margin.filter_above"),
    Range("must be 20 or more, two for each fold", lambda x: x >= 20, "validation.num_pairs"),
    Range(
        "must be three numbers, m1 m2 m3, m1 above 0 and the others not negative",
        lambda x: not x or (len(x) == 3 and 0 < x[0] < INFINITY and all(0 <= m < INFINITY for m in x[1:])),
        "margin.m",
    ),
)
ASKD_RANGES = (
    Range("must be sides of 1 pixel or more", lambda x: bool(x) and min(x) >= 1, "low_resolution.sides"),
    Range("must not be negative", lambda x: 0 <= x < INFINITY, "look.weight look.feature_weight look.logit_weight"),
    Range("must be 1 or more", lambda x: x >= 1, "look.blocks"),
    Range("must be above 0", lambda x: 0 < x < INFINITY, "look.temperature look.logit_temperature"),
)


def check_arcface(config: ArcfaceConfig) -> list[str]:
    """Every problem that shows without looking at the data; empty where the configuration is sound."""
    return [*check_finetune(config, RANGES), *_margin(config)]


def check_askd(config: AskdConfig) -> list[str]:
    """Likewise."""
    return [*check_finetune(config, (*RANGES, *ASKD_RANGES)), *_margin(config), *_look(config)]


def _margin(config: ArcfaceConfig) -> Iterator[str]:
    knobs = config.margin
    if config.embedding.lora_rank > 0 and not config.model.weights:
        yield "embedding.lora_rank adapts a pretrained network; write --model.weights with it"
    if knobs.is_hard and (len(knobs.m) != 3 or knobs.m[0] != 1 or knobs.m[2] != 0):
        yield "margin.is_hard is for ArcFace's margin alone; write --margin.m 1 0.5 0 with it"
    if config.crops.erase:
        yield f"crops.erase={config.crops.erase:g} is for classification; leave it out"


def _look(config: AskdConfig) -> Iterator[str]:
    if not config.look.teacher:
        yield "look.teacher is not set; write --look.teacher with a RUN of `dino-ssl finetune arcface`"
    if too_large := [side for side in config.low_resolution.sides if side > config.crops.size]:
        yield f"low_resolution.sides={too_large[0]} is above crops.size={config.crops.size}; write at most that"
