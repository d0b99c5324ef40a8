"""Our networks in the words of timm: an architecture, its arguments, tensors by timm's names."""

from dataclasses import dataclass
from typing import Any, cast

import timm
from torch import nn

from dino_ssl.errors import UsageError
from dino_ssl.models.encoder import Encoder
from dino_ssl.models.resnet import ResNet
from dino_ssl.models.timm_adapter import TimmBackbone
from dino_ssl.models.vit import VisionTransformer
from dino_ssl.models.vit_block import TransformerBlock
from dino_ssl.models.weight_keys import Tensors

WIDTHS = {192: "tiny", 384: "small", 768: "base", 1024: "large"}
DEFAULT_VIT = "vit_small_patch16_224"
RENAMED = {"register_tokens": "reg_token", ".mlp.w12.": ".mlp.fc1.", ".mlp.w3.": ".mlp.fc2."}


@dataclass(frozen=True)
class TimmCard:
    """What timm needs to make the network: `timm.create_model(architecture, num_classes=0, **arguments)`."""

    architecture: str
    arguments: dict[str, Any]
    tensors: Tensors

    def config(self, encoder: Encoder) -> dict[str, Any]:
        """The content of timm's `config.json`, with the images of the encoder."""
        known = timm.get_pretrained_cfg(self.architecture)
        told = {
            "custom_load": False,
            "input_size": [encoder.channels, encoder.size, encoder.size],
            "fixed_input_size": False,
            "interpolation": "bicubic",
            "crop_pct": encoder.center_crop,
            "crop_mode": "center",
            "mean": list(encoder.mean),
            "std": list(encoder.std),
            "num_classes": 0,
            "pool_size": None,
            "first_conv": known.first_conv if known else None,
            "classifier": known.classifier if known else None,
        }
        return {
            "architecture": self.architecture,
            "num_classes": 0,
            "num_features": encoder.backbone.embed_dim,
            "model_args": self.arguments,
            "pretrained_cfg": told,
        }


def timm_card(encoder: Encoder) -> TimmCard:
    """The same network for timm; of a ViT with the table of positions for the encoder's size.

    Raises:
        UsageError: timm has no such network.
    """
    channels = {} if encoder.channels == 3 else {"in_chans": encoder.channels}
    match cast(nn.Module, encoder.backbone):
        case VisionTransformer() as vit:
            return _vit_card(vit.resized(encoder.size), channels)
        case ResNet() as resnet:
            if resnet.conv1.kernel_size != (7, 7):
                raise UsageError(
                    "format=timm: timm has no ResNet with the stem for small images (model.small_stem); write --format "
                    "torch or onnx"
                )
            return TimmCard(resnet.name, channels, resnet.state_dict())
        case TimmBackbone() as backbone:
            options = {name: value for name, value in backbone.options.items() if name != "drop_path_rate"}
            return TimmCard(backbone.name, {**options, **channels}, backbone.model.state_dict())
    raise UsageError(f"format=timm: timm has no {encoder.name}; write --format torch or onnx")


def _vit_card(vit: VisionTransformer, channels: dict[str, Any]) -> TimmCard:
    block = vit.blocks[0]
    assert isinstance(block, TransformerBlock)
    tensors = {_renamed(name): value for name, value in vit.state_dict().items()}
    arguments = {
        "img_size": vit.image_size,
        "patch_size": vit.patch_size,
        "embed_dim": vit.embed_dim,
        "depth": vit.num_blocks,
        "num_heads": block.attn.num_heads,
        "dynamic_img_size": True,
        **channels,
    }
    if vit.has_layer_scale:
        arguments["init_values"] = 1e-5  # that there is one; the tensors have the values
    if registers := vit.num_prefix_tokens - 1:
        # timm adds no position to the prefix, so the class token brings its own along.
        arguments |= {"reg_tokens": registers, "no_embed_class": True}
        tensors["cls_token"] = tensors["cls_token"] + tensors["pos_embed"][:, :1]
        tensors["pos_embed"] = tensors["pos_embed"][:, 1:]
    if vit.has_swiglu:
        # Half a unit more, so that timm's rounding down finds the width.
        arguments["mlp_ratio"] = (block.mlp.w12.out_features + 0.5) / vit.embed_dim
    return TimmCard(_vit_architecture(vit), arguments, {name: value.contiguous() for name, value in tensors.items()})


def _renamed(name: str) -> str:
    for ours, theirs in RENAMED.items():
        name = name.replace(ours, theirs)
    return name


def _vit_architecture(vit: VisionTransformer) -> str:
    """timm's nearest name; every argument is given, so that any would do, but for the kind of feed-forward."""
    registers = "reg4_" if vit.num_prefix_tokens > 1 else ""
    if vit.has_swiglu:
        return f"vit_giant_patch14_{registers}dinov2"
    width = WIDTHS.get(vit.embed_dim, "")
    names = [f"vit_{width}_patch{vit.patch_size}_{registers}dinov2", f"vit_{width}_patch{vit.patch_size}_224"]
    fitting = [name for name in names[0 if vit.has_layer_scale else 1 :] if timm.is_model(name)]
    return fitting[0] if fitting else DEFAULT_VIT
