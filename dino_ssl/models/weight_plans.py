"""Which network is to be built for a file, and how its images are prepared."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import inf
from pathlib import Path
from typing import Any

from torch import nn

from dino_ssl.errors import UsageError
from dino_ssl.models.backbone import VIT_SIZES, build_backbone, unknown_backbone
from dino_ssl.models.cifar_resnet import CIFAR_SIZES
from dino_ssl.models.cmt import CMT_SIZES
from dino_ssl.models.cmt_keys import cmt_options
from dino_ssl.models.resnet import LAYOUTS
from dino_ssl.models.timm_adapter import TimmBackbone
from dino_ssl.models.vit import VisionTransformer
from dino_ssl.models.weight_files import WeightFile
from dino_ssl.models.weight_keys import (
    Network,
    Recognised,
    is_vit,
    recognise,
    recognise_cifar_resnet,
    recognise_resnet,
    recognise_vit,
    trained_grid,
)

OUR_FORMAT = "dino-ssl/"
LARGEST_SIDE = 8192
"""Of the images of a network, pixels: a file that asks for more would have the memory filled before it is refused."""
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Images:
    """How the images of an encoder are prepared, see `Encoder`; the defaults are those of DINO's evaluations."""

    size: int = 224
    center_crop: float = 0.875
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD


CIFAR_IMAGES = Images(size=32, center_crop=1.0, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
"""Whole pixels in [0, 1]: files of CIFAR networks do not say how their images were normalised."""


@dataclass(frozen=True)
class Plan:
    """A network to build and its images.

    Attributes:
        family: dino-ssl, dino, ibot, dinov2, timm, torchvision, cifar or cmt.
        name: of the architecture, for people.
        build: makes it with fresh weights; takes `drop_path`.
        all_is_stored: whether the network is nothing but its tensors, so that it can be made without their values.
    """

    family: str
    name: str
    build: Callable[..., nn.Module]
    images: Images
    all_is_stored: bool = False


def plan_for(file: WeightFile, network: Network, arch: str | None) -> Plan:
    """By what is surest: our own configuration, timm's, the user's word, the names of the tensors.

    Raises:
        UsageError: none of them tells, or they contradict each other.
    """
    if is_ours(file):
        return _by_our_configuration(file, network, arch)
    if file.card:
        return _by_card(file, arch)
    if arch is None:
        return _by_names(recognise(network, file.path), file.path)
    if arch.startswith("timm/"):
        return _by_timms_name(arch, network)
    return _by_our_name(arch, network, file.path)


def is_ours(file: WeightFile) -> bool:
    """Whether this tool's pretraining wrote the file."""
    return str(file.content.get("format", "")).startswith(OUR_FORMAT)


def _by_our_configuration(file: WeightFile, network: Network, arch: str | None) -> Plan:
    try:
        config = file.content["config"]
        model, crops = config["model"], config["crops"]
        size, center_crop = _evaluated_at(config)
        _check_sizes(size, model["patch_size"])
        _check_agreement(arch, model["name"], file.path)
        build = (
            _vit_as_stored(model, network, file.path)
            or _cmt_as_stored(model, network)
            or partial(
                build_backbone,
                model["name"],
                image_size=size,
                patch_size=model["patch_size"],
                small_stem=model["small_stem"],
                in_chans=len(crops["mean"]),
            )
        )
        images = _images(size, center_crop, crops["mean"], crops["std"])
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(f"{file.path} says that dino-ssl wrote it, but its configuration lacks {error}") from None
    name = f"{model['name']}/{model['patch_size']}" if model["name"] in VIT_SIZES else model["name"]
    return Plan("dino-ssl", name, build, images, all_is_stored=model["name"] in VIT_SIZES)


def _vit_as_stored(model: dict[str, Any], network: Network, path: Path) -> Callable[..., nn.Module] | None:
    """Of a fine-tuned ViT, which may come from a file of others and have registers or layer scale."""
    if not model.get("weights") or not is_vit(network) or model["name"].startswith("timm/"):
        return None
    options = recognise_vit(network, path).options
    if model["name"] in VIT_SIZES:
        dim, depth, heads = VIT_SIZES[model["name"]]
        options = {**options, "embed_dim": dim, "depth": depth, "num_heads": heads}
    return partial(VisionTransformer, **options)


def _cmt_as_stored(model: dict[str, Any], network: Network) -> Callable[..., nn.Module] | None:
    """Of a CMT: a fine-tuned one may come from a file that was made for another size."""
    if model["name"] not in CMT_SIZES or (options := cmt_options(network.tensors)) is None:
        return None
    if model["small_stem"]:
        options |= {"image_size": options["image_size"] // 2, "small_stem": True}
    return partial(build_backbone, model["name"], **options)


def _evaluated_at(config: dict[str, Any]) -> tuple[int, float]:
    """Size in pixels and centre crop at which a pretraining, or a fine-tuning, measures."""
    if "validation" in config:
        return config["crops"]["size"], config["validation"]["center_crop"]
    return config["crops"]["global_size"], config["knn"]["center_crop"]


def _by_card(file: WeightFile, arch: str | None) -> Plan:
    """What timm's own `config.json` says."""
    card = file.card
    _check_agreement(arch, f"timm/{card['architecture']}", file.path)
    try:
        told = card.get("pretrained_cfg", card)
        channels, size, _ = told["input_size"]
        _check_sizes(channels, size)
        images = _images(size, told["crop_pct"], told["mean"], told["std"])
        options = card.get("model_args", {})
        build = partial(TimmBackbone, card["architecture"], image_size=size, in_chans=channels, options=options)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UsageError(f"{file.path.parent / 'config.json'} is no configuration of timm: it lacks {error}") from None
    return Plan("timm", f"timm/{card['architecture']}", build, images)


def _check_sizes(*sizes: object) -> None:
    """Raises ValueError for what a network cannot be built with; a damaged file may say anything."""
    for size in sizes:
        if not isinstance(size, int) or not 1 <= size <= LARGEST_SIDE:
            raise ValueError(f"a size from 1 to {LARGEST_SIDE} (it says {str(size)[:40]!r})")


def _images(size: int, center_crop: Any, mean: Any, std: Any) -> Images:
    share, means, stds = float(center_crop), tuple(map(float, mean)), tuple(map(float, std))
    if not 0 < share <= 1 or len(means) != len(stds) or not all(0 < deviation < inf for deviation in stds):
        raise ValueError(f"a crop of at most 1 and as many deviations as means ({share}, {means}, {stds})")
    return Images(size, share, means, stds)


def _check_agreement(arch: str | None, told: str, path: Path) -> None:
    if arch not in (None, told):
        raise UsageError(f"arch={arch}, but {path} holds {told}; leave --arch out")


def _by_timms_name(arch: str, network: Network) -> Plan:
    """timm knows the images; the size is that of the file's table of positions, if it has one."""
    name = arch.removeprefix("timm/")
    told = TimmBackbone(name, image_size=Images.size).model.pretrained_cfg
    images = Images(told["input_size"][-1], told["crop_pct"], tuple(told["mean"]), tuple(told["std"]))
    trained = trained_grid(network)
    size = trained[0] * trained[1] if trained else images.size
    return Plan("timm", arch, partial(TimmBackbone, name, image_size=size), images)


def _by_our_name(arch: str, network: Network, path: Path) -> Plan:
    """The name says width, depth and heads; patches, positions and channels are those of the tensors."""
    if arch in VIT_SIZES and is_vit(network):
        found = recognise_vit(network, path)
        dim, depth, heads = VIT_SIZES[arch]
        sizes = {"embed_dim": dim, "depth": depth, "num_heads": heads}
        name = f"{arch}/{found.options['patch_size']}"
        return _by_names(Recognised(found.family, name, "", {**found.options, **sizes}), path)
    if arch in CMT_SIZES and (options := cmt_options(network.tensors)):
        return _by_names(Recognised("cmt", arch, arch, options), path)
    if arch in LAYOUTS and (resnet := recognise_resnet(network)):
        return _by_names(Recognised(resnet.family, arch, arch, resnet.options), path)
    if arch in CIFAR_SIZES and (small := recognise_cifar_resnet(network)):
        return _by_names(Recognised(small.family, arch, arch, small.options), path)
    if not any(arch in known for known in (VIT_SIZES, CMT_SIZES, LAYOUTS, CIFAR_SIZES)):
        raise UsageError(unknown_backbone(arch, knob="arch"))
    # Where nothing of it fits, the error says what would have been wanted.
    return Plan("", arch, partial(build_backbone, arch, image_size=Images.size), Images())


def _by_names(found: Recognised, path: Path) -> Plan:
    if found.options["in_chans"] != len(IMAGENET_MEAN):
        raise UsageError(
            f"{path} takes {found.options['in_chans']} channels and does not say their mean and deviation; write the "
            "checkpoint of a run, or a folder with the config.json of timm"
        )
    if found.family == "cifar":
        return Plan(found.family, found.name, partial(build_backbone, found.arch, image_size=32), CIFAR_IMAGES)
    if found.arch:
        options = {"image_size": Images.size, **found.options}
        build = partial(build_backbone, found.arch, **options)
        return Plan(found.family, found.name, build, Images(options["image_size"]))
    return Plan(found.family, found.name, partial(VisionTransformer, **found.options), Images(), all_is_stored=True)
