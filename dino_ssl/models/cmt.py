"""CMT: a transformer of four stages with convolutions in every block (Guo et al., CVPR 2022, arXiv:2107.06263).

Where the paper and its released code differ, this is the code, whose weights are public; see docs/deviations.md.
Features stay on their grid [b, d, h, w]; sizes: b images, d dimensions, e dimensions of a head.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, Literal

import torch
from jaxtyping import Float
from timm.layers import LayerNorm2d
from torch import Tensor, nn
from torch.nn.init import kaiming_normal_, trunc_normal_
from torch.utils.checkpoint import checkpoint

from dino_ssl.errors import UsageError
from dino_ssl.models.attention_map import AttentionMap
from dino_ssl.models.block_features import BlockFeatures
from dino_ssl.models.cmt_blocks import CMTBlock, stem
from dino_ssl.models.position_bias import FreeBias, RelativeBias

NUM_HALVINGS = 4
"""Of the grid, one before each stage; the stem halves it once more."""
HEADS = (1, 2, 4, 8)
REDUCTIONS = (8, 4, 2, 1)
"""Side, in places, of the squares that each stage merges into one key."""
BiasKind = Literal["free", "relative"]
"""free: one `FreeBias` for all blocks of a stage, as released; relative: a `RelativeBias` for each block."""


@dataclass(frozen=True)
class CMTSize:
    """Widths and depths.

    Attributes:
        dims: of the stages; each is divided by its heads.
        mlp_ratio: hidden width of the feed-forward in units of the stage's, rounded down.
    """

    stem_dim: int
    dims: tuple[int, int, int, int]
    depths: tuple[int, int, int, int]
    mlp_ratio: float


# Trained by the authors at 160, 192, 224 and 256 pixels; micro is ours, for CPUs.
CMT_SIZES = {
    "cmt_micro": CMTSize(16, (24, 48, 96, 192), (1, 1, 2, 1), 3.0),
    "cmt_tiny": CMTSize(16, (46, 92, 184, 368), (2, 2, 10, 2), 3.6),
    "cmt_xs": CMTSize(16, (52, 104, 208, 416), (3, 3, 12, 3), 3.77),
    "cmt_small": CMTSize(32, (64, 128, 256, 512), (3, 3, 16, 3), 4.0),
    "cmt_base": CMTSize(38, (76, 152, 304, 608), (4, 4, 20, 4), 4.0),
}


class CMTStage(nn.Module):
    """Squares of 2 x 2 places become one of the next grid; then blocks.

    Args:
        index: which stage it is, from 0.
        side: of the grid that position biases are made for.
        drop_path: rate of each block; there are as many blocks as rates.
    """

    def __init__(
        self, size: CMTSize, index: int, *, side: int, drop_path: list[float], position_bias: BiasKind
    ) -> None:
        super().__init__()
        in_dim, dim = (size.stem_dim, *size.dims)[index : index + 2]
        heads, self.reduction, hidden_dim = HEADS[index], REDUCTIONS[index], int(dim * size.mlp_ratio)
        self.grad_checkpointing = False
        self.patch_embed = nn.Sequential(nn.Conv2d(in_dim, dim, 2, stride=2), LayerNorm2d(dim, eps=1e-5))
        places, keys = (side, side), (side // self.reduction, side // self.reduction)
        self.position_bias: FreeBias | nn.ModuleList = (
            FreeBias(heads, places, keys)
            if position_bias == "free"
            else nn.ModuleList(RelativeBias(heads, places, keys) for _ in drop_path)
        )
        self.blocks = nn.ModuleList(CMTBlock(dim, heads, self.reduction, hidden_dim, rate) for rate in drop_path)

    def forward(self, features: Float[Tensor, "b _d _h _w"]) -> Float[Tensor, "b d h w"]:
        return self.run(self.patch_embed(features), slice(None))

    def run(self, features: Float[Tensor, "b d h w"], chosen: slice) -> Float[Tensor, "b d h w"]:
        """Some of the blocks, one after the other."""
        for block, bias in zip(self.blocks[chosen], self.biases(features)[chosen], strict=True):
            recompute = self.grad_checkpointing and torch.is_grad_enabled()
            run = partial(checkpoint, block, use_reentrant=False) if recompute else block
            features = run(features, bias)
        return features

    def biases(self, features: Float[Tensor, "b d h w"]) -> list[Float[Tensor, "heads queries keys"]]:
        """The position bias of each block for the grid of these features."""
        height, width = features.shape[2:]
        places, keys = (height, width), (height // self.reduction, width // self.reduction)
        if isinstance(self.position_bias, FreeBias):
            return [self.position_bias(places, keys)] * len(self.blocks)
        return [bias(places, keys) for bias in self.position_bias]


class CMT(nn.Module):
    """CMT without its classifier; what is pooled is the mean of the last stage after a LayerNorm of our own.

    Args:
        name: a key of `CMT_SIZES`.
        image_size: side for which the position biases are made, pixels; other sizes resample them.
        drop_path: stochastic depth of the last block; the others rise linearly to it.
        position_bias: what attention learns of places.
        small_stem: the stem keeps every place, for images of about 32 pixels: all grids have twice the sides, and 16
            takes the place of 32, `patch_size`, in what is said here.
    Raises:
        UsageError: `image_size` is no multiple of 32.
    """

    def __init__(
        self,
        name: str,
        *,
        image_size: int,
        drop_path: float = 0.0,
        position_bias: BiasKind = "free",
        small_stem: bool = False,
        in_chans: int = 3,
    ) -> None:
        super().__init__()
        self.name = name
        self.image_size = image_size
        stride = 1 if small_stem else 2
        self.patch_size = stride << NUM_HALVINGS
        self._check(image_size, image_size)
        size = CMT_SIZES[name]
        self.embed_dim, self.num_blocks = size.dims[-1], size.depths[-1]
        self.num_attention_blocks = sum(size.depths)
        self.stage_dims = size.dims
        self.stem = stem(in_chans, size.stem_dim, stride)
        self.stages = nn.ModuleList(_stages(size, image_size // stride, drop_path, position_bias))
        self.norm = LayerNorm2d(self.embed_dim, eps=1e-6)
        self._init_weights()

    def _init_weights(self) -> None:
        """As the released code: fan-out normals for convolutions, truncated normals of std 0.02 for the others."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                kaiming_normal_(module.weight, mode="fan_out")
            elif isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=0.02)
            if isinstance(module, nn.Conv2d | nn.Linear):
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    def forward(self, images: Float[Tensor, "b c x y"]) -> Float[Tensor, "b d"]:
        """The mean of `patch_features`."""
        return self.patch_features(images).mean((2, 3))

    def patch_features(self, images: Float[Tensor, "b c x y"]) -> Float[Tensor, "b d h w"]:
        """The last stage after the norm, a place for every square of `patch_size` pixels."""
        features: Tensor = self.norm(self._before(images, len(self.stages)))
        return features

    def last_blocks(self, images: Float[Tensor, "b c x y"], n: int) -> list[BlockFeatures]:
        """The last n blocks of the last stage, each after the norm."""
        if not 1 <= n <= self.num_blocks:
            raise UsageError(f"blocks={n} must lie in 1 to {self.num_blocks}, the blocks of the last stage")
        stage = self._stage(-1)
        features = stage.patch_embed(self._before(images, len(self.stages) - 1))
        features, found = stage.run(features, slice(self.num_blocks - n)), []
        for block in range(self.num_blocks - n, self.num_blocks):
            features = stage.run(features, slice(block, block + 1))
            patches = self.norm(features)
            found.append(BlockFeatures(patches.mean((2, 3)), patches))
        return found

    def stage_features(self, images: Float[Tensor, "b c x y"]) -> list[Float[Tensor, "b _d _h _w"]]:
        """The four stages, the last on the grid of `patch_features`, without the norm."""
        self._check(images.shape[-2], images.shape[-1])
        features, found = self.stem(images), []
        for stage in self.stages:
            features = stage(features)
            found.append(features)
        return found

    def pooled_and_stages(
        self, images: Float[Tensor, "b c x y"]
    ) -> tuple[Float[Tensor, "b d"], list[Float[Tensor, "b _d _h _w"]]]:
        """The mean of the last stage after the norm, and `stage_features`."""
        stages = self.stage_features(images)
        return self.norm(stages[-1]).mean((2, 3)), stages

    def pooled_and_preactivations(
        self, images: Float[Tensor, "b c x y"]
    ) -> tuple[Float[Tensor, "b d"], list[Float[Tensor, "b _d _h _w"]]]:
        """As `pooled_and_stages`: no activation ends a stage."""
        return self.pooled_and_stages(images)

    def attention(self, images: Float[Tensor, "b c x y"], block: int = -1) -> AttentionMap:
        """What a block attends to; the grid of the keys is that of `patch_features` in every stage.

        Args:
            block: counted through all stages; in all but the last the queries have a finer grid than the keys.
        """
        total = self.num_attention_blocks
        if not -total <= block < total:
            raise UsageError(f"block={block} must lie in 0 to {total - 1}, or count from the last as -1")
        index, block = 0, block % total
        while block >= len(self._stage(index).blocks):
            block -= len(self._stage(index).blocks)
            index += 1
        stage = self._stage(index)
        features = stage.run(stage.patch_embed(self._before(images, index)), slice(block))
        chosen = stage.blocks[block]
        assert isinstance(chosen, CMTBlock)
        return chosen.attention(features, stage.biases(features)[block])

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute every block in the backward pass instead of storing its activations."""
        for index in range(len(self.stages)):
            self._stage(index).grad_checkpointing = enable

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """torch.compile, with its arguments, for each size anew.

        PyTorch would make one graph for all sizes from the second on, for which its compiler fails to find the
        strides of the convolutions. It keeps eight: sizes and numbers of images, of student and of teacher.
        """
        super().compile(*args, dynamic=False, **kwargs)

    def _before(self, images: Float[Tensor, "b c x y"], num_stages: int) -> Float[Tensor, "b d h w"]:
        """Features after the stem and the first `num_stages` stages."""
        self._check(images.shape[-2], images.shape[-1])
        features: Tensor = self.stem(images)
        for stage in self.stages[:num_stages]:
            features = stage(features)
        return features

    def _stage(self, index: int) -> CMTStage:
        stage = self.stages[index]
        assert isinstance(stage, CMTStage)
        return stage

    def _check(self, height: int, width: int) -> None:
        for side in (height, width):
            if side < self.patch_size or side % self.patch_size:
                down = max(1, side // self.patch_size) * self.patch_size
                raise UsageError(
                    f"{self.name} takes images whose sides are multiples of {self.patch_size} pixels, not {height} x "
                    f"{width}; make the {side} a {down} or {down + self.patch_size}"
                )


def _stages(size: CMTSize, side: int, drop_path: float, position_bias: BiasKind) -> Iterator[CMTStage]:
    """`side` is that of the stem's grid."""
    last = sum(size.depths) - 1
    rates = iter([drop_path * block / last for block in range(last + 1)])
    for index, depth in enumerate(size.depths):
        own = list(islice(rates, depth))
        yield CMTStage(size, index, side=side >> (index + 1), drop_path=own, position_bias=position_bias)
