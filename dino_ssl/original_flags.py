"""The flags of the original `main_dino.py` (facebookresearch/dino), each with the knob that replaces it.

Its --epochs, --seed and --output_dir are knobs of ours by the same name and need no entry.
"""

from collections.abc import Callable
from dataclasses import dataclass

from dino_ssl.training.ranks import placement


def unchanged(value: str) -> str:
    return value


def boolean(value: str) -> str:
    """ "true" or "false" for the spellings that the original takes.

    Raises:
        ValueError: any other spelling.
    """
    match value.lower():
        case "true" | "1" | "on":
            return "true"
        case "false" | "0" | "off":
            return "false"
        case _:
            raise ValueError("must be true or false")


def _precision(value: str) -> str:
    return "fp16" if boolean(value) == "true" else "fp32"


def _backbone(value: str) -> str:
    # The original does the same: its ViT-S is what others call DeiT-S.
    return value.replace("deit_", "vit_")


def _global_batch(value: str) -> str:
    try:
        images = int(value)
    except ValueError:
        raise ValueError("must be a whole number") from None
    return str(images * placement().world_size)


@dataclass(frozen=True)
class Replacement:
    """The knob behind an original flag, and how its value is rewritten."""

    knob: str
    rewrite: Callable[[str], str] = unchanged


REPLACEMENTS = {
    "arch": Replacement("model.name", _backbone),
    "patch_size": Replacement("model.patch_size"),
    "drop_path_rate": Replacement("model.drop_path"),
    "out_dim": Replacement("head.prototypes"),
    "norm_last_layer": Replacement("head.norm_last_layer", boolean),
    "use_bn_in_head": Replacement("head.batch_norm", boolean),
    "momentum_teacher": Replacement("dino.momentum"),
    "warmup_teacher_temp": Replacement("dino.warmup_teacher_temperature"),
    "teacher_temp": Replacement("dino.teacher_temperature"),
    "warmup_teacher_temp_epochs": Replacement("dino.warmup_teacher_temperature_epochs"),
    "use_fp16": Replacement("precision", _precision),
    "weight_decay": Replacement("optim.weight_decay"),
    "weight_decay_end": Replacement("optim.weight_decay_end"),
    "clip_grad": Replacement("optim.clip_grad"),
    "freeze_last_layer": Replacement("optim.freeze_last_layer_epochs"),
    "lr": Replacement("optim.lr"),
    "warmup_epochs": Replacement("optim.warmup_epochs"),
    "min_lr": Replacement("optim.min_lr"),
    "optimizer": Replacement("optim.name"),
    "batch_size_per_gpu": Replacement("batch_size", _global_batch),
    "global_crops_scale": Replacement("crops.global_scale"),
    "local_crops_number": Replacement("crops.num_local_crops"),
    "local_crops_scale": Replacement("crops.local_scale"),
    "data_path": Replacement("data"),
    "saveckp_freq": Replacement("checkpoint.keep_every"),
    "num_workers": Replacement("loader.num_workers"),
}

# torchrun puts both into the environment, where `distributed` reads them.
WITHOUT_EFFECT = ("dist_url", "local_rank")
