"""Checkpoints of dino, ibot, dinov2, timm, torchvision and our own as frozen encoders, with a word on what matched."""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from dino_ssl.errors import UsageError
from dino_ssl.models.backbone import Backbone
from dino_ssl.models.cmt import CMT
from dino_ssl.models.encoder import Encoder
from dino_ssl.models.low_rank import merged
from dino_ssl.models.timm_adapter import TimmBackbone
from dino_ssl.models.vit import VisionTransformer
from dino_ssl.models.weight_files import WeightFile, read_weight_file
from dino_ssl.models.weight_keys import Network, Tensors, groups, may_be_left_out, network_in, trained_grid
from dino_ssl.models.weight_necks import with_neck
from dino_ssl.models.weight_plans import Images, Plan, plan_for

LEAST_MATCHED = 0.95
MOST_NAMED = 4
"""Tensors that an error names one by one."""


@dataclass(frozen=True)
class Loaded:
    """An encoder and where it comes from.

    Attributes:
        family: dino-ssl, dino, ibot, dinov2, timm, torchvision, cifar or cmt.
        key: teacher or student; empty where the file holds one network only.
        tensors: what the file gave to the backbone, as it was there.
    """

    encoder: Encoder
    family: str
    key: str
    file: WeightFile
    tensors: Tensors


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
    return load(path, key=key, arch=arch, patch_size=patch_size, size=size, center_crop=center_crop).encoder


def load(
    path: Path,
    *,
    key: str = "teacher",
    arch: str | None = None,
    patch_size: int | None = None,
    size: int | None = None,
    center_crop: float | None = None,
    drop_path: float = 0.0,
) -> Loaded:
    """`load_encoder`, with what else there is to know.

    Args:
        drop_path: stochastic depth of a backbone that is to be trained on.
    """
    file = read_weight_file(path)
    network = network_in(file.content, key, file.path)
    network = replace(network, tensors=merged(network.tensors))
    plan, whole = with_neck(plan_for(file, network, arch), network, file)
    backbone = _built(plan, whole, drop_path).eval().requires_grad_(False)
    used, report = _fill(backbone, whole, file.path)
    images = replace(plan.images, size=size or plan.images.size, center_crop=center_crop or plan.images.center_crop)
    _check_patches(backbone, patch_size, file.path)
    _check_size(backbone, images)
    encoder = Encoder(
        backbone=cast(Backbone, backbone),
        name=plan.name,
        origin=_origin(file, network),
        digest=digest_of(used),
        report=", ".join([report[0], *_interpolated(backbone, network, images.size), *report[1:]]),
        size=images.size,
        center_crop=images.center_crop,
        mean=images.mean,
        std=images.std,
    )
    return Loaded(encoder, plan.family, network.key, file, used)


def _built(plan: Plan, network: Network, drop_path: float) -> nn.Module:
    """The network with the weights of seed 0; with none where the file has all, since drawing them takes seconds."""
    if plan.all_is_stored:
        with torch.device("meta"):
            backbone = plan.build(drop_path=drop_path)
        if backbone.state_dict().keys() <= network.tensors.keys():
            return backbone
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return plan.build(drop_path=drop_path)


def _fill(backbone: nn.Module, network: Network, path: Path) -> tuple[Tensors, list[str]]:
    """Put the tensors in; those that fitted, and what to report of it.

    Raises:
        UsageError: a tensor has another shape, or fewer than 95 % of both sides' tensors have a partner.
    """
    prefix = "model." if isinstance(backbone, TimmBackbone) else ""
    given = {name if name.startswith(prefix) else prefix + name: value for name, value in network.tensors.items()}
    # Counters of batch norm came into PyTorch late, and nothing that is frozen reads them.
    wanted = {k: v for k, v in backbone.state_dict().items() if k in given or not k.endswith("num_batches_tracked")}
    heads = {name for name in given.keys() - wanted.keys() if may_be_left_out(name.removeprefix(prefix))}
    given = {name: value for name, value in given.items() if name not in heads}
    used = {name: value for name, value in given.items() if name in wanted and wanted[name].shape == value.shape}
    misshapen = (given.keys() & wanted.keys()) - used.keys()
    if misshapen or len(used) < LEAST_MATCHED * len(given.keys() | wanted.keys()):
        raise UsageError(_mismatch(given, wanted, used, path))
    ready = {name: value.to(wanted[name].dtype).contiguous() for name, value in used.items()}
    backbone.load_state_dict(ready, strict=False, assign=True)
    notes = {
        "NOT in the file, left as built:": sorted(wanted.keys() - used.keys()),
        "in the file, NOT used:": sorted(given.keys() - used.keys()),
        "ignored": groups([*network.outside, *(name.removeprefix(prefix) for name in heads)]),
    }
    return used, [f"matched {len(used)}/{len(wanted)}", *(f"{k} {' '.join(v)}" for k, v in notes.items() if v)]


def _mismatch(given: Tensors, wanted: Tensors, used: Tensors, path: Path) -> str:
    lacking, surplus = [name for name in wanted if name not in used], [name for name in given if name not in used]
    return (
        f"{path}: {len(used)} of {len(wanted)} tensors match; at least 95 % must, and none may have another shape. The "
        f"network wants {_listed(lacking, wanted)}; the file has {_listed(surplus, given)}; write the network that it "
        "was made with, as --arch vit_small, resnet50 or timm/NAME"
    )


def _listed(names: list[str], tensors: Tensors) -> str:
    some = ", ".join(f"{name} {tuple(tensors[name].shape)}" for name in names[:MOST_NAMED])
    return some + (f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else "") if some else "no more"


def _check_patches(backbone: nn.Module, patch_size: int | None, path: Path) -> None:
    if patch_size is not None and patch_size != (found := cast(Backbone, backbone).patch_size):
        raise UsageError(f"patch_size={patch_size}, but of the network in {path} it is {found}; leave --patch-size out")


def _check_size(backbone: nn.Module, images: Images) -> None:
    """Of ViTs and CMTs by the patches; some networks of timm take one size only, which shows when they are tried."""
    size = images.size
    if isinstance(backbone, VisionTransformer | CMT) and size % backbone.patch_size:
        near = max(1, round(size / backbone.patch_size)) * backbone.patch_size
        raise UsageError(f"size={size} must be a multiple of the patch size {backbone.patch_size}; write --size {near}")
    if isinstance(backbone, TimmBackbone):
        try:
            with torch.no_grad():
                backbone(torch.zeros(1, len(images.mean), size, size))
        except (RuntimeError, AssertionError, ValueError) as reason:
            text = f"size={size} does not go through timm/{backbone.name} ({reason}); leave --size out"
            raise UsageError(text) from None


def _interpolated(backbone: nn.Module, network: Network, size: int) -> list[str]:
    """What becomes of the table of positions at that size; of tables with and without a row for the class token."""
    if isinstance(backbone, CMT):
        made = backbone.image_size
        return [f"position biases resampled {made}x{made} -> {size}x{size} px"] if made != size else []
    if (trained := trained_grid(network)) is None:
        return []
    side, grid = trained[0], size // trained[1]
    return [f"interpolated pos_embed {side}x{side} -> {grid}x{grid}"] if side != grid else []


def _origin(file: WeightFile, network: Network) -> str:
    step = file.content.get("step")
    return ", ".join(filter(None, [str(file.path), network.key, f"step {step}" if isinstance(step, int) else ""]))


def digest_of(tensors: Tensors) -> str:
    """SHA-256 over name, type, shape and bytes of every tensor, sorted by name, in hex."""
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(_bytes_of(value))
    return digest.hexdigest()


def _bytes_of(value: Tensor) -> bytes:
    return value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
