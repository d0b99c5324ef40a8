"""The commands that train, each with its configuration."""

from typing import Any

from dino_ssl.config import PretrainConfig, RunConfig
from dino_ssl.config_checks import check
from dino_ssl.config_finetune import ClassifyConfig
from dino_ssl.config_finetune_checks import check_classify
from dino_ssl.config_schema import Kind
from dino_ssl.original_flags import REPLACEMENTS, WITHOUT_EFFECT

PRETRAIN = Kind("pretrain", PretrainConfig, check, REPLACEMENTS, WITHOUT_EFFECT, has_presets=True)
CLASSIFY = Kind("finetune classify", ClassifyConfig, check_classify)
FINETUNES = {"classify": CLASSIFY}
"""By the word after `dino-ssl finetune`."""
KINDS: tuple[Kind[Any], ...] = (PRETRAIN, *FINETUNES.values())


def kind_of(config: RunConfig) -> Kind[Any]:
    """The command that takes such a configuration."""
    return next(kind for kind in KINDS if kind.config is type(config))
