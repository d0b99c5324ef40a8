"""The projection head of DINO, with the parameter names of the original."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.init import trunc_normal_


class WeightNormLinear(nn.Module):
    """Linear layer without bias whose rows are `weight_g * weight_v / |weight_v|`.

    PyTorch's own weight norm would either rename the parameters (`parametrizations`) or refuse to be copied
    (the old hook); the released checkpoints say `weight_g` and `weight_v`.

    Source: Salimans and Kingma, arXiv:1602.07868.
    """

    def __init__(self, in_features: int, out_features: int, *, train_norm: bool) -> None:
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(out_features, 1), requires_grad=train_norm)
        # As in the original, the default initialisation of nn.Linear, not the head's truncated normal.
        self.weight_v = nn.Parameter(nn.Linear(in_features, out_features, bias=False).weight.detach())

    def forward(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b k"]:
        return F.linear(x, torch._weight_norm(self.weight_v, self.weight_g, 0))


class DINOHead(nn.Module):
    """Three-layer MLP, L2 normalisation, weight-normalised prototypes.

    Args:
        in_dim: dimension of the backbone's features.
        prototypes: dimension of the output, K.
        batch_norm: BN after the first two layers.
        norm_last_layer: keep the prototypes at unit length instead of learning it.

    Source: arXiv:2104.14294, appendix C; shapes and initialisation of facebookresearch/dino.
    """

    def __init__(
        self,
        in_dim: int,
        prototypes: int,
        *,
        hidden_dim: int = 2048,
        bottleneck_dim: int = 256,
        batch_norm: bool = False,
        norm_last_layer: bool = True,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width in (in_dim, hidden_dim):
            layers.append(nn.Linear(width, hidden_dim))
            if batch_norm:
                layers.append(nn.BatchNorm1d(hidden_dim))
            layers.append(nn.GELU())
        self.mlp = nn.Sequential(*layers, nn.Linear(hidden_dim, bottleneck_dim))
        self.mlp.apply(_init_linear)
        self.last_layer = WeightNormLinear(bottleneck_dim, prototypes, train_norm=not norm_last_layer)

    def forward(self, x: Float[Tensor, "b d"]) -> Float[Tensor, "b k"]:
        logits: Tensor = self.last_layer(F.normalize(self.mlp(x), dim=-1))
        return logits


def _init_linear(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
