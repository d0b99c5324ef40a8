"""Checkpoints of dino, ibot, dinov2, timm, torchvision and our own as frozen encoders, with a word on what matched."""

import hashlib
from dataclasses import dataclass, replace
from math import isqrt
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from dino_ssl.errors import UsageError
from dino_ssl.models.backbone import VIT_SIZES, Backbone, build_backbone
from dino_ssl.models.encoder import Encoder
from dino_ssl.models.timm_adapter import TimmBackbone
from dino_ssl.models.vit import VisionTransformer
from dino_ssl.models.weight_files import WeightFile, read_weight_file
from dino_ssl.models.weight_keys import (
    Network,
    Recognised,
    Tensors,
    groups,
    is_vit,
    may_be_left_out,
    network_in,
    recognise,
)

OUR_FORMAT = "dino-ssl/"
LEAST_MATCHED = 0.95
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
MOST_NAMED = 4
"""Tensors that an error names one by one."""


@dataclass(frozen=True)
class _Images:
    """How the images of an encoder are prepared; the fields are those of `Encoder`."""

    size: int = 224
    center_crop: float = 0.875
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD


@dataclass(frozen=True)
class _Plan:
    """What is to be built, and for which images."""

    family: str
    name: str
    backbone: nn.Module
    images: _Images


def load_encoder(
    path: Path,
    *,
    key: str = "teacher",
    arch: str | None = None,
    patch_size: int | None = None,
    size: int | None = None,
    center_crop: float | None = None,
) -> Encoder:
    """Read a frozen encoder; what the file says of itself decides, what it does not say comes from the arguments.

    Args:
        path: a run's folder, a file, or a folder as timm writes it.
        key: teacher or student, in files that have both.
        arch: a name for `build_backbone`, needed where neither a configuration nor the names of the tensors tell.
        patch_size: to insist on, pixels; the file's tensors have one already.
        size, center_crop: in place of the file's own, see `Encoder`.
    Raises:
        UsageError: the file cannot be used, is of no known family, contradicts the arguments, or fewer than 95 % of
            the tensors match.
    """
    file = read_weight_file(path)
    network = network_in(file.content, key, file.path)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        plan = _planned(file, network, arch)
    used, report = _fill(plan.backbone, network, file.path)
    images = replace(plan.images, size=size or plan.images.size, center_crop=center_crop or plan.images.center_crop)
    _check_sizes(plan, network, images.size, patch_size, file.path)
    return Encoder(
        backbone=cast(Backbone, plan.backbone.eval().requires_grad_(False)),
        name=plan.name,
        origin=_origin(file, network),
        digest=_digest(used),
        report=", ".join([report[0], *_interpolated(network, images.size), *report[1:]]),
        size=images.size,
        center_crop=images.center_crop,
        mean=images.mean,
        std=images.std,
    )


def _planned(file: WeightFile, network: Network, arch: str | None) -> _Plan:
    """By what is surest: our own configuration, timm's, the user's word, the names of the tensors."""
    if str(file.content.get("format", "")).startswith(OUR_FORMAT):
        return _our_plan(file, arch)
    if file.card:
        return _timm_plan(file, network)
    if arch is not None:
        return _asked_plan(arch, network, file.path)
    found = recognise(network, file.path)
    return _Plan(found.family, found.name, _build(found), _imagenet(found, file.path))


def _our_plan(file: WeightFile, arch: str | None) -> _Plan:
    try:
        config = file.content["config"]
        model, crops = config["model"], config["crops"]
        backbone = build_backbone(
            model["name"],
            image_size=crops["global_size"],
            patch_size=model["patch_size"],
            small_stem=model["small_stem"],
            in_chans=len(crops["mean"]),
        )
        images = _Images(crops["global_size"], config["knn"]["center_crop"], tuple(crops["mean"]), tuple(crops["std"]))
    except (KeyError, TypeError) as error:
        raise UsageError(f"{file.path} says that dino-ssl wrote it, but its configuration lacks {error}") from None
    if arch not in (None, model["name"]):
        raise UsageError(f"arch={arch}, but {file.path} holds {model['name']}; leave --arch out")
    name = f"{model['name']}/{model['patch_size']}" if model["name"] in VIT_SIZES else model["name"]
    return _Plan("dino-ssl", name, backbone, images)


def _timm_plan(file: WeightFile, network: Network) -> _Plan:
    """What timm's own `config.json` says."""
    card, name = file.card, f"timm/{file.card['architecture']}"
    try:
        told = card.get("pretrained_cfg", card)
        channels, size, _ = told["input_size"]
        images = _Images(size, told["crop_pct"], tuple(told["mean"]), tuple(told["std"]))
        backbone = TimmBackbone(
            card["architecture"], image_size=size, in_chans=channels, options=card.get("model_args", {})
        )
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(f"{file.path.with_name('config.json')} is no configuration of timm: {error}") from None
    return _Plan("timm", name, backbone, images)


def _asked_plan(arch: str, network: Network, path: Path) -> _Plan:
    """What the user calls the network; sizes are those of the tensors."""
    if arch.startswith("timm/"):
        backbone = TimmBackbone(arch.removeprefix("timm/"), image_size=_Images.size)
        told = backbone.model.pretrained_cfg
        images = _Images(told["input_size"][-1], told["crop_pct"], tuple(told["mean"]), tuple(told["std"]))
        if images.size != _Images.size:
            backbone = TimmBackbone(arch.removeprefix("timm/"), image_size=images.size)
        return _Plan("timm", arch, backbone, images)
    found = recognise(network, path) if is_vit(network) or arch not in VIT_SIZES else None
    if found is not None and not found.arch and arch in VIT_SIZES:
        dim, depth, heads = VIT_SIZES[arch]
        options = {**found.options, "embed_dim": dim, "depth": depth, "num_heads": heads}
        return _Plan(found.family, f"{arch}/{options['patch_size']}", VisionTransformer(**options), _Images())
    return _Plan("torchvision", arch, build_backbone(arch, image_size=_Images.size), _Images())


def _build(found: Recognised) -> nn.Module:
    if found.arch:
        return build_backbone(found.arch, image_size=_Images.size, **found.options)
    return VisionTransformer(**found.options)


def _imagenet(found: Recognised, path: Path) -> _Images:
    if found.options["in_chans"] != len(IMAGENET_MEAN):
        raise UsageError(
            f"{path} takes {found.options['in_chans']} channels and does not say their mean and deviation; write the "
            "checkpoint of a run, or a folder with the config.json of timm"
        )
    return _Images()


def _fill(backbone: nn.Module, network: Network, path: Path) -> tuple[Tensors, list[str]]:
    """Put the tensors in; those that fitted, and what to report of it.

    Raises:
        UsageError: fewer than 95 % of the tensors of both sides have a partner of the same shape.
    """
    prefix = "model." if isinstance(backbone, TimmBackbone) else ""
    given = {name if name.startswith(prefix) else prefix + name: value for name, value in network.tensors.items()}
    wanted = backbone.state_dict()
    heads = {name for name in given.keys() - wanted.keys() if may_be_left_out(name.removeprefix(prefix))}
    given = {name: value for name, value in given.items() if name not in heads}
    used = {name: value for name, value in given.items() if name in wanted and wanted[name].shape == value.shape}
    if len(used) < LEAST_MATCHED * len(given.keys() | wanted.keys()):
        raise _mismatch(given, wanted, used, path)
    backbone.load_state_dict(used, strict=False)
    missing, surplus = sorted(wanted.keys() - used.keys()), sorted(given.keys() - used.keys())
    ignored = groups([*network.outside, *(name.removeprefix(prefix) for name in heads)])
    notes = {
        "NOT in the file, left as built:": missing,
        "in the file, NOT used:": surplus,
        "ignored": ignored,
    }
    return used, [f"matched {len(used)}/{len(wanted)}", *(f"{k} {' '.join(v)}" for k, v in notes.items() if v)]


def _mismatch(given: dict[str, Tensor], wanted: dict[str, Tensor], used: Tensors, path: Path) -> UsageError:
    def some(names: list[str], of: dict[str, Tensor]) -> str:
        listed = [f"{name} {tuple(of[name].shape)}" for name in names[:MOST_NAMED]]
        return ", ".join(listed) + (f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else "")

    lacking, surplus = [n for n in wanted if n not in used], [n for n in given if n not in used]
    return UsageError(
        f"{path}: only {len(used)} of {len(wanted)} tensors match (95 % are needed). The network wants "
        f"{some(lacking, wanted) or 'nothing more'}; the file has {some(surplus, given) or 'nothing more'}; write the "
        "network that it was made with, as --arch vit_small, resnet50 or timm/NAME"
    )


def _check_sizes(plan: _Plan, network: Network, size: int, patch_size: int | None, path: Path) -> None:
    weight = network.tensors.get("patch_embed.proj.weight")
    if patch_size is not None and (weight is None or weight.shape[-1] != patch_size):
        has = "has no patches" if weight is None else f"has patches of {weight.shape[-1]}"
        raise UsageError(f"patch_size={patch_size}, but the network in {path} {has}; leave --patch-size out")
    if weight is not None and isinstance(plan.backbone, VisionTransformer) and size % weight.shape[-1]:
        patch = weight.shape[-1]
        near = max(patch, round(size / patch) * patch)
        raise UsageError(f"size={size} must be a multiple of the patch size {patch}; write --size {near}")


def _interpolated(network: Network, size: int) -> list[str]:
    positions, patch = network.tensors.get("pos_embed"), network.tensors.get("patch_embed.proj.weight")
    if positions is None or patch is None or positions.ndim != 3:
        return []
    side, grid = isqrt(positions.shape[1]), size // patch.shape[-1]
    return [f"interpolated pos_embed {side}x{side} -> {grid}x{grid}"] if side != grid else []


def _origin(file: WeightFile, network: Network) -> str:
    parts = [str(file.path), network.key]
    step = file.content.get("step", "")
    return ", ".join(filter(None, [*parts, f"step {step}" if isinstance(step, int) else ""]))


def _digest(tensors: Tensors) -> str:
    """SHA-256 over name, type, shape and bytes of every tensor, sorted by name."""
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
