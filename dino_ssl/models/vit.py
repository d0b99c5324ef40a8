"""Vision Transformer with the parameter names and the position rule of the released DINO weights.

Sizes: b images, n patches (h rows, w columns), d dimensions.
"""

from functools import partial

import torch
from jaxtyping import Float
from timm.layers import PatchEmbed
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.init import trunc_normal_
from torch.utils.checkpoint import checkpoint

from dino_ssl.models.attention_map import AttentionMap


def interpolate_positions(positions: Float[Tensor, "1 n d"], height: int, width: int) -> Float[Tensor, "1 m d"]:
    """Resample a square table of position embeddings to a grid of `height` x `width` patches.

    The original passes PyTorch a scale factor that is 0.1 patch too large, so that rounding never loses a
    patch; the sampling points shift with it, and the released weights were trained that way. Giving the size
    instead changes a 96-pixel crop's table by as much as its standard deviation.

    Source: facebookresearch/dino, `interpolate_pos_encoding`.
    """
    side = round(positions.shape[1] ** 0.5)
    if (height, width) == (side, side):
        return positions
    table = positions.reshape(1, side, side, -1).permute(0, 3, 1, 2)
    scale = ((height + 0.1) / side, (width + 0.1) / side)
    table = F.interpolate(table, scale_factor=scale, mode="bicubic", align_corners=False)
    assert table.shape[-2:] == (height, width)
    return table.flatten(2).transpose(1, 2)


class VisionTransformer(nn.Module):
    """Pre-norm ViT with a class token (Dosovitskiy et al., arXiv:2010.11929; DeiT's sizes).

    Args:
        image_size: side for which the position table is made, pixels; other sizes interpolate it.
        patch_size: pixels; divides `image_size`.
        drop_path: stochastic depth of the last block; the others rise linearly to it.
    """

    def __init__(
        self,
        *,
        image_size: int,
        patch_size: int,
        embed_dim: int,
        depth: int,
        num_heads: int,
        drop_path: float = 0.0,
        in_chans: int = 3,
    ) -> None:
        super().__init__()
        self.embed_dim = embed_dim
        self.patch_size = patch_size
        self.grad_checkpointing = False
        self.patch_embed = PatchEmbed(image_size, patch_size, in_chans, embed_dim, strict_img_size=False)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + (image_size // patch_size) ** 2, embed_dim))
        norm = partial(nn.LayerNorm, eps=1e-6)
        rates = [drop_path * block / (depth - 1) for block in range(depth)]
        self.blocks = nn.ModuleList(
            Block(embed_dim, num_heads, qkv_bias=True, drop_path=rate, norm_layer=norm) for rate in rates
        )
        self.norm = norm(embed_dim)
        self._init_weights()

    def _init_weights(self) -> None:
        """Truncated normals of std 0.02; the patch convolution keeps PyTorch's default, as in the original."""
        trunc_normal_(self.pos_embed, std=0.02)
        trunc_normal_(self.cls_token, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, images: Float[Tensor, "b c x y"]) -> Float[Tensor, "b d"]:
        """The normalised class token."""
        pooled: Tensor = self.norm(self._encode(images, len(self.blocks))[:, 0])
        return pooled

    def patch_features(self, images: Float[Tensor, "b c x y"]) -> Float[Tensor, "b d h w"]:
        """The normalised patch tokens on their grid."""
        patches: Tensor = self.norm(self._encode(images, len(self.blocks)))[:, 1:].transpose(1, 2)
        return patches.reshape(*patches.shape[:2], *self.grid(images))

    def attention(self, images: Float[Tensor, "b c x y"], block: int = -1) -> AttentionMap:
        """Softmax weights of a block, recomputed because fused attention never stores them."""
        index = range(len(self.blocks))[block]
        chosen = self.blocks[index]
        assert isinstance(chosen, Block)
        tokens = chosen.norm1(self._encode(images, index))
        qkv = chosen.attn.qkv(tokens).unflatten(-1, (3, chosen.attn.num_heads, -1))
        query, key, _ = qkv.permute(2, 0, 3, 1, 4)
        weights = (query * chosen.attn.scale @ key.transpose(-2, -1)).softmax(dim=-1)
        return AttentionMap(weights, self.grid(images), num_prefix_tokens=1)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute every block in the backward pass instead of storing its activations."""
        self.grad_checkpointing = enable

    def grid(self, images: Float[Tensor, "b c x y"]) -> tuple[int, int]:
        """Rows and columns of patches."""
        return images.shape[-2] // self.patch_size, images.shape[-1] // self.patch_size

    def _encode(self, images: Float[Tensor, "b c x y"], num_blocks: int) -> Float[Tensor, "b t d"]:
        """Tokens, class token first, after the first `num_blocks` blocks."""
        tokens = self._tokens(images)
        for block in self.blocks[:num_blocks]:
            if self.grad_checkpointing and torch.is_grad_enabled():
                tokens = checkpoint(block, tokens, use_reentrant=False)
            else:
                tokens = block(tokens)
        return tokens

    def _tokens(self, images: Float[Tensor, "b c x y"]) -> Float[Tensor, "b t d"]:
        patches = self.patch_embed(images)
        cls_position, positions = self.pos_embed[:, :1], self.pos_embed[:, 1:]
        patches = patches + interpolate_positions(positions, *self.grid(images))
        cls_token = (self.cls_token + cls_position).expand(len(images), -1, -1)
        return torch.cat((cls_token, patches), dim=1)
