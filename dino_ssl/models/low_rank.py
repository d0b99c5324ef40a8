"""Low-rank adaptation: of a frozen network only small products of two matrices are trained, for few data.

Source: Hu et al., LoRA, arXiv:2106.09685; with its scale alpha / rank at 1.
"""

import re

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import parametrize

from dino_ssl.errors import UsageError

FACTORS = re.compile(r"(.+)\.parametrizations\.weight\.(original|0\.down|0\.up)")
"""How PyTorch names a weight that is computed, and what it is computed of."""


class LowRankSum(nn.Module):
    """weight + up down; up starts at 0, so that the network starts as it was."""

    def __init__(self, weight: Float[Tensor, "o i"], rank: int) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.empty(rank, weight.shape[1]))
        self.up = nn.Parameter(torch.zeros(weight.shape[0], rank))
        nn.init.kaiming_uniform_(self.down, a=5**0.5)

    def forward(self, weight: Float[Tensor, "o i"]) -> Float[Tensor, "o i"]:
        return weight + self.up @ self.down


def adapt(backbone: nn.Module, rank: int) -> None:
    """Freeze all parameters, and add trainable products of `rank` to the linear layers of attention.

    Raises:
        UsageError: there is no attention, or its layers are narrower than `rank`.
    """
    backbone.requires_grad_(False)
    chosen = [m for name, m in backbone.named_modules() if isinstance(m, nn.Linear) and ".attn." in f".{name}."]
    if not chosen:
        raise UsageError(f"embedding.lora_rank={rank}: the network has no attention; take a ViT or a CMT, or write 0")
    narrowest = min(min(layer.weight.shape) for layer in chosen)
    if rank > narrowest:
        raise UsageError(f"embedding.lora_rank={rank} is above {narrowest}, the width of attention; write at most that")
    for layer in chosen:
        parametrize.register_parametrization(layer, "weight", LowRankSum(layer.weight, rank))


def merged(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """A file's tensors with each sum in place of its parts."""
    found = {name: value for name, value in tensors.items() if not FACTORS.fullmatch(name)}
    for name, value in tensors.items():
        match = FACTORS.fullmatch(name)
        if match and match[2] == "original":
            down, up = (tensors.get(f"{match[1]}.parametrizations.weight.0.{part}") for part in ("down", "up"))
            if down is None or up is None:
                raise UsageError(f"{name} is in the file, but not what is added to it; write it out again")
            found[f"{match[1]}.weight"] = value + up @ down
    return found
