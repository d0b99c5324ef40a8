"""The layers of CMT (Guo et al., arXiv:2107.06263, as its released code has them).

Features stay on their grid [b, d, h, w]; sizes: b images, d dimensions, e dimensions of a head.
"""

from jaxtyping import Float
from timm.layers import DropPath, LayerNorm2d
from torch import Tensor, nn
from torch.nn import functional as F

from dino_ssl.models.attention_map import AttentionMap


def stem(in_chans: int, dim: int, first_stride: int = 2) -> nn.Sequential:
    """Three convolutions, each followed by GELU and then BN."""
    layers: list[nn.Module] = []
    for channels, stride in ((in_chans, first_stride), (dim, 1), (dim, 1)):
        layers += [nn.Conv2d(channels, dim, 3, stride=stride, padding=1), nn.GELU(), nn.BatchNorm2d(dim)]
    return nn.Sequential(*layers)


class ReducedAttention(nn.Module):
    """Attention of every place to the squares of a coarser grid.

    Args:
        reduction: side of a square; 1: keys and values are the places themselves.
    """

    def __init__(self, dim: int, num_heads: int, reduction: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query, self.key, self.value, self.proj = (nn.Linear(dim, dim) for _ in range(4))
        self.reduce: nn.Module = nn.Identity()
        if reduction > 1:
            merge = nn.Conv2d(dim, dim, reduction, stride=reduction, groups=dim)
            self.reduce = nn.Sequential(merge, nn.BatchNorm2d(dim))

    def forward(
        self, features: Float[Tensor, "b d h w"], bias: Float[Tensor, "heads queries keys"]
    ) -> Float[Tensor, "b d h w"]:
        coarse = self.reduce(features)
        query, key = self._split(self.query, features), self._split(self.key, coarse)
        value = self._split(self.value, coarse)
        attended = F.scaled_dot_product_attention(query, key, value, bias[None].to(query.dtype))
        merged: Tensor = self.proj(attended.transpose(1, 2).flatten(2))
        output: Tensor = merged.mT.unflatten(2, features.shape[2:])
        return output

    def map(self, features: Float[Tensor, "b d h w"], bias: Float[Tensor, "heads queries keys"]) -> AttentionMap:
        """What `forward` weighs the values by, as its factors."""
        coarse = self.reduce(features)
        query, key = self._split(self.query, features), self._split(self.key, coarse)
        grid = (coarse.shape[2], coarse.shape[3])
        return AttentionMap(query * query.shape[-1] ** -0.5, key, grid, 0, bias=bias, has_class_token=False)

    def _split(self, linear: nn.Module, features: Float[Tensor, "b d h w"]) -> Float[Tensor, "b heads hw e"]:
        split: Tensor = linear(features.flatten(2).mT).unflatten(2, (self.num_heads, -1)).transpose(1, 2)
        return split


class InvertedResidual(nn.Module):
    """Feed-forward that widens, looks at the neighbours around a shortcut, and narrows; BN comes after GELU."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.widen = nn.Sequential(nn.Conv2d(dim, hidden_dim, 1), nn.GELU(), nn.BatchNorm2d(hidden_dim))
        self.depthwise = nn.Conv2d(hidden_dim, hidden_dim, 3, padding=1, groups=hidden_dim)
        self.activate = nn.Sequential(nn.GELU(), nn.BatchNorm2d(hidden_dim))
        self.narrow = nn.Sequential(nn.Conv2d(hidden_dim, dim, 1), nn.BatchNorm2d(dim))

    def forward(self, features: Float[Tensor, "b d h w"]) -> Float[Tensor, "b d h w"]:
        wide = self.widen(features)
        narrowed: Tensor = self.narrow(self.activate(wide + self.depthwise(wide)))
        return narrowed


class CMTBlock(nn.Module):
    """Local perception unit, attention and feed-forward, each around a shortcut."""

    def __init__(self, dim: int, num_heads: int, reduction: int, hidden_dim: int, drop_path: float) -> None:
        super().__init__()
        self.local = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.norm1, self.norm2 = LayerNorm2d(dim, eps=1e-6), LayerNorm2d(dim, eps=1e-6)
        self.attn = ReducedAttention(dim, num_heads, reduction)
        self.mlp = InvertedResidual(dim, hidden_dim)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(
        self, features: Float[Tensor, "b d h w"], bias: Float[Tensor, "heads queries keys"]
    ) -> Float[Tensor, "b d h w"]:
        features = features + self.local(features)
        features = features + self.drop_path(self.attn(self.norm1(features), bias))
        widened: Tensor = self.drop_path(self.mlp(self.norm2(features)))
        return features + widened

    def attention(self, features: Float[Tensor, "b d h w"], bias: Float[Tensor, "heads queries keys"]) -> AttentionMap:
        """What `attn` attends to, recomputed because fused attention never stores it."""
        return self.attn.map(self.norm1(features + self.local(features)), bias)
