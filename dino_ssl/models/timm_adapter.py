"""Any timm model as a backbone."""

import difflib
import inspect
from collections.abc import Mapping
from typing import Any

import timm
import torch
from jaxtyping import Float
from timm.models.resnet import ResNet as TimmResNet
from timm.models.vision_transformer import Attention
from timm.models.vision_transformer import VisionTransformer as TimmVisionTransformer
from torch import Tensor, nn

from dino_ssl.errors import UsageError
from dino_ssl.models.attention_map import AttentionMap, NoAttention
from dino_ssl.models.block_features import BlockFeatures, only_block
from dino_ssl.models.resnet import resnet_preactivations
from dino_ssl.models.stage_choice import NUM_STAGES, stage_blocks


class TimmBackbone(nn.Module):
    """A timm model without its classifier; pooled as its authors pool it.

    Args:
        name: timm's name, without prefix.
        image_size: side for which size-bound models are built, pixels.
        options: further arguments of timm's constructor, as a `config.json` of timm keeps them.
    Raises:
        UsageError: timm has no model of that name, or it does not take images of that size.
    """

    def __init__(
        self,
        name: str,
        *,
        image_size: int,
        drop_path: float = 0.0,
        in_chans: int = 3,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if not timm.is_model(name):
            near = difflib.get_close_matches(name, timm.list_models(), n=3)
            hint = f"did you mean {', '.join(f'timm/{n}' for n in near)}?" if near else "see timm.list_models()"
            raise UsageError(f"model.name=timm/{name} is unknown to timm {timm.__version__}; {hint}")
        self.name = name
        wished = {"img_size": image_size, "dynamic_img_size": True, "drop_path_rate": drop_path}
        accepted = _constructor_arguments(name)
        # timm's own function would also take a path or a URL of weights, and load them.
        if strange := sorted(set(options or {}) - accepted):
            raise UsageError(f"timm/{name} has no argument {strange[0]}; take it out of the model_args of config.json")
        self.options = {key: value for key, value in wished.items() if key in accepted} | dict(options or {})
        settings = {**self.options, "num_classes": 0, "in_chans": in_chans}
        try:
            self.model = timm.create_model(name, pretrained=False, **settings)
            self.embed_dim = _output_dim(self.model, image_size, in_chans)
        except (RuntimeError, AssertionError, ValueError) as reason:
            raise UsageError(
                f"crops.global_size={image_size} does not go through model.name=timm/{name} ({reason}); write a size "
                "that does, or choose a backbone that takes any size, such as resnet18"
            ) from reason
        self._is_vit = isinstance(self.model, TimmVisionTransformer)

    def forward(self, images: Float[Tensor, "b c x y"]) -> Float[Tensor, "b d"]:
        return self.model(images)  # type: ignore[no-any-return]

    @property
    def num_blocks(self) -> int:
        """Of a ViT all its blocks; of other models the last feature map counts as one."""
        return len(self.model.blocks) if self._is_vit else 1

    @property
    def num_attention_blocks(self) -> int:
        """All blocks of a plain ViT."""
        plain = self._is_vit and all(type(block.attn) is Attention for block in self.model.blocks)
        return self.num_blocks if plain else 0

    @property
    def patch_size(self) -> int:
        """Of a ViT its patches' side; of other models the stride of the last feature map."""
        size: int = self.model.patch_embed.patch_size[0] if self._is_vit else self.model.feature_info[-1]["reduction"]
        return size

    def patch_features(self, images: Float[Tensor, "b c x y"]) -> Float[Tensor, "b d h w"]:
        """The last feature map; only for models whose features lie on a grid."""
        if self._is_vit:
            return self.last_blocks(images, 1)[0].patches
        features = self.model.forward_features(images)
        if features.ndim == 4 and features.shape[1] != self.model.num_features == features.shape[3]:
            features = features.permute(0, 3, 1, 2)  # Swin and its like have the channels last
        if features.ndim != 4 or features.shape[1] != self.model.num_features:
            raise UsageError(f"timm/{self.name} gives features of shape {tuple(features.shape)}, not [B, D, h, w]")
        return features  # type: ignore[no-any-return]

    def last_blocks(self, images: Float[Tensor, "b c x y"], n: int) -> list[BlockFeatures]:
        """Of a ViT each block's class token (the mean over patches if it has none) and patches."""
        if not self._is_vit:
            return only_block(f"timm/{self.name}", n, self.patch_features(images))
        if not 1 <= n <= self.num_blocks:
            raise UsageError(f"blocks={n} must lie in 1 to {self.num_blocks}, the blocks of timm/{self.name}")
        found = self.model.forward_intermediates(
            images, indices=n, norm=True, return_prefix_tokens=True, intermediates_only=True
        )
        if not self.model.num_prefix_tokens:
            return [BlockFeatures(patches.mean((2, 3)), patches) for patches in found]
        return [BlockFeatures(prefix[:, 0], patches) for patches, prefix in found]

    @property
    def stage_dims(self) -> tuple[int, ...]:
        """Channels of the maps of `stage_features`; empty where timm has no way to them."""
        return tuple(self.model.feature_info[stage]["num_chs"] for stage in self._stages())

    def _stages(self) -> list[int]:
        """Which of timm's levels they are: the last four; where all have one grid, four that are spaced evenly."""
        if not hasattr(self.model, "forward_intermediates"):
            return []
        strides = [level["reduction"] for level in self.model.feature_info]
        return stage_blocks(len(strides)) if len(set(strides)) == 1 else list(range(len(strides)))[-NUM_STAGES:]

    def stage_features(self, images: Float[Tensor, "b c x y"]) -> list[Float[Tensor, "b _d _h _w"]]:
        """The last four levels of timm's feature pyramid, or four blocks of a network that has none."""
        return self.pooled_and_stages(images)[1]

    def pooled_and_stages(
        self, images: Float[Tensor, "b c x y"]
    ) -> tuple[Float[Tensor, "b d"], list[Float[Tensor, "b _d _h _w"]]]:
        """What calling it gives, and `stage_features`."""
        if not (stages := self._stages()):
            raise UsageError(f"timm/{self.name} does not give the features of its stages; vit_small and resnet50 do")
        last, maps = self.model.forward_intermediates(images, indices=stages)
        return self.model.forward_head(last), maps

    def pooled_and_preactivations(
        self, images: Float[Tensor, "b c x y"]
    ) -> tuple[Float[Tensor, "b d"], list[Float[Tensor, "b _d _h _w"]]]:
        """Of ResNets each stage before its last activation; of ViTs `pooled_and_stages`; no other model can tell."""
        if isinstance(self.model, TimmResNet):
            return resnet_preactivations(self.model, images)
        if not self._is_vit:
            raise UsageError(f"timm/{self.name} does not give its stages before their activation; ResNets and ViTs do")
        return self.pooled_and_stages(images)

    def attention(self, images: Float[Tensor, "b c x y"], block: int = -1) -> AttentionMap:
        """What a block of a plain ViT attends to, recomputed because fused attention never stores it."""
        index = self._checked(block)
        chosen = self.model.blocks[index]
        tokens = chosen.norm1(self._tokens(images, index))
        qkv = chosen.attn.qkv(tokens).unflatten(-1, (3, chosen.attn.num_heads, -1))
        query, key, _ = qkv.permute(2, 0, 3, 1, 4)
        query, key = chosen.attn.q_norm(query), chosen.attn.k_norm(key)
        grid = self.model.patch_embed.dynamic_feat_size(images.shape[-2:])
        return AttentionMap(
            query * chosen.attn.scale,
            key,
            grid,
            self.model.num_prefix_tokens,
            has_class_token=self.model.has_class_token,
        )

    def _checked(self, block: int) -> int:
        """The block, counted from the first."""
        if not self.num_attention_blocks:
            raise NoAttention(f"timm/{self.name} does not show its attention here; plain ViTs such as vit_small do")
        if not -self.num_blocks <= block < self.num_blocks:
            raise UsageError(f"block={block} must lie in 0 to {self.num_blocks - 1}, or count from the last as -1")
        return block % self.num_blocks

    def _tokens(self, images: Float[Tensor, "b c x y"], num_blocks: int) -> Float[Tensor, "b t d"]:
        """All tokens before a block, by timm's own steps."""
        model = self.model
        tokens = model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(images))))
        for block in model.blocks[:num_blocks]:
            tokens = block(tokens)
        return tokens  # type: ignore[no-any-return]

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.model.set_grad_checkpointing(enable)


def _constructor_arguments(name: str) -> set[str]:
    """Parameter names that the class of a timm model takes: not every architecture has a size or drop path."""
    with torch.device("meta"):
        model = timm.create_model(name, pretrained=False)
    return set(inspect.signature(type(model).__init__).parameters) - {"self", "args", "kwargs"}


def _output_dim(model: nn.Module, image_size: int, in_chans: int) -> int:
    """What the model returns: some have more dimensions after their pooling head than before."""
    model.eval()
    with torch.no_grad():
        dim: int = model(torch.zeros(1, in_chans, image_size, image_size)).shape[1]
    model.train()
    return dim
