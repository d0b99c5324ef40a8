"""Gates on the channels and on the places of a map (CBAM, Woo et al., arXiv:1807.06521).

As in the released code of A-SKD: the convolution over places is 3x3 (the paper's 7x7) and has no batch norm.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

REDUCTION = 16
"""Channels over the hidden width of the gate on channels."""


@dataclass(frozen=True)
class Gates:
    """Before their sigmoid."""

    channel: Float[Tensor, "b c"]
    spatial: Float[Tensor, "b h w"]


class CBAM(nn.Module):
    """Channels first, then places."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        hidden_dim = dim // REDUCTION
        self.channel = nn.Sequential(
            nn.Linear(dim, hidden_dim, bias=False), nn.ReLU(), nn.Linear(hidden_dim, dim, bias=False)
        )
        self.spatial = nn.Conv2d(2, 1, 3, padding=1, bias=False)

    def forward(self, x: Float[Tensor, "b c h w"]) -> tuple[Float[Tensor, "b c h w"], Gates]:
        """The gated map, and its gates."""
        channel: Tensor = self.channel(x.mean((2, 3))) + self.channel(x.amax((2, 3)))
        x = x * channel.sigmoid()[:, :, None, None]
        spatial: Tensor = self.spatial(torch.stack((x.mean(1), x.amax(1)), dim=1))
        return x * spatial.sigmoid(), Gates(channel, spatial[:, 0])
