"""Face ResNets: every block begins with batch norm and ends without an activation, the first keeps all pixels.

Source: Duta et al., arXiv:2004.04989, as insightface has them, with its names; with gates Shin et al., ECCV 2022.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from timm.layers import DropPath
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dino_ssl.models.attention_map import AttentionMap, NoAttention
from dino_ssl.models.block_features import BlockFeatures, only_block
from dino_ssl.models.cbam import CBAM, Gates
from dino_ssl.models.cifar_resnet import conv3x3

DIMS = (64, 128, 256, 512)


@dataclass(frozen=True)
class FaceSize:
    """Blocks in each stage, and whether a CBAM ends each."""

    depths: tuple[int, int, int, int]
    has_gates: bool = False


_DEPTHS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 14, 3), 100: (3, 13, 30, 3)}
IRESNET_SIZES = {f"iresnet{layers}": FaceSize(depths) for layers, depths in _DEPTHS.items()} | {
    f"iresnet{layers}_cbam": FaceSize(depths, has_gates=True) for layers, depths in _DEPTHS.items()
}


class FaceBlock(nn.Module):
    """BN, convolution, BN, PReLU, convolution, BN, gates; then the sum with the shortcut."""

    def __init__(self, in_dim: int, dim: int, stride: int, *, has_gates: bool, drop_path: float) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(in_dim), conv3x3(in_dim, dim)
        self.bn2, self.prelu = nn.BatchNorm2d(dim), nn.PReLU(dim)
        self.conv2, self.bn3 = conv3x3(dim, dim, stride), nn.BatchNorm2d(dim)
        self.cbam = CBAM(dim) if has_gates else None
        self.drop_path = DropPath(drop_path)
        self.downsample = nn.Sequential()
        if stride > 1 or in_dim != dim:
            self.downsample = nn.Sequential(nn.Conv2d(in_dim, dim, 1, stride, bias=False), nn.BatchNorm2d(dim))

    def forward(self, x: Float[Tensor, "b c h w"]) -> tuple[Float[Tensor, "b d i j"], list[Gates]]:
        """The next map; the gates, if it has any."""
        new = self.bn3(self.conv2(self.prelu(self.bn2(self.conv1(self.bn1(x))))))
        gates = []
        if self.cbam is not None:
            new, own = self.cbam(new)
            gates.append(own)
        return self.drop_path(new) + self.downsample(x), gates


class IResNet(nn.Module):
    """Its output is the mean of the last stage after a batch norm; faces are embedded by a neck on that stage.

    Args:
        name: a key of `IRESNET_SIZES`.
        drop_path: stochastic depth of the last block; the others' rises to it from 0.
    """

    def __init__(self, name: str, *, drop_path: float = 0.0, in_chans: int = 3) -> None:
        super().__init__()
        size = IRESNET_SIZES[name]
        self.name = name
        self.stage_dims: tuple[int, ...] = DIMS
        self.embed_dim = DIMS[-1]
        self.num_blocks = 1
        self.num_attention_blocks = 0
        self.num_gates = sum(size.depths) if size.has_gates else 0
        self.patch_size = 16
        self.recomputes = False
        self.conv1, self.bn1, self.prelu = conv3x3(in_chans, DIMS[0]), nn.BatchNorm2d(DIMS[0]), nn.PReLU(DIMS[0])
        rates = iter(np.linspace(0, drop_path, sum(size.depths)).tolist())
        in_dims = (DIMS[0], *DIMS)
        self.layer1, self.layer2, self.layer3, self.layer4 = (
            nn.ModuleList(
                FaceBlock(
                    in_dims[stage] if block == 0 else DIMS[stage], DIMS[stage], 2 if block == 0 else 1,
                    has_gates=size.has_gates, drop_path=next(rates),
                )
                for block in range(size.depths[stage])
            )
            for stage in range(4)
        )  # fmt: skip
        self.bn2 = nn.BatchNorm2d(DIMS[-1])
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.xavier_uniform_(module.weight)

    def forward(self, images: Float[Tensor, "b c x y"]) -> Float[Tensor, "b d"]:
        return self.patch_features(images).mean((2, 3))

    def patch_features(self, images: Float[Tensor, "b c x y"]) -> Float[Tensor, "b d h w"]:
        """The last stage after the batch norm."""
        features: Tensor = self.bn2(self._run(images)[0][-1])
        return features

    def last_blocks(self, images: Float[Tensor, "b c x y"], n: int) -> list[BlockFeatures]:
        """The last stage, averaged and as it is."""
        return only_block(self.name, n, self.patch_features(images))

    def stage_features(self, images: Float[Tensor, "b c x y"]) -> list[Float[Tensor, "b _d _h _w"]]:
        """The four stages as the next one gets them."""
        return self._run(images)[0]

    def pooled_and_stages(
        self, images: Float[Tensor, "b c x y"]
    ) -> tuple[Float[Tensor, "b d"], list[Float[Tensor, "b _d _h _w"]]]:
        """The average-pooled last stage, and `stage_features`."""
        stages = self._run(images)[0]
        return self.bn2(stages[-1]).mean((2, 3)), stages

    def pooled_and_preactivations(
        self, images: Float[Tensor, "b c x y"]
    ) -> tuple[Float[Tensor, "b d"], list[Float[Tensor, "b _d _h _w"]]]:
        """As `pooled_and_stages`: no activation ends a block."""
        return self.pooled_and_stages(images)

    def features_and_gates(self, images: Float[Tensor, "b c x y"]) -> tuple[BlockFeatures, list[Gates]]:
        """`last_blocks` of one block, and the gates of every block from the first to the last, from one pass."""
        stages, gates = self._run(images)
        patches = self.bn2(stages[-1])
        return BlockFeatures(patches.mean((2, 3)), patches), gates

    def attention(self, images: Float[Tensor, "b c x y"], block: int = -1) -> AttentionMap:
        raise NoAttention(f"{self.name} has no attention between places to show; ViTs have")

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute every stage in the backward pass instead of storing its activations."""
        self.recomputes = enable

    def _run(self, images: Float[Tensor, "b c x y"]) -> tuple[list[Tensor], list[Gates]]:
        """The stages, and the gates in them."""
        x, stages, gates = self.prelu(self.bn1(self.conv1(images))), [], []
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            for block in stage:
                x, own = checkpoint(block, x, use_reentrant=False) if self.recomputes else block(x)
                gates += own
            stages.append(x)
        return stages, gates
