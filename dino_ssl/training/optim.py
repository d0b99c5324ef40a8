"""Parameter groups, optimizers, clipping and the frozen last layer."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from dino_ssl.training import sharding


class LARS(Optimizer):
    """SGD with momentum and a learning rate per tensor; 1-D parameters have neither decay nor adaptation.

    Args:
        trust: the coefficient eta of the paper.

    Source: You et al., arXiv:1708.03888, as facebookresearch/dino computes it.
    """

    def __init__(
        self,
        params: Iterable[Any],
        *,
        lr: float = 0.0,
        weight_decay: float = 0.0,
        momentum: float = 0.9,
        trust: float = 0.001,
    ) -> None:
        defaults = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "trust": trust}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        assert closure is None, "LARS takes no closure"
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            vectors = [p for p in parameters if p.ndim == 1]
            matrices = [p for p in parameters if p.ndim != 1]
            if vectors:
                self._move(vectors, _gradients(vectors), group)
            if matrices:
                self._move(matrices, _adapted(matrices, group["weight_decay"], group["trust"]), group)

    def _move(self, parameters: list[Tensor], updates: list[Tensor], group: dict[str, Any]) -> None:
        for parameter in parameters:
            if "momentum_buffer" not in self.state[parameter]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        buffers = [self.state[parameter]["momentum_buffer"] for parameter in parameters]
        torch._foreach_mul_(buffers, group["momentum"])
        torch._foreach_add_(buffers, updates)
        torch._foreach_sub_(parameters, buffers, alpha=group["lr"])


def _gradients(parameters: list[Tensor]) -> list[Tensor]:
    return [p.grad for p in parameters if p.grad is not None]


def _adapted(parameters: list[Tensor], weight_decay: float, trust: float) -> list[Tensor]:
    """Gradients with weight decay, times `trust * |parameter| / |gradient|`, or 1 where either norm is 0."""
    updates = torch._foreach_add(_gradients(parameters), parameters, alpha=weight_decay)
    size, step = torch.stack(torch._foreach_norm(parameters)), torch.stack(torch._foreach_norm(updates))
    ratio = torch.where((size > 0) & (step > 0), trust * size / step, 1.0)
    return list(torch._foreach_mul(updates, ratio.unbind()))


def is_plain(name: str, parameter: Tensor) -> bool:
    """Whether weight decay leaves a parameter alone: a bias, or of one dimension."""
    return name.endswith(".bias") or parameter.ndim == 1


def parameter_groups(module: nn.Module) -> list[dict[str, Any]]:
    """Trainable parameters as the original groups them: first those that weight decay touches, then the rest.

    Biases and 1-D parameters are not decayed; position table, class token and prototypes are.
    """
    named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    plain = [p for name, p in named if is_plain(name, p)]
    decayed = [p for name, p in named if not is_plain(name, p)]
    return [{"params": decayed}, {"params": plain, "weight_decay": 0.0}]


def build_optimizer(name: str, groups: list[dict[str, Any]]) -> Optimizer:
    """AdamW, SGD with momentum 0.9, or LARS; `set_rates` gives the learning rate before each step."""
    match name:
        case "adamw":
            # One kernel for all tensors: several times faster than the loop, on the CPU too.
            return AdamW(groups, fused=True)
        case "sgd":
            return SGD(groups, lr=0.0, momentum=0.9)
        case "lars":
            return LARS(groups)
    raise ValueError(f"optim.name={name!r} is unknown; choose adamw, sgd or lars")


def set_rates(optimizer: Optimizer, *, lr: float, weight_decay: float) -> None:
    """Assign this step's rates; weight decay to the first group only."""
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.param_groups[0]["weight_decay"] = weight_decay


def clip_gradients(parameters: Iterable[Tensor], max_norm: float, *, per_tensor: bool) -> None:
    """Shrink gradients to at most `max_norm`, all together or each tensor by itself, without a device sync.

    Args:
        max_norm: 0 leaves gradients as they are.
        per_tensor: as the original does; it changes the direction of the step, so it is not our default.
    """
    parameters = [p for p in parameters if p.grad is not None]
    if not parameters or max_norm == 0:
        return
    gradients = _gradients(parameters)
    norms = sharding.norms(gradients)
    if per_tensor:
        torch._foreach_mul_(sharding.local(gradients), _shrinking(norms, max_norm).unbind())
    else:
        torch._foreach_mul_(sharding.local(gradients), _shrinking(norms.norm(), max_norm))


def _shrinking(norm: Float[Tensor, "..."], max_norm: float) -> Float[Tensor, "..."]:
    """The factor that makes `norm` at most `max_norm`, as PyTorch's `clip_grad_norm_` has it."""
    return (max_norm / (norm + 1e-6)).clamp(max=1.0)


def drop_last_layer_gradients(module: nn.Module) -> None:
    """Keep the prototypes, and the optimizer's memory of them, untouched in this step."""
    for name, parameter in module.named_parameters():
        if "last_layer" in name:
            parameter.grad = None
