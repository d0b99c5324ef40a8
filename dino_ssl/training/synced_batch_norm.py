"""Batch norm over the images of all ranks, on CPUs too, where PyTorch has none."""

import torch
from jaxtyping import Float
from timm.layers import BatchNormAct2d, convert_sync_batchnorm
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dino_ssl.training import distributed


class SyncedBatchNorm(_BatchNorm):
    """A batch norm whose statistics, and their gradients, are summed over ranks while it trains."""

    def forward(self, features: Float[Tensor, "b c *places"]) -> Float[Tensor, "b c *places"]:
        if not self.training:
            return super().forward(features)
        axes, shape = [0, *range(2, features.ndim)], (1, -1, *[1] * (features.ndim - 2))
        exact = features.to(torch.promote_types(features.dtype, torch.float32))
        sums = distributed.summed(torch.cat((exact.sum(axes), exact.new_tensor([features[:, 0].numel()]))))
        mean, count = sums[:-1] / sums[-1], sums[-1].detach()
        centred = exact - mean.view(shape)
        variance = distributed.summed(centred.square().sum(axes)) / count
        self._remember(mean.detach(), variance.detach() * count / (count - 1))
        scale = self.weight * (variance + self.eps).rsqrt()
        return (centred * scale.view(shape) + self.bias.view(shape)).to(features.dtype)

    @torch.no_grad()
    def _remember(self, mean: Float[Tensor, " c"], variance: Float[Tensor, " c"]) -> None:
        assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        share = 1 / int(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance, share)

    def _check_input_dim(self, input: Tensor) -> None:
        """Images or vectors, both will do."""


class SyncedBatchNormAct(SyncedBatchNorm):
    """timm's layer, which drop-out and an activation follow."""

    act: nn.Module
    drop: nn.Module

    def forward(self, features: Float[Tensor, "b c *places"]) -> Float[Tensor, "b c *places"]:
        activated: Tensor = self.act(self.drop(super().forward(features)))
        return activated


ON_CPU: dict[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm1d: SyncedBatchNorm,
    nn.BatchNorm2d: SyncedBatchNorm,
    BatchNormAct2d: SyncedBatchNormAct,
}


def synchronized(network: nn.Module, device: torch.device) -> nn.Module:
    """The network with its batch norm layers, names and weights as they are, over all ranks."""
    if device.type == "cuda":
        # timm's conversion, because PyTorch's own drops the activation that timm fuses into some layers.
        return convert_sync_batchnorm(network)  # type: ignore[no-any-return]
    for module in network.modules():
        # The class alone differs: parameters, buffers and timm's activations stay where they are.
        module.__class__ = ON_CPU.get(type(module), type(module))
    return network
