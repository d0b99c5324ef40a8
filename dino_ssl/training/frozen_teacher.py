"""Another pretraining's teacher, frozen: what label-free distillation into a smaller network learns from."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dino_ssl.config import PretrainConfig
from dino_ssl.config_kinds import PRETRAIN
from dino_ssl.config_yaml import from_dict
from dino_ssl.dino.method import MultiCropNetwork
from dino_ssl.errors import UsageError
from dino_ssl.models.backbone import check_crop_sizes
from dino_ssl.models.weight_files import read_weight_file
from dino_ssl.training.build import build_network

PRETRAINED = "dino-ssl/1"
"""Format of the checkpoints of a pretraining."""
SAME = ("head.prototypes", "crops.mean", "crops.std")
"""Knobs that both runs must have alike."""


@dataclass(frozen=True)
class Frozen:
    """A network and the state of the centre of its logits."""

    network: MultiCropNetwork
    center: dict[str, Any]


def frozen_teacher(config: PretrainConfig) -> Frozen | None:
    """The teacher of the pretraining that `dino.frozen_teacher` names; None where it names none.

    Raises:
        UsageError: it is no pretraining of this tool, or its prototypes or pixels are not this run's.
    """
    if not (path := config.dino.frozen_teacher):
        return None
    content = read_weight_file(Path(path)).content
    if content.get("format") != PRETRAINED:
        raise UsageError(f"dino.frozen_teacher={path} is no pretraining of dino-ssl; write the folder of its run")
    told = from_dict(content["config"], PRETRAIN)
    _check_alike(config, told)
    network = build_network(told, drop_path=0.0)
    network.load_state_dict(content["teacher"])
    check_crop_sizes(network.backbone, {"crops.global_size": config.crops.global_size}, config.crops.channels)
    return Frozen(network, content["dino_loss"])


def _check_alike(config: PretrainConfig, told: PretrainConfig) -> None:
    path = config.dino.frozen_teacher
    if config.dino.region_loss or told.dino.region_loss:
        raise UsageError(f"dino.frozen_teacher={path} and dino.region_loss do not go together; write one of them")
    for knob in SAME:
        section, name = knob.split(".")
        theirs, ours = (vars(vars(one)[section])[name] for one in (told, config))
        if theirs != ours:
            raise UsageError(f"{knob}={ours}, but of dino.frozen_teacher={path} it is {theirs}; write the same")
