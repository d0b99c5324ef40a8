"""Which network a file's tensors are of, told by their names and shapes alone."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from math import isqrt
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dino_ssl.errors import UsageError
from dino_ssl.models.backbone import VIT_SIZES
from dino_ssl.models.cifar_resnet import CIFAR_SIZES, CifarSize
from dino_ssl.models.cmt import CMT_SIZES
from dino_ssl.models.cmt_keys import cmt_name, cmt_options, with_our_names

Tensors = dict[str, Tensor]

WRAPPERS = ("module.", "_orig_mod.", "backbone.")
BACKBONE = "backbone."
CONTAINERS = ("state_dict", "model")
NOT_OF_THE_BACKBONE = (
    "head", "fc", "classifier", "linear", "dino_head", "ibot_head", "mask_token", "masked_embed",
    "_fc", "_bn",  # between the last stage of a released CMT and its classifier
)  # fmt: skip
"""First parts of names that may be left out: projection and classification heads, and tokens for masked patches."""

CLASSIFIER = re.compile(r"(head|fc|classifier|linear)\.(\d+\.|fc\.)?weight")
"""Names under which a linear classifier keeps its weight."""

DINOV2_SIZES = {(384, 12): "s", (768, 12): "b", (1024, 24): "l", (1536, 40): "g"}
RESNETS: dict[tuple[str, tuple[int, ...]], str] = {
    ("conv2", (2, 2, 2, 2)): "resnet18",
    ("conv2", (3, 4, 6, 3)): "timm/resnet34",
    ("conv3", (3, 4, 6, 3)): "resnet50",
    ("conv3", (3, 4, 23, 3)): "timm/resnet101",
    ("conv3", (3, 8, 36, 3)): "timm/resnet152",
}
LARGEST_CLAIM = 2**30
"""Bytes that a tensor may have where fewer lie in the file: no network has one so large of repeated numbers."""
HEAD_DIM = 64
"""Dimensions of a head in every released ViT of these families; of other sizes too, as far as can be known."""


@dataclass(frozen=True)
class Network:
    """One network of a file.

    Attributes:
        tensors: of the backbone, by its own names; in files without a `backbone.` perhaps of a head as well.
        key: teacher or student; empty where the file holds one network only.
        outside: names of what stands beside the backbone.
    """

    tensors: Tensors
    key: str
    outside: list[str]


@dataclass(frozen=True)
class Recognised:
    """What the names say.

    Attributes:
        family: dino, ibot, dinov2, timm, torchvision, cifar, cmt.
        name: of the architecture, for people.
        arch: a name for `build_backbone`; empty for ViTs, which `options` describe.
        options: arguments of `VisionTransformer` or of `build_backbone`.
    """

    family: str
    name: str
    arch: str
    options: dict[str, Any] = field(default_factory=dict)


def network_in(content: dict[str, Any], key: str, path: Path) -> Network:
    """The backbone that a file holds under `key` (teacher or student), or its only one.

    Raises:
        UsageError: it has no such network, or no tensors, or one of them twice.
    """
    tensors, key = _chosen(content, key, path)
    inside = [name for name in tensors if _is_inside(name)] or list(tensors)
    backbone = with_our_names({_joined_chunks(_without_wrappers(name)): tensors[name] for name in inside})
    if len(backbone) < len(inside):
        raise UsageError(f"{path} holds tensors that differ in their prefixes only; write a file of one network")
    return Network(backbone, key, sorted(_without_wrappers(name) for name in tensors.keys() - set(inside)))


def classifier_in(content: dict[str, Any], key: str, path: Path) -> tuple[Tensor, Tensor] | None:
    """Weight and bias of the linear classifier beside the backbone; None where the file has none, or several.

    Raises:
        UsageError: as `network_in`.
    """
    tensors = {_without_wrappers(name): value for name, value in _chosen(content, key, path)[0].items()}
    weights = [name for name, value in tensors.items() if CLASSIFIER.fullmatch(name) and value.ndim == 2]
    if len(weights) != 1 or (bias := weights[0].removesuffix("weight") + "bias") not in tensors:
        return None
    return tensors[weights[0]], tensors[bias]


def may_be_left_out(name: str) -> bool:
    """Whether a name that the backbone has no use for is one of `NOT_OF_THE_BACKBONE`."""
    return _group(name) in NOT_OF_THE_BACKBONE


def _chosen(content: dict[str, Any], key: str, path: Path) -> tuple[Tensors, str]:
    if both := [name for name in ("teacher", "student") if isinstance(content.get(name), dict)]:
        if key not in both:
            raise UsageError(f"{path} has no {key}; write --key {both[0]}")
        return _only_tensors(content[key], path), key
    if key == "student":
        raise UsageError(f"{path} holds one network, not a teacher and a student; leave --key out")
    inner = next((content[name] for name in CONTAINERS if isinstance(content.get(name), dict)), content)
    return _only_tensors(inner, path), ""


def _only_tensors(state: dict[str, Any], path: Path) -> Tensors:
    tensors = {str(name): value for name, value in state.items() if isinstance(value, Tensor)}
    if not tensors:
        found = ", ".join(map(str, list(state)[:5]))
        raise UsageError(f"{path} holds no weights by name, but {found}; write the path of a checkpoint")
    if odd := [name for name, value in tensors.items() if not _lies_in_file(value)]:
        raise UsageError(f"{path}: {odd[0]} is no tensor of plain numbers that lie in the file; write it out dense")
    return tensors


def _lies_in_file(value: Tensor) -> bool:
    """Not sparse, nested, quantised, complex, without a device, or one number that claims to be a billion."""
    if type(value) not in (Tensor, nn.Parameter) or value.layout is not torch.strided or value.is_nested:
        return False
    if value.device.type != "cpu" or value.is_quantized or value.is_complex():
        return False
    return value.nbytes <= max(value.untyped_storage().nbytes(), LARGEST_CLAIM)


def _without_wrappers(name: str) -> str:
    """The name without what wrappers put before it; what stands inside of it is its own."""
    while wrapper := next((w for w in WRAPPERS if name.startswith(w)), None):
        name = name.removeprefix(wrapper)
    return name


def _is_inside(name: str) -> bool:
    return BACKBONE in name[: len(name) - len(_without_wrappers(name))]


def _joined_chunks(name: str) -> str:
    """`blocks.3.norm1.weight` of `blocks.0.3.norm1.weight`, as DINOv2 trains in chunks that count through."""
    parts = name.split(".")
    if parts[0] == "blocks" and len(parts) > 3 and parts[1].isdecimal() and parts[2].isdecimal():
        del parts[1]
    return ".".join(parts)


def _group(name: str) -> str:
    return name.partition(".")[0]


def groups(names: Iterable[str]) -> list[str]:
    """`head.*` for all names below `head`, others whole; sorted."""
    return sorted({f"{_group(name)}.*" if "." in name else name for name in names})


def recognise(network: Network, path: Path) -> Recognised:
    """Family, architecture and sizes.

    Raises:
        UsageError: the names are of no known family.
    """
    if is_vit(network):
        return recognise_vit(network, path)
    if found := recognise_resnet(network) or recognise_cifar_resnet(network) or recognise_cmt(network):
        return found
    some = ", ".join(sorted(network.tensors)[:5])
    raise UsageError(
        f"{path} holds tensors of no known network ({some}, ...); known are the ViTs of dino, ibot, dinov2 and timm, "
        f"ResNets, and {', '.join(CMT_SIZES)}; of another network of timm write the name, as --arch timm/NAME"
    )


def is_vit(network: Network) -> bool:
    """Whether it has a class token, blocks, and a table of positions."""
    has_blocks = {"cls_token", "blocks.0.attn.qkv.weight"} <= network.tensors.keys()
    return has_blocks and trained_grid(network) is not None


def trained_grid(network: Network) -> tuple[int, int] | None:
    """Side of the square table of positions, with or without a row for a class token, and the patch size, pixels."""
    positions, patch = network.tensors.get("pos_embed"), network.tensors.get("patch_embed.proj.weight")
    if positions is None or patch is None or positions.ndim != 3 or patch.ndim != 4:
        return None
    return isqrt(positions.shape[1]), patch.shape[-1]


def recognise_resnet(network: Network) -> Recognised | None:
    """A ResNet of `RESNETS`, told by its blocks in every stage; None if it is none."""
    names = network.tensors
    if not {"conv1.weight", *(f"layer{stage}.0.conv1.weight" for stage in (1, 2, 3, 4))} <= names.keys():
        return None
    layers = tuple(len(_numbers(names, f"layer{stage}.")) for stage in (1, 2, 3, 4))
    last = "conv3" if "layer1.0.conv3.weight" in names else "conv2"
    arch = RESNETS.get((last, layers))
    if arch is None:
        return None
    stem = names["conv1.weight"]
    options = {"in_chans": stem.shape[1]} | ({"small_stem": True} if stem.shape[-1] == 3 else {})
    return Recognised("torchvision", arch.removeprefix("timm/"), arch, options)


def recognise_cifar_resnet(network: Network) -> Recognised | None:
    """One of `CIFAR_SIZES`, told by its three stages, their widths, and where its first BN stands."""
    names = network.tensors
    firsts = [f"layer{stage}.0.conv1.weight" for stage in (1, 2, 3)]
    if not {"conv1.weight", "bn1.weight", *firsts} <= names.keys() or "layer4.0.conv1.weight" in names:
        return None
    stem, width = len(names["conv1.weight"]), len(names[firsts[0]])
    size = CifarSize(len(_numbers(names, "layer1.")), stem, width, is_wide=len(names["bn1.weight"]) != stem)
    name = next((name for name, known in CIFAR_SIZES.items() if known == size), None)
    return Recognised("cifar", name, name, {"in_chans": names["conv1.weight"].shape[1]}) if name else None


def recognise_cmt(network: Network) -> Recognised | None:
    """A CMT of `CMT_SIZES`, released or ours; None if it is none."""
    arch, options = cmt_name(network.tensors), cmt_options(network.tensors)
    return None if arch is None or options is None else Recognised("cmt", arch, arch, options)


def recognise_vit(network: Network, path: Path) -> Recognised:
    """A ViT with a class token, of any size.

    Raises:
        UsageError: it has what only timm's ViTs have.
    """
    names = network.tensors
    odd = sorted({"fc_norm.weight", "reg_token", "norm_pre.weight"} & names.keys())
    positions = names["pos_embed"].shape[1] - 1
    if isqrt(positions) ** 2 != positions:
        odd.append(f"positions of {positions + 1} tokens, not of a square grid and a class token")
    if odd:
        raise UsageError(f"{path} is a ViT as only timm has them ({', '.join(odd)}); write its name, --arch timm/NAME")
    options = _vit_options(names, path)
    family = _family_of_vit(network)
    options["antialias_positions"] = family == "timm" or options["num_registers"] > 0
    return Recognised(family, _vit_name(family, options), "", options)


def _family_of_vit(network: Network) -> str:
    names = network.tensors
    if {"register_tokens", "blocks.0.ls1.gamma", "blocks.0.mlp.w12.weight"} & names.keys():
        return "dinov2"
    if "masked_embed" in names:
        return "ibot"
    # A classifier of its own layer; dino's heads are perceptrons, `head.mlp.0.weight`.
    return "timm" if "head.weight" in names else "dino"


def _vit_options(names: Tensors, path: Path) -> dict[str, Any]:
    """Arguments of `VisionTransformer` that the shapes of a ViT's tensors give; the heads are those of its size."""
    patch = names["patch_embed.proj.weight"]
    dim, patch_size, depth = patch.shape[0], patch.shape[-1], len(_numbers(names, "blocks."))
    known = {(width, blocks): heads for width, blocks, heads in VIT_SIZES.values()}
    if (dim, depth) not in known and dim % HEAD_DIM:
        raise UsageError(f"{path} is a ViT {dim} wide, whose heads nobody knows; write its name, --arch timm/NAME")
    positions = names["pos_embed"].shape[1] - 1
    registers = names["register_tokens"].shape[1] if "register_tokens" in names else 0
    return {
        "image_size": isqrt(positions) * patch_size,
        "patch_size": patch_size,
        "in_chans": patch.shape[1],
        "embed_dim": dim,
        "depth": depth,
        "num_heads": known.get((dim, depth), dim // HEAD_DIM),
        "num_registers": registers,
        "layer_scale": 1.0 if "blocks.0.ls1.gamma" in names else None,
        "swiglu": "blocks.0.mlp.w12.weight" in names,
    }


def _numbers(names: Iterable[str], prefix: str) -> set[str]:
    """The numbers that follow `prefix` in the names."""
    parts = {name.removeprefix(prefix).partition(".")[0] for name in names if name.startswith(prefix)}
    return {part for part in parts if part.isdecimal()}


def _vit_name(family: str, options: dict[str, Any]) -> str:
    size, patch_size = (options["embed_dim"], options["depth"]), options["patch_size"]
    if family == "dinov2" and size in DINOV2_SIZES:
        return f"dinov2_vit{DINOV2_SIZES[size]}{patch_size}" + ("_reg" if options["num_registers"] else "")
    sizes = {(dim, depth): name for name, (dim, depth, _) in VIT_SIZES.items()}
    return f"{sizes.get(size, f'vit_{size[0]}x{size[1]}')}/{patch_size}"
