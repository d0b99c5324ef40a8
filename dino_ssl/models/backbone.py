"""The contract of a backbone, and building one by name."""

import difflib
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dino_ssl.errors import UsageError
from dino_ssl.models.attention_map import AttentionMap
from dino_ssl.models.block_features import BlockFeatures
from dino_ssl.models.cifar_resnet import CIFAR_SIZES, CifarResNet
from dino_ssl.models.cmt import CMT, CMT_SIZES, BiasKind
from dino_ssl.models.iresnet import IRESNET_SIZES, IResNet
from dino_ssl.models.resnet import LAYOUTS, ResNet
from dino_ssl.models.timm_adapter import TimmBackbone
from dino_ssl.models.vit import VisionTransformer

# embed_dim, depth, heads. Tiny, small and base are DeiT's (arXiv:2012.12877), large and huge ViT's (arXiv:2010.11929),
# giant DINOv2's (arXiv:2304.07193), here with a plain MLP; micro is for CPUs.
VIT_SIZES = {
    "vit_micro": (128, 4, 4),
    "vit_tiny": (192, 12, 3),
    "vit_small": (384, 12, 6),
    "vit_base": (768, 12, 12),
    "vit_large": (1024, 24, 16),
    "vit_huge": (1280, 32, 16),
    "vit_giant": (1536, 40, 24),
}


@runtime_checkable
class Backbone(Protocol):
    """What pretraining and evaluation ask of a network; images are normalised, sizes in pixels.

    Calling it gives pooled features [b, embed_dim].
    """

    embed_dim: int
    num_blocks: int
    """Blocks whose features `last_blocks` gives; 1 where only the last feature map is to be had."""
    num_attention_blocks: int
    """Blocks whose `attention` can be read, counted through all stages; 0 where there is none."""
    patch_size: int
    """Side, in pixels of the image, of one place of the grid that `patch_features` gives."""
    stage_dims: tuple[int, ...]
    """Channels of each map that `stage_features` gives; empty where the network has no stages to give."""

    def __call__(self, images: Float[Tensor, "b c x y"]) -> Float[Tensor, "b d"]: ...

    def patch_features(self, images: Float[Tensor, "b c x y"]) -> Float[Tensor, "b d h w"]:
        """Features on a grid of patches (or of the last stage)."""

    def last_blocks(self, images: Float[Tensor, "b c x y"], n: int) -> list[BlockFeatures]:
        """Features of the last n blocks, earliest first, each after the final norm; UsageError where n > num_blocks."""

    def stage_features(self, images: Float[Tensor, "b c x y"]) -> list[Float[Tensor, "b _d _h _w"]]:
        """What each stage hands on, finest first, before any final norm; UsageError without stages.

        Networks whose blocks all have one grid (ViT) give four blocks that are spaced evenly, see `stage_blocks`.
        """

    def pooled_and_stages(
        self, images: Float[Tensor, "b c x y"]
    ) -> tuple[Float[Tensor, "b d"], list[Float[Tensor, "b _d _h _w"]]]:
        """What calling it gives, and `stage_features`, from one pass."""

    def pooled_and_preactivations(
        self, images: Float[Tensor, "b c x y"]
    ) -> tuple[Float[Tensor, "b d"], list[Float[Tensor, "b _d _h _w"]]]:
        """As `pooled_and_stages`, each stage before the ReLU that ends it or follows it; the same where none does.

        UsageError where the network cannot tell.
        """

    def attention(self, images: Float[Tensor, "b c x y"], block: int = -1) -> AttentionMap:
        """Attention of a block; NoAttention if the architecture has none to show."""

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute activations in the backward pass (timm's name for it)."""


BuiltBackbone = VisionTransformer | CMT | ResNet | CifarResNet | IResNet | TimmBackbone
"""What `build_backbone` builds: networks that meet the contract."""


def build_backbone(
    name: str,
    *,
    image_size: int,
    patch_size: int = 16,
    drop_path: float = 0.0,
    position_bias: BiasKind = "free",
    small_stem: bool = False,
    in_chans: int = 3,
) -> BuiltBackbone:
    """Build a backbone with fresh weights from PyTorch's global random state.

    Args:
        name: a key of `VIT_SIZES`, `CMT_SIZES`, `CIFAR_SIZES` or `IRESNET_SIZES`, resnet18, resnet50, or timm/NAME.
        image_size: the main input size, pixels.
        patch_size: ViT only; divides `image_size`.
        position_bias: CMT only.
        small_stem: CMT and ResNet only.
    Raises:
        UsageError: the name is unknown, or an option does not apply to it.
    """
    if position_bias != "free" and name not in CMT_SIZES:
        raise UsageError(f"model.position_bias applies to {', '.join(CMT_SIZES)} only, not to model.name={name}")
    if small_stem and name not in (*CMT_SIZES, *LAYOUTS):
        known = ", ".join([*CMT_SIZES, *LAYOUTS])
        raise UsageError(f"model.small_stem applies to {known} only, not to model.name={name}")
    if name in VIT_SIZES:
        dim, depth, heads = VIT_SIZES[name]
        return VisionTransformer(
            image_size=image_size, patch_size=patch_size, embed_dim=dim, depth=depth, num_heads=heads,
            drop_path=drop_path, in_chans=in_chans,
        )  # fmt: skip
    if name in CMT_SIZES:
        return CMT(
            name, image_size=image_size, drop_path=drop_path, position_bias=position_bias, small_stem=small_stem,
            in_chans=in_chans,
        )  # fmt: skip
    if name in LAYOUTS:
        return ResNet(name, drop_path=drop_path, small_stem=small_stem, in_chans=in_chans)
    if name in CIFAR_SIZES:
        return CifarResNet(name, drop_path=drop_path, in_chans=in_chans)
    if name in IRESNET_SIZES:
        return IResNet(name, drop_path=drop_path, in_chans=in_chans)
    if name.startswith("timm/"):
        return TimmBackbone(name.removeprefix("timm/"), image_size=image_size, drop_path=drop_path, in_chans=in_chans)
    raise UsageError(unknown_backbone(name))


def check_crop_sizes(backbone: nn.Module, sizes: dict[str, int], in_chans: int = 3) -> None:
    """Send one black image of each size through the network, before any long work.

    Args:
        sizes: side in pixels by the knob's name.
    Raises:
        UsageError: a size does not go through, with the network's own reason.
    """
    was_training = backbone.training
    backbone.eval()
    for knob, size in sizes.items():
        try:
            with torch.no_grad():
                backbone(torch.zeros(1, in_chans, size, size))
        except (RuntimeError, AssertionError, ValueError) as reason:
            raise UsageError(
                f"{knob}={size} does not go through this backbone ({reason}); "
                "give every crop the same size, or choose a backbone that takes any size, such as vit_small"
            ) from reason
    backbone.train(was_training)


def unknown_backbone(name: str, *, knob: str = "model.name") -> str:
    """What to say of a name that is no backbone."""
    known = [*VIT_SIZES, *CMT_SIZES, *LAYOUTS, *CIFAR_SIZES, *IRESNET_SIZES]
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    return f"{knob}={name} is unknown; {hint}choose {', '.join(known)}, or timm/NAME for any timm model"
