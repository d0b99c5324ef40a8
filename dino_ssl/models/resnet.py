"""ResNet-18 and ResNet-50, with torchvision's parameter names (as the released DINO ResNet-50 has them)."""

from typing import Any

from jaxtyping import Float
from timm.models.resnet import BasicBlock, Bottleneck
from timm.models.resnet import ResNet as TimmResNet
from torch import Tensor, nn

from dino_ssl.models.attention_map import AttentionMap, NoAttention
from dino_ssl.models.block_features import BlockFeatures, only_block

LAYOUTS: dict[str, dict[str, Any]] = {
    "resnet18": {"block": BasicBlock, "layers": (2, 2, 2, 2)},
    "resnet50": {"block": Bottleneck, "layers": (3, 4, 6, 3)},
}


class ResNet(TimmResNet):  # type: ignore[misc]
    """ResNet whose output is the average-pooled last stage (He et al., arXiv:1512.03385).

    Args:
        name: resnet18 or resnet50.
        drop_path: stochastic depth of the last block.
        small_stem: 3x3 convolution of stride 1 and no pooling instead of 7x7, stride 2 and pooling, so that
            images of 32 pixels keep their detail (the layout of CIFAR baselines).
    """

    def __init__(self, name: str, *, drop_path: float = 0.0, small_stem: bool = False, in_chans: int = 3) -> None:
        super().__init__(
            **LAYOUTS[name], num_classes=0, drop_path_rate=drop_path, in_chans=in_chans, zero_init_last=False
        )
        self.name = name
        self.embed_dim: int = self.num_features
        self.num_blocks = 1
        self.num_attention_blocks = 0
        self.stage_dims = tuple(stage["num_chs"] for stage in self.feature_info[1:])
        self.patch_size = 8 if small_stem else 32
        if small_stem:
            self.conv1 = nn.Conv2d(in_chans, 64, 3, stride=1, padding=1, bias=False)
            self.maxpool = nn.Identity()
            self.init_weights(zero_init_last=False)

    def patch_features(self, images: Float[Tensor, "b c x y"]) -> Float[Tensor, "b d h w"]:
        """The last stage before pooling."""
        return self.forward_features(images)  # type: ignore[no-any-return]

    def last_blocks(self, images: Float[Tensor, "b c x y"], n: int) -> list[BlockFeatures]:
        """The last stage, averaged and as it is."""
        return only_block(self.name, n, self.patch_features(images))

    def stage_features(self, images: Float[Tensor, "b c x y"]) -> list[Float[Tensor, "b _d _h _w"]]:
        """The four stages, each after its last ReLU."""
        return self.pooled_and_stages(images)[1]

    def pooled_and_stages(
        self, images: Float[Tensor, "b c x y"]
    ) -> tuple[Float[Tensor, "b d"], list[Float[Tensor, "b _d _h _w"]]]:
        """The average-pooled last stage, and `stage_features`."""
        last, stages = self.forward_intermediates(images, indices=[1, 2, 3, 4])
        return self.forward_head(last), stages

    def pooled_and_preactivations(
        self, images: Float[Tensor, "b c x y"]
    ) -> tuple[Float[Tensor, "b d"], list[Float[Tensor, "b _d _h _w"]]]:
        """The average-pooled last stage, and the four stages, each before its last ReLU."""
        return resnet_preactivations(self, images)

    def attention(self, images: Float[Tensor, "b c x y"], block: int = -1) -> AttentionMap:
        raise NoAttention(f"{self.name} has no attention to show; ViTs have")


def resnet_preactivations(
    model: TimmResNet, images: Float[Tensor, "b c x y"]
) -> tuple[Float[Tensor, "b d"], list[Float[Tensor, "b _d _h _w"]]]:
    """What a ResNet of timm gives, and what the last activation of each stage is given."""
    seen: list[Tensor] = []
    ends = [stage[-1] for stage in (model.layer1, model.layer2, model.layer3, model.layer4)]
    # A copy, because that activation works in place.
    hooks = [
        (end.act3 if isinstance(end, Bottleneck) else end.act2).register_forward_pre_hook(
            lambda _, inputs: seen.append(inputs[0].clone())
        )
        for end in ends
    ]
    try:
        return model(images), seen
    finally:
        for hook in hooks:
            hook.remove()
