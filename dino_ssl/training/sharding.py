"""Networks of which each rank holds a part of every weight (FSDP2), or of some: split, measured, and joined again.

Every function takes whole tensors, too, and leaves them as they are, so that nobody else asks which they are.
"""

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard
from torch.optim import Optimizer

from dino_ssl.errors import UsageError

FIRST_ON_CPU = "2.13"
"""The first PyTorch tried whose FSDP2 is right over gloo: 2.6 fails, 2.7 adds gradients up and forgets to divide."""
T = TypeVar("T")


def split(module: nn.Module, device: torch.device, gradients: torch.dtype) -> None:
    """Leave to each rank its rows of every weight; a block's are together only while it is computed.

    Blocks are the members of `nn.ModuleList`; what lies outside of them stays together from the forward pass to the
    backward pass.

    Args:
        gradients: the type in which they travel.
    Raises:
        UsageError: this PyTorch cannot do so on a CPU.
    """
    if device.type == "cpu" and torch.__version__ < FIRST_ON_CPU:
        raise UsageError(
            f"parallel.sharding=fsdp2 on CPUs needs PyTorch {FIRST_ON_CPU} or newer, not {torch.__version__}; "
            "write --parallel.sharding none"
        )
    # Nothing changes the logits in place.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view", UserWarning)
    mesh, policy = init_device_mesh(device.type, (dist.get_world_size(),)), MixedPrecisionPolicy(reduce_dtype=gradients)
    blocks = [block for parent in module.modules() if isinstance(parent, nn.ModuleList) for block in parent]
    for part in (*blocks, module):
        fully_shard(part, mesh=mesh, mp_policy=policy)
    if not any(parameter.requires_grad for parameter in module.parameters()):
        # What lies outside of the blocks waits for a backward pass, and would be stale in the next step.
        module.register_forward_hook(lambda *_: cast(FSDPModule, module).reshard())


@contextmanager
def gradients_stay(module: FSDPModule) -> Iterator[None]:
    """Within, backward passes add to gradients of the whole on each rank, and send nothing."""
    module.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        module.set_requires_gradient_sync(True)


def local(tensors: Iterable[Tensor]) -> list[Tensor]:
    """This rank's parts; a change of them is one of the tensors."""
    return [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]


def is_part(tensor: Tensor) -> bool:
    """Whether ranks hold a part of it each."""
    return isinstance(tensor, DTensor)


def norms(tensors: list[Tensor]) -> Float[Tensor, " n"]:
    """L2 norm of each of `tensors`, all parts together; a collective if there are parts."""
    found = torch.stack(torch._foreach_norm(local(tensors)))
    if not any(map(is_part, tensors)):
        return found
    squares, parts = found.square(), torch.tensor([is_part(tensor) for tensor in tensors], device=found.device)
    joined = squares * parts
    dist.all_reduce(joined)
    return torch.where(parts, joined, squares).sqrt()


def own_rows(count: int) -> range:
    """Which of `count` rows this rank holds in `of_own_rows`: as many as any rank before it, or what is left."""
    world_size, rank = (dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else (1, 0)
    most = -(-count // world_size)
    return range(min(count, rank * most), min(count, (rank + 1) * most))


def of_own_rows(rows: Float[Tensor, "n ..."], count: int) -> Float[Tensor, "..."]:
    """A tensor of `count` rows, of which `rows` are this rank's, `own_rows`; `rows` itself on one process."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return rows
    mesh = init_device_mesh(rows.device.type, (dist.get_world_size(),))
    shape, stride = torch.Size((count, *rows.shape[1:])), rows.stride()
    return DTensor.from_local(rows, mesh, [Shard(0)], run_check=False, shape=shape, stride=stride)


def whole(value: T, *, everywhere: bool = False) -> T:
    """Dicts and lists of tensors with the parts joined; a collective if there are parts.

    Args:
        everywhere: each rank gets them on its device; otherwise rank 0 on the CPU, the others get empty tensors.
    """
    match value:
        case DTensor():
            joined = value.full_tensor()
            if not everywhere:
                joined = joined.cpu() if dist.get_rank() == 0 else joined.new_empty(0)
            return cast(T, joined)
        case dict():
            return cast(T, {key: whole(item, everywhere=everywhere) for key, item in value.items()})
        case list():
            return cast(T, [whole(item, everywhere=everywhere) for item in value])
        case _:
            return value


def part(value: Shaped[Tensor, "..."], like: Tensor) -> Tensor:
    """This rank's part of the whole `value`, as it has that of `like`."""
    if not isinstance(like, DTensor):
        return value
    rank, rows = like.device_mesh.get_local_rank(), value.chunk(like.device_mesh.size())
    # A weight may have fewer rows than there are ranks.
    mine = rows[rank] if rank < len(rows) else value[:0]
    mine = mine.to(like.device, copy=True)
    return DTensor.from_local(
        mine, like.device_mesh, like.placements, run_check=False, shape=value.shape, stride=value.stride()
    )


def load_module(module: nn.Module, state: dict[str, Tensor]) -> None:
    """`module.load_state_dict` of whole tensors."""
    own = module.state_dict()
    module.load_state_dict({name: part(value, own[name]) if name in own else value for name, value in state.items()})


def load_optimizer(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """`optimizer.load_state_dict` of whole tensors."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]

    def split_as(value: Any, weight: Tensor) -> Any:  # step counters have no parts
        return part(value, weight) if isinstance(value, Tensor) and value.shape == weight.shape else value

    memory = {
        number: {name: split_as(value, weights[number]) for name, value in entries.items()}
        for number, entries in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": memory})
