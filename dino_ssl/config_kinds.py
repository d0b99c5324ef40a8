"""The commands that train, each with its configuration."""

from collections.abc import Sequence
from typing import Any

from dino_ssl.config import PretrainConfig, RunConfig
from dino_ssl.config_checks import check
from dino_ssl.config_distill import DistillConfig
from dino_ssl.config_distill_checks import check_distill
from dino_ssl.config_faces import ArcfaceConfig, AskdConfig
from dino_ssl.config_faces_checks import check_arcface, check_askd
from dino_ssl.config_finetune import ClassifyConfig
from dino_ssl.config_finetune_checks import check_classify
from dino_ssl.config_schema import Kind, did_you_mean, nearest
from dino_ssl.errors import UsageError
from dino_ssl.original_flags import REPLACEMENTS, WITHOUT_EFFECT

PRETRAIN = Kind("pretrain", PretrainConfig, check, REPLACEMENTS, WITHOUT_EFFECT, has_presets=True)
CLASSIFY = Kind("finetune classify", ClassifyConfig, check_classify)
DISTILL = Kind("finetune distill", DistillConfig, check_distill)
ARCFACE = Kind("finetune arcface", ArcfaceConfig, check_arcface)
ASKD = Kind("finetune askd", AskdConfig, check_askd)
FINETUNES: dict[str, Kind[Any]] = {"classify": CLASSIFY, "distill": DISTILL, "arcface": ARCFACE, "askd": ASKD}
"""By the word after `dino-ssl finetune`."""
KINDS: tuple[Kind[Any], ...] = (PRETRAIN, *FINETUNES.values())


def kind_in(words: Sequence[str]) -> tuple[Kind[Any], list[str]]:
    """The command that the first words name, and the other words; pretraining where they name none.

    Raises:
        UsageError: `finetune` stands there, and no name of one behind it.
    """
    if words[:1] != ["finetune"]:
        return PRETRAIN, list(words)
    name = words[1] if len(words) > 1 else ""
    if name not in FINETUNES:
        meant = did_you_mean(nearest(name, FINETUNES))
        raise UsageError(f"'{name}' is no fine-tuning{meant or ';'} choose from {', '.join(FINETUNES)}")
    return FINETUNES[name], list(words[2:])


def kind_of(config: RunConfig) -> Kind[Any]:
    """The command that takes such a configuration."""
    return next(kind for kind in KINDS if kind.config is type(config))
