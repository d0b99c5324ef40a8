"""From a backbone's features to an embedding of an image, such as a face."""

from typing import Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dino_ssl.errors import UsageError
from dino_ssl.models.attention_map import AttentionMap
from dino_ssl.models.backbone import Backbone
from dino_ssl.models.block_features import BlockFeatures

NeckKind = Literal["cls", "gap", "cls+gap", "flatten"]
"""What of the last block is read: its pooled features, the mean over its grid, both, or every place of it."""


class Neck(nn.Module):
    """Dropout, a linear layer and a batch norm whose weight stays 1, as insightface's networks end.

    Args:
        grid: rows and columns that `flatten` will see, for good; the others take any.
    """

    def __init__(
        self, kind: NeckKind, in_dim: int, embed_dim: int, *, grid: tuple[int, int], dropout: float = 0.0
    ) -> None:
        super().__init__()
        places = {"cls": 1, "gap": 1, "cls+gap": 2, "flatten": grid[0] * grid[1]}[kind]
        self.kind, self.grid = kind, grid
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(places * in_dim, embed_dim)
        self.features = nn.BatchNorm1d(embed_dim)
        self.features.weight.requires_grad_(False)
        nn.init.xavier_uniform_(self.fc.weight)
        nn.init.zeros_(self.fc.bias)

    def forward(self, block: BlockFeatures) -> Float[Tensor, "b e"]:
        """Raises UsageError: `flatten` is given another grid."""
        embedding: Tensor = self.features(self.fc(self.dropout(self._read(block))))
        return embedding

    def _read(self, block: BlockFeatures) -> Float[Tensor, "b d"]:
        match self.kind:
            case "cls":
                return block.pooled
            case "gap":
                return block.patches.mean((2, 3))
            case "cls+gap":
                return torch.cat((block.pooled, block.patches.mean((2, 3))), dim=1)
            case "flatten":
                if (found := block.patches.shape[2:]) != self.grid:
                    raise UsageError(
                        f"neck=flatten was made for a grid of {self.grid} places, not of {tuple(found)}; give images "
                        "of the size it was made for, or train with --embedding.neck gap"
                    )
                return block.patches.flatten(1)


class EmbeddingNetwork(nn.Module):
    """A backbone and a neck; it meets the contract of a backbone itself, and what it gives is the embedding.

    The neck is its `head`. Of the embedding together with stages the backbone runs twice.

    Args:
        image_size: side of the images of which `flatten` sees the grid, pixels.
    """

    def __init__(
        self, backbone: nn.Module, kind: NeckKind, *, embed_dim: int, image_size: int, dropout: float = 0.0
    ) -> None:
        super().__init__()
        inner = cast(Backbone, backbone)
        side = -(-image_size // inner.patch_size)
        self.backbone = backbone
        self.head = Neck(kind, inner.embed_dim, embed_dim, grid=(side, side), dropout=dropout)
        self.embed_dim = embed_dim
        self.num_blocks, self.num_attention_blocks = inner.num_blocks, inner.num_attention_blocks
        self.patch_size, self.stage_dims = inner.patch_size, inner.stage_dims

    @property
    def inner(self) -> Backbone:
        return cast(Backbone, self.backbone)

    def forward(self, images: Float[Tensor, "b c x y"]) -> Float[Tensor, "b e"]:
        """Not normalised: its length says how sure the network is of a face."""
        embedding: Tensor = self.head(self.inner.last_blocks(images, 1)[0])
        return embedding

    def patch_features(self, images: Float[Tensor, "b c x y"]) -> Float[Tensor, "b d h w"]:
        """The backbone's."""
        return self.inner.patch_features(images)

    def last_blocks(self, images: Float[Tensor, "b c x y"], n: int) -> list[BlockFeatures]:
        """The backbone's."""
        return self.inner.last_blocks(images, n)

    def stage_features(self, images: Float[Tensor, "b c x y"]) -> list[Float[Tensor, "b _d _h _w"]]:
        """The backbone's."""
        return self.inner.stage_features(images)

    def pooled_and_stages(
        self, images: Float[Tensor, "b c x y"]
    ) -> tuple[Float[Tensor, "b d"], list[Float[Tensor, "b _d _h _w"]]]:
        """The embedding, and the backbone's stages."""
        return self(images), self.stage_features(images)

    def pooled_and_preactivations(
        self, images: Float[Tensor, "b c x y"]
    ) -> tuple[Float[Tensor, "b d"], list[Float[Tensor, "b _d _h _w"]]]:
        """The embedding, and the backbone's stages before their activation."""
        return self(images), self.inner.pooled_and_preactivations(images)[1]

    def attention(self, images: Float[Tensor, "b c x y"], block: int = -1) -> AttentionMap:
        """The backbone's."""
        return self.inner.attention(images, block)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.inner.set_grad_checkpointing(enable)
