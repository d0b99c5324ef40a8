"""Which features a linear classifier sees: class tokens of the last blocks, and the mean over the patches.

Sizes: n images, k blocks (the last ones, earliest first), d features of a block.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Choice:
    """Pooled features of the last `blocks` blocks side by side, then perhaps the mean patch features of the last.

    Source: DINO takes four blocks for ViT-S, and one with the patches for ViT-B (facebookresearch/dino,
    `eval_linear.py`); DINOv2 all four combinations (arXiv:2304.07193, appendix B.3).
    """

    blocks: int
    patches: bool

    def __str__(self) -> str:
        return f"{self.blocks}+patches" if self.patches else str(self.blocks)

    def columns(self, num_blocks: int, dim: int) -> slice:
        """Where it lies in a row of `side_by_side`; always next to each other, so that no copy is needed."""
        return slice((num_blocks - self.blocks) * dim, (num_blocks + self.patches) * dim)

    def dim(self, dim: int) -> int:
        """Number of its features, of blocks with `dim` each."""
        return (self.blocks + self.patches) * dim


VIT_SMALL, VIT_BASE = Choice(4, patches=False), Choice(1, patches=True)
POOLED = Choice(1, patches=False)


def usual_choices(num_blocks: int) -> tuple[Choice, ...]:
    """DINO's two where the backbone has the blocks; where it has one, as a ResNet, what it pools."""
    return (VIT_SMALL, VIT_BASE) if num_blocks >= VIT_SMALL.blocks else (POOLED,)


def original_choice(num_blocks: int, dim: int) -> Choice:
    """What the original takes: for ViTs narrower than ViT-B (768) as for ViT-S; below four blocks as for ResNets."""
    if num_blocks < VIT_SMALL.blocks:
        return POOLED
    return VIT_SMALL if dim < 768 else VIT_BASE


def side_by_side(blocks: Float[Tensor, "n k 2 d"]) -> Float[Tensor, "n w"]:
    """Pooled features of each block, then the mean patch features of the last: every choice is a run of columns."""
    return torch.cat((blocks[:, :, 0].flatten(1), blocks[:, -1, 1]), 1)


def from_original_layout(weight: Float[Tensor, "c d"], choice: Choice) -> Float[Tensor, "c d"]:
    """Weights of the original's features in our order of columns.

    With patches, the original's features take turns, (class token, mean patch) for each dimension.

    Source: facebookresearch/dino, `eval_linear.py`.
    """
    return weight.view(len(weight), -1, 2).mT.flatten(1) if choice == VIT_BASE else weight


def to_original_layout(weight: Float[Tensor, "c d"], choice: Choice) -> Float[Tensor, "c d"]:
    """The inverse of `from_original_layout`."""
    return weight.view(len(weight), 2, -1).mT.flatten(1) if choice == VIT_BASE else weight
