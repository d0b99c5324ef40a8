"""Batch norm statistics estimated anew, from the images that a network is going to be evaluated on."""

import copy
from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def has_batch_norm(network: nn.Module) -> bool:
    """Whether evaluation depends on statistics of earlier batches."""
    return any(isinstance(module, _BatchNorm) and module.running_mean is not None for module in network.modules())


def with_statistics_of(network: nn.Module, batches: Iterable[Float[Tensor, "_b c _x _y"]]) -> nn.Module:
    """A copy in evaluation mode whose batch norms hold the mean over the batches of their means and variances.

    A moving average remembers the augmented crops, of several sizes, of weights that have moved on since; that of
    a teacher other crops than the student's. Nothing of the network itself changes, nor do random states.

    Args:
        batches: at least one, of at least two images each, on the network's device.

    Source: Wu and Johnson, arXiv:2105.07576, section 3.
    """
    exact = copy.deepcopy(network).eval()
    norms = [module for module in exact.modules() if isinstance(module, _BatchNorm) and module.running_mean is not None]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # PyTorch's word for the plain mean over all batches
        norm.train()
    with torch.no_grad():
        for images in batches:
            exact(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return exact.eval()
