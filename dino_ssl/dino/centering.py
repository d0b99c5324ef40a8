"""Centering: a moving average of the teacher's logits that keeps one prototype from winning everything."""

import torch
from jaxtyping import Float
from torch import Tensor, nn


class Center(nn.Module):
    """The centre, subtracted from the teacher's logits before their softmax.

    The loss of a step uses the centre of the step before: `accumulate` collects the raw logits of every
    micro-batch, `update` moves the centre once per optimizer step.

    Args:
        prototypes: dimension of the logits.
        momentum: share of the old centre that stays, in [0, 1).

    Source: arXiv:2104.14294, equation 4.
    """

    center: Tensor
    logit_sum: Tensor

    def __init__(self, prototypes: int, momentum: float = 0.9) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("center", torch.zeros(1, prototypes))
        self.register_buffer("logit_sum", torch.zeros(1, prototypes), persistent=False)
        self.num_logits = 0

    @torch.no_grad()
    def accumulate(self, logits: Float[Tensor, "n k"]) -> None:
        """Add the logits of all global views of a micro-batch."""
        self.logit_sum += logits.sum(dim=0, keepdim=True)
        self.num_logits += len(logits)

    def collected(self) -> tuple[Float[Tensor, "1 k"], int]:
        """Sum and number of the logits collected on this rank since the last update."""
        return self.logit_sum, self.num_logits

    @torch.no_grad()
    def update(self, mean: Float[Tensor, "1 k"]) -> None:
        """Move towards `mean`, the mean logits over all ranks, and begin to collect anew."""
        self.center.mul_(self.momentum).add_(mean, alpha=1 - self.momentum)
        self.logit_sum.zero_()
        self.num_logits = 0
