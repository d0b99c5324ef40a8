"""The backbone of a fine-tuning: from scratch, or from any checkpoint that `dino-ssl inspect` understands."""

from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from dino_ssl.config_finetune import FinetuneConfig, Start, View
from dino_ssl.errors import UsageError
from dino_ssl.models.backbone import build_backbone, check_crop_sizes
from dino_ssl.models.cmt_keys import cmt_options
from dino_ssl.models.necks import EmbeddingNetwork
from dino_ssl.models.resnet import LAYOUTS
from dino_ssl.models.weight_plans import IMAGENET_MEAN, IMAGENET_STD
from dino_ssl.models.weights import Loaded, load

C = TypeVar("C", bound=FinetuneConfig)


def started(config: C) -> tuple[C, nn.Module]:
    """The configuration with what the weights decide filled in, and the backbone, ready to be trained.

    Raises:
        UsageError: the weights cannot be used, are of another network than model.name, or the size does not fit.
    """
    torch.manual_seed(config.seed)
    if config.model.weights:
        config, backbone = _from_weights(config)
    else:
        config = _with_pixels(config, IMAGENET_MEAN, IMAGENET_STD)
        backbone = _from_scratch(config)
    check_crop_sizes(backbone, {"crops.size": config.crops.size}, config.crops.channels)
    if config.model.activation_checkpointing:
        backbone.set_grad_checkpointing()  # type: ignore[operator]
    if config.model.compile:
        backbone.compile()
    return config, backbone


def _from_scratch(config: FinetuneConfig) -> nn.Module:
    model = config.model
    return build_backbone(
        model.name,
        image_size=config.crops.size,
        patch_size=model.patch_size,
        drop_path=model.drop_path,
        small_stem=model.small_stem,
        position_bias=model.position_bias,
        in_chans=config.crops.channels,
    )


def _from_weights(config: C) -> tuple[C, nn.Module]:
    loaded = load(
        Path(config.model.weights),
        key=config.model.key,
        arch=config.model.name or None,
        drop_path=config.model.drop_path,
    )
    encoder = loaded.encoder
    # A neck belongs to what it was trained for.
    backbone = encoder.backbone.backbone if isinstance(encoder.backbone, EmbeddingNetwork) else encoder.backbone
    assert isinstance(backbone, nn.Module)
    if encoder.channels != config.crops.channels:
        raise UsageError(
            f"crops.channels={config.crops.channels}, but model.weights={config.model.weights} takes "
            f"{encoder.channels}; write --crops.channels {encoder.channels}"
        )
    knobs = _knobs_of(loaded)
    _check_given(config, knobs)
    model = replace(config.model, **knobs)
    config = _with_pixels(replace(config, model=model), encoder.mean, encoder.std)
    return config, backbone.train().requires_grad_(True)


def _knobs_of(loaded: Loaded) -> dict[str, Any]:
    """Knobs of `model` that build the file's network again."""
    if loaded.family == "dino-ssl":
        told = loaded.file.content["config"]["model"]
        return {name: told[name] for name in ("name", "patch_size", "small_stem", "position_bias") if name in told}
    name = loaded.encoder.name
    return {
        # Of ViTs without the patch size, which is a knob of its own.
        "name": name if name.startswith("timm/") else name.partition("/")[0],
        "patch_size": loaded.encoder.backbone.patch_size,
        # Of a CMT the tensors do not tell, and it was read with the ordinary stem.
        "small_stem": name in LAYOUTS and loaded.tensors["conv1.weight"].shape[-1] == 3,
        "position_bias": (cmt_options(loaded.tensors) or {}).get("position_bias", "free"),
    }


def _check_given(config: FinetuneConfig, told: dict[str, Any]) -> None:
    """No knob of `model` says something else than the weights do; as it is by default it says nothing."""
    is_vit = told["name"].startswith("vit_")
    for knob, value in told.items():
        given = vars(config.model)[knob]
        # load() has compared the names; only ViTs have patches.
        if knob == "name" or (knob == "patch_size" and not is_vit) or given in (vars(Start())[knob], value):
            continue
        mine, theirs = (str(one).lower() for one in (given, value))
        raise UsageError(
            f"model.{knob}={mine}, but of model.weights={config.model.weights} it is {theirs}; "
            f"leave it out, or write --model.{knob.replace('_', '-')} {theirs}"
        )


def _with_pixels(config: C, mean: tuple[float, ...], std: tuple[float, ...]) -> C:
    """With mean and deviation where the configuration has none."""
    if config.crops.mean:
        return config
    crops: View = replace(config.crops, mean=mean, std=std)
    return replace(config, crops=crops)
