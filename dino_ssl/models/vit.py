"""Vision Transformer with the parameter names and the position rules of the released DINO, iBOT and DINOv2 weights.

Sizes: b images, n patches (h rows, w columns), d dimensions.
"""

from copy import deepcopy
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from timm.layers import PatchEmbed
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.init import trunc_normal_
from torch.utils.checkpoint import checkpoint

from dino_ssl.errors import UsageError
from dino_ssl.models.attention_map import AttentionMap
from dino_ssl.models.block_features import BlockFeatures
from dino_ssl.models.stage_choice import stage_blocks
from dino_ssl.models.vit_block import TransformerBlock


def interpolate_positions(
    positions: Float[Tensor, "1 n d"], height: int, width: int, *, antialias: bool = False
) -> Float[Tensor, "1 m d"]:
    """Resample a square table of position embeddings to a grid of `height` x `width` patches.

    The original passes PyTorch a scale factor that is 0.1 patch too large, so that rounding never loses a
    patch; the sampling points shift with it, and the released weights were trained that way. Giving the size
    instead changes a 96-pixel crop's table by as much as its standard deviation.

    Args:
        antialias: the rule of timm and of DINOv2 with registers: PyTorch gets the size itself, and filters.
    Source: facebookresearch/dino, `interpolate_pos_encoding` (DINOv2 without registers does the same); timm,
    `resample_abs_pos_embed`.
    """
    side = round(positions.shape[1] ** 0.5)
    if (height, width) == (side, side):
        return positions
    table = positions.reshape(1, side, side, -1).permute(0, 3, 1, 2)
    if antialias:
        table = F.interpolate(table, size=(height, width), mode="bicubic", align_corners=False, antialias=True)
    else:
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
        num_registers: tokens without a meaning between the class token and the patches (arXiv:2309.16588).
        layer_scale: what a learnt factor per channel starts at on every branch (arXiv:2103.17239); None: there is none.
        swiglu: SwiGLU in place of the MLP.
        antialias_positions: by which rule positions are interpolated, see `interpolate_positions`.
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
        num_registers: int = 0,
        layer_scale: float | None = None,
        swiglu: bool = False,
        antialias_positions: bool = False,
    ) -> None:
        super().__init__()
        self.embed_dim = embed_dim
        self.num_blocks = self.num_attention_blocks = depth
        self.stage_dims = (embed_dim,) * len(stage_blocks(depth))
        self.num_prefix_tokens = 1 + num_registers
        self.antialias_positions = antialias_positions
        self.patch_size = patch_size
        self.image_size = image_size
        self.has_layer_scale = layer_scale is not None
        self.has_swiglu = swiglu
        self.drop_path = drop_path
        self.grad_checkpointing = False
        self.patch_embed = PatchEmbed(image_size, patch_size, in_chans, embed_dim, strict_img_size=False)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + (image_size // patch_size) ** 2, embed_dim))
        self.register_tokens = nn.Parameter(torch.zeros(1, num_registers, embed_dim)) if num_registers else None
        norm = partial(nn.LayerNorm, eps=1e-6)
        rates = [drop_path * block / max(1, depth - 1) for block in range(depth)]
        self.blocks = nn.ModuleList(
            TransformerBlock(
                embed_dim, num_heads, drop_path=rate, norm_layer=norm, layer_scale=layer_scale, swiglu=swiglu
            )
            for rate in rates
        )
        self.norm = norm(embed_dim)
        self._init_weights()

    def _init_weights(self) -> None:
        """Truncated normals of std 0.02; the patch convolution keeps PyTorch's default, as in the original."""
        trunc_normal_(self.pos_embed, std=0.02)
        trunc_normal_(self.cls_token, std=0.02)
        if self.register_tokens is not None:
            trunc_normal_(self.register_tokens, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, images: Float[Tensor, "b c x y"]) -> Float[Tensor, "b d"]:
        """The normalised class token."""
        tokens = self._encode(images, len(self.blocks) - 1)
        pooled: Tensor = self.norm(self._run(self.blocks[-1], tokens, class_token_only=True)[:, 0])
        return pooled

    def patch_features(self, images: Float[Tensor, "b c x y"]) -> Float[Tensor, "b d h w"]:
        """The normalised patch tokens on their grid."""
        return self.last_blocks(images, 1)[0].patches

    def last_blocks(self, images: Float[Tensor, "b c x y"], n: int) -> list[BlockFeatures]:
        """Class token and patch tokens after each of the last n blocks, normalised by the final norm."""
        if not 1 <= n <= self.num_blocks:
            raise UsageError(f"blocks={n} must lie in 1 to {self.num_blocks}, the blocks of this network")
        tokens, found = self._encode(images, self.num_blocks - n), []
        for block in self.blocks[self.num_blocks - n :]:
            tokens = self._run(block, tokens)
            found.append(self._features(tokens, self.grid(images)))
        return found

    def _features(self, tokens: Float[Tensor, "b t d"], grid: tuple[int, int]) -> BlockFeatures:
        normed = self.norm(tokens)
        return BlockFeatures(normed[:, 0], self._patches(normed, grid))

    def _patches(self, tokens: Float[Tensor, "b t d"], grid: tuple[int, int]) -> Float[Tensor, "b d h w"]:
        patches: Tensor = tokens[:, self.num_prefix_tokens :].transpose(1, 2).unflatten(2, grid)
        return patches

    def stage_features(self, images: Float[Tensor, "b c x y"]) -> list[Float[Tensor, "b d h w"]]:
        """The patches after four blocks that are spaced evenly, without the norm; all on one grid."""
        return self.pooled_and_stages(images)[1]

    def pooled_and_stages(
        self, images: Float[Tensor, "b c x y"]
    ) -> tuple[Float[Tensor, "b d"], list[Float[Tensor, "b d h w"]]]:
        """The normalised class token, and `stage_features`."""
        tokens, stages, chosen = self._tokens(images), [], stage_blocks(self.num_blocks)
        for index, block in enumerate(self.blocks):
            tokens = self._run(block, tokens)
            if index in chosen:
                stages.append(self._patches(tokens, self.grid(images)))
        return self.norm(tokens[:, 0]), stages

    def pooled_and_preactivations(
        self, images: Float[Tensor, "b c x y"]
    ) -> tuple[Float[Tensor, "b d"], list[Float[Tensor, "b d h w"]]]:
        """As `pooled_and_stages`: no activation ends a block."""
        return self.pooled_and_stages(images)

    def attention(self, images: Float[Tensor, "b c x y"], block: int = -1) -> AttentionMap:
        """What a block attends to, recomputed because fused attention never stores it."""
        if not -self.num_blocks <= block < self.num_blocks:
            raise UsageError(f"block={block} must lie in 0 to {self.num_blocks - 1}, or count from the last as -1")
        index = block % self.num_blocks
        chosen = self.blocks[index]
        assert isinstance(chosen, TransformerBlock)
        tokens = chosen.norm1(self._encode(images, index))
        qkv = chosen.attn.qkv(tokens).unflatten(-1, (3, chosen.attn.num_heads, -1))
        query, key, _ = qkv.permute(2, 0, 3, 1, 4)
        return AttentionMap(query * chosen.attn.scale, key, self.grid(images), self.num_prefix_tokens)

    def resized(self, image_size: int) -> "VisionTransformer":
        """A copy whose table of positions is that of another size, for programs that have another rule, or none."""
        side = image_size // self.patch_size
        copy = deepcopy(self)
        copy.image_size = side * self.patch_size
        cls_position, positions = self.pos_embed[:, :1], self.pos_embed[:, 1:]
        positions = interpolate_positions(positions, side, side, antialias=self.antialias_positions)
        copy.pos_embed = nn.Parameter(torch.cat((cls_position, positions), dim=1).detach(), requires_grad=False)
        return copy

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute every block in the backward pass instead of storing its activations."""
        self.grad_checkpointing = enable

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """torch.compile every block, with its arguments, instead of the whole: blocks share graphs, one per crop size.

        PyTorch keeps eight: two sizes for the student, one for the teacher, one for its evaluation, and the same
        again for the last block, of which only the class token is wanted.
        """
        for block in self.blocks:
            block.compile(*args, **kwargs)

    def grid(self, images: Float[Tensor, "b c x y"]) -> tuple[int, int]:
        """Rows and columns of patches."""
        return images.shape[-2] // self.patch_size, images.shape[-1] // self.patch_size

    def _encode(self, images: Float[Tensor, "b c x y"], num_blocks: int) -> Float[Tensor, "b t d"]:
        """Tokens, class token first, after the first `num_blocks` blocks."""
        tokens = self._tokens(images)
        for block in self.blocks[:num_blocks]:
            tokens = self._run(block, tokens)
        return tokens

    def _run(
        self, block: nn.Module, tokens: Float[Tensor, "b t d"], *, class_token_only: bool = False
    ) -> Float[Tensor, "b m d"]:
        assert isinstance(block, TransformerBlock)
        scales = block.branch_scales(tokens) if self.training and self.drop_path > 0 else None
        if self.grad_checkpointing and torch.is_grad_enabled():
            run = partial(checkpoint, block, use_reentrant=False, preserve_rng_state=False)
        else:
            run = block
        output: Tensor = run(tokens, scales, class_token_only=class_token_only)
        return output

    def _tokens(self, images: Float[Tensor, "b c x y"]) -> Float[Tensor, "b t d"]:
        patches = self.patch_embed(images)
        cls_position, positions = self.pos_embed[:, :1], self.pos_embed[:, 1:]
        patches = patches + interpolate_positions(positions, *self.grid(images), antialias=self.antialias_positions)
        prefix = self.cls_token + cls_position
        if self.register_tokens is not None:
            prefix = torch.cat((prefix, self.register_tokens), dim=1)
        # Not len(images): exported, that would be the number of images for ever.
        return torch.cat((prefix.expand(images.shape[0], -1, -1), patches), dim=1)
