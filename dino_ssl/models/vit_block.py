"""The block of our Vision Transformer.

Sizes: b images, t tokens, d dimensions.
"""

from collections.abc import Callable

from jaxtyping import Float
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional as F

from dino_ssl.models.swiglu import SwiGLU

MLP_RATIO = 4


class TransformerBlock(Block):  # type: ignore[misc]  # timm has no types
    """timm's pre-norm block, of which the class token alone may be asked, and which draws nothing at random itself.

    What drop path draws comes in as a tensor. A rate would be a Python number inside compiled code, and each block
    would need graphs of its own.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        drop_path: float,
        norm_layer: Callable[..., nn.Module],
        layer_scale: float | None = None,
        swiglu: bool = False,
    ) -> None:
        super().__init__(
            dim,
            num_heads,
            MLP_RATIO,
            qkv_bias=True,
            drop_path=drop_path,
            norm_layer=norm_layer,
            init_values=layer_scale,
        )
        if swiglu:
            self.mlp = SwiGLU(dim, MLP_RATIO * dim)
        self.keep_probability = 1 - drop_path

    def branch_scales(self, tokens: Float[Tensor, "b t d"]) -> Float[Tensor, "2 b 1 1"]:
        """What drop path multiplies each image's attention and MLP branch by, 0 or 1 / keep; drawn as timm draws."""
        scales = tokens.new_ones(2, len(tokens), 1, 1)
        if self.keep_probability == 1:
            return scales
        for branch in scales:
            branch.bernoulli_(self.keep_probability)
        return scales.div_(self.keep_probability)

    def forward(
        self,
        tokens: Float[Tensor, "b t d"],
        scales: Float[Tensor, "2 b 1 1"] | None = None,
        *,
        class_token_only: bool = False,
    ) -> Float[Tensor, "b m d"]:
        """All tokens, or the class token alone, which needs the keys and values of the others but nothing else."""
        normed = self.norm1(tokens)
        if class_token_only:
            attended, tokens = self._class_attention(normed), tokens[:, :1]
        else:
            attended = self.attn(normed)
        attended = self.ls1(attended)
        tokens = tokens + (attended if scales is None else attended * scales[0])
        widened: Tensor = self.ls2(self.mlp(self.norm2(tokens)))
        return tokens + (widened if scales is None else widened * scales[1])

    def _class_attention(self, tokens: Float[Tensor, "b t d"]) -> Float[Tensor, "b 1 d"]:
        """What `self.attn` gives for the first token, with one query instead of t."""
        dim, heads = tokens.shape[-1], self.attn.num_heads
        query_weight, other_weights = self.attn.qkv.weight.split((dim, 2 * dim))
        query_bias, other_biases = self.attn.qkv.bias.split((dim, 2 * dim))
        query = F.linear(tokens[:, :1], query_weight, query_bias).unflatten(-1, (heads, -1)).transpose(1, 2)
        others = F.linear(tokens, other_weights, other_biases).unflatten(-1, (2, heads, -1))
        key, value = others.permute(2, 0, 3, 1, 4).unbind(0)
        attended = F.scaled_dot_product_attention(query, key, value)
        projected: Tensor = self.attn.proj(attended.transpose(1, 2).flatten(2))
        return projected
