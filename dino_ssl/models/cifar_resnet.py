"""ResNets for images of 32 pixels: the networks in which distillation is compared on CIFAR.

Three stages of strides 1, 2 and 4. Post-activation: He et al., arXiv:1512.03385, section 4.2, with a 1x1 convolution
where a shortcut changes shape. Pre-activation: wide ResNets, arXiv:1605.07146.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from timm.layers import DropPath
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from dino_ssl.models.attention_map import AttentionMap, NoAttention
from dino_ssl.models.block_features import BlockFeatures, only_block


@dataclass(frozen=True)
class CifarSize:
    """One network.

    Attributes:
        blocks: in each stage, of two 3x3 convolutions.
        stem: channels before the first stage.
        width: channels of the first stage; the others have twice and four times as many.
        is_wide: whether blocks normalise and activate before their convolutions.
    """

    blocks: int
    stem: int
    width: int
    is_wide: bool = False


CIFAR_SIZES = {
    "resnet20": CifarSize(3, 16, 16),
    "resnet32": CifarSize(5, 16, 16),
    "resnet56": CifarSize(9, 16, 16),
    "resnet110": CifarSize(18, 16, 16),
    "resnet8x4": CifarSize(1, 32, 64),
    "resnet32x4": CifarSize(5, 32, 64),
    "wrn_16_2": CifarSize(2, 16, 32, is_wide=True),
    "wrn_40_1": CifarSize(6, 16, 16, is_wide=True),
    "wrn_40_2": CifarSize(6, 16, 32, is_wide=True),
}


class Block(nn.Module):
    """Two convolutions; the sum with the shortcut is activated last."""

    def __init__(self, in_dim: int, dim: int, stride: int, drop_path: float) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv3x3(in_dim, dim, stride), nn.BatchNorm2d(dim)
        self.conv2, self.bn2 = conv3x3(dim, dim), nn.BatchNorm2d(dim)
        self.drop_path = DropPath(drop_path)
        self.shortcut = nn.Sequential()
        if stride > 1 or in_dim != dim:
            self.shortcut = nn.Sequential(nn.Conv2d(in_dim, dim, 1, stride, bias=False), nn.BatchNorm2d(dim))

    def preactivation(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d i j"]:
        """The sum before the last ReLU."""
        new = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return self.drop_path(new) + self.shortcut(x)  # type: ignore[no-any-return]

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d i j"]:
        return F.relu(self.preactivation(x))


class WideBlock(nn.Module):
    """Two convolutions, each after BN and ReLU; a shortcut that changes shape begins after the first ReLU."""

    def __init__(self, in_dim: int, dim: int, stride: int, drop_path: float) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(in_dim), conv3x3(in_dim, dim, stride)
        self.bn2, self.conv2 = nn.BatchNorm2d(dim), conv3x3(dim, dim)
        self.drop_path = DropPath(drop_path)
        self.shortcut = nn.Conv2d(in_dim, dim, 1, stride, bias=False) if stride > 1 or in_dim != dim else None

    def after_norm(self, x: Float[Tensor, "b c h w"], normed: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d i j"]:
        """The block's output from its input and `bn1` of it."""
        active = F.relu(normed)
        kept = x if self.shortcut is None else self.shortcut(active)
        new = self.conv2(F.relu(self.bn2(self.conv1(active))))
        return self.drop_path(new) + kept  # type: ignore[no-any-return]

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d i j"]:
        return self.after_norm(x, self.bn1(x))


class CifarResNet(nn.Module):
    """Its output is the average-pooled last stage.

    Args:
        name: a key of `CIFAR_SIZES`.
        drop_path: stochastic depth of the last block; the others' rises to it from 0.
    """

    def __init__(self, name: str, *, drop_path: float = 0.0, in_chans: int = 3) -> None:
        super().__init__()
        size = CIFAR_SIZES[name]
        self.name = name
        self.is_wide = size.is_wide
        self.stage_dims: tuple[int, ...] = (size.width, 2 * size.width, 4 * size.width)
        self.embed_dim = self.stage_dims[-1]
        self.num_blocks = 1
        self.num_attention_blocks = 0
        self.patch_size = 4
        self.recomputes = False
        self.conv1 = conv3x3(in_chans, size.stem)
        self.bn1 = nn.BatchNorm2d(self.embed_dim if self.is_wide else size.stem)
        in_dims = (size.stem, *self.stage_dims)
        rates = np.linspace(0, drop_path, 3 * size.blocks).reshape(3, size.blocks)
        self.layer1, self.layer2, self.layer3 = (
            _stage(size, in_dims[stage], in_dims[stage + 1], min(2, stage + 1), rates[stage].tolist())
            for stage in range(3)
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Float[Tensor, "b c x y"]) -> Float[Tensor, "b d"]:
        return self.patch_features(images).mean((2, 3))

    def patch_features(self, images: Float[Tensor, "b c x y"]) -> Float[Tensor, "b d h w"]:
        """What is averaged: the last stage after the last ReLU."""
        return F.relu(self._taps(images)[1][-1])

    def last_blocks(self, images: Float[Tensor, "b c x y"], n: int) -> list[BlockFeatures]:
        """The last stage, averaged and as it is."""
        return only_block(self.name, n, self.patch_features(images))

    def stage_features(self, images: Float[Tensor, "b c x y"]) -> list[Float[Tensor, "b _d _h _w"]]:
        """The three stages as the next one gets them: after the last ReLU; of wide ones the sums as they are."""
        return self._taps(images)[0]

    def pooled_and_stages(
        self, images: Float[Tensor, "b c x y"]
    ) -> tuple[Float[Tensor, "b d"], list[Float[Tensor, "b _d _h _w"]]]:
        """The average-pooled last stage, and `stage_features`."""
        stages, before = self._taps(images)
        return F.relu(before[-1]).mean((2, 3)), stages

    def pooled_and_preactivations(
        self, images: Float[Tensor, "b c x y"]
    ) -> tuple[Float[Tensor, "b d"], list[Float[Tensor, "b _d _h _w"]]]:
        """The average-pooled last stage, and each stage before the ReLU that follows it; of wide ones after its BN."""
        before = self._taps(images)[1]
        return F.relu(before[-1]).mean((2, 3)), before

    def _taps(self, images: Float[Tensor, "b c x y"]) -> tuple[list[Tensor], list[Tensor]]:
        """The stages as they are handed on, and before the ReLU that follows them; every BN runs once."""
        taps = self._wide_taps if self.is_wide else self._plain_taps
        recompute = self.recomputes and torch.is_grad_enabled()
        return checkpoint(taps, images, use_reentrant=False) if recompute else taps(images)

    def _plain_taps(self, images: Float[Tensor, "b c x y"]) -> tuple[list[Tensor], list[Tensor]]:
        x = F.relu(self.bn1(self.conv1(images)))
        after, before = [], []
        for stage in (self.layer1, self.layer2, self.layer3):
            last = stage[-1]
            assert isinstance(last, Block)
            before.append(last.preactivation(stage[:-1](x)))
            x = F.relu(before[-1])
            after.append(x)
        return after, before

    def _wide_taps(self, images: Float[Tensor, "b c x y"]) -> tuple[list[Tensor], list[Tensor]]:
        x = self.conv1(images)
        after, normed = [], []
        for first, *others in (self.layer1, self.layer2, self.layer3):
            assert isinstance(first, WideBlock)
            normed.append(first.bn1(x))
            x = first.after_norm(x, normed[-1])
            for block in others:
                x = block(x)
            after.append(x)
        # The next stage's first BN normalises a stage, the network's own the last one.
        return after, [*normed[1:], self.bn1(x)]

    def attention(self, images: Float[Tensor, "b c x y"], block: int = -1) -> AttentionMap:
        raise NoAttention(f"{self.name} has no attention to show; ViTs have")

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the whole network in the backward pass."""
        self.recomputes = enable


def conv3x3(in_dim: int, dim: int, stride: int = 1) -> nn.Conv2d:
    """A convolution without bias that keeps the grid at stride 1."""
    return nn.Conv2d(in_dim, dim, 3, stride, padding=1, bias=False)


def _stage(size: CifarSize, in_dim: int, dim: int, stride: int, rates: list[float]) -> nn.Sequential:
    block = WideBlock if size.is_wide else Block
    return nn.Sequential(block(in_dim, dim, stride, rates[0]), *(block(dim, dim, 1, rate) for rate in rates[1:]))
