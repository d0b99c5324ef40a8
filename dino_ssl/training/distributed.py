"""Ranks. The only importer of `torch.distributed`; on one process every collective is the identity."""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

T = TypeVar("T")


def launched_world_size() -> int:
    """Processes that the launcher (torchrun) started, known before the process group exists."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Join the ranks that torchrun started; NCCL on GPUs, gloo on CPUs, nothing on one process."""
    if launched_world_size() == 1:
        yield
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def local_device(kind: str) -> torch.device:
    """This rank's device; on CUDA the GPU that torchrun numbered for it."""
    if kind != "cuda":
        return torch.device(kind)
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    return device


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    return rank() == 0


def all_sum(x: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
    """Sum `x` over ranks; `x` itself on one process."""
    if world_size() > 1:
        x = x.clone()
        dist.all_reduce(x)
    return x


def all_mean(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Mean of `x` over ranks; `x` itself on one process."""
    return all_sum(x) / world_size()


def gather(value: T) -> list[T]:
    """One picklable `value` of each rank, in rank order, on every rank."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def broadcast(value: T) -> T:
    """Rank 0's `value` on every rank."""
    box: list[Any] = [value]
    if world_size() > 1:
        dist.broadcast_object_list(box, src=0)
    return box[0]  # type: ignore[no-any-return]


def barrier() -> None:
    if world_size() > 1:
        dist.barrier()


def data_parallel(module: nn.Module, device: torch.device) -> nn.Module:
    """`module` with gradients averaged over ranks; `module` itself on one process."""
    if world_size() == 1:
        return module
    device_ids = [device.index] if device.type == "cuda" else None
    # Buffers stay each rank's own: only BN has any, and SyncBN keeps those equal.
    return DistributedDataParallel(module, device_ids=device_ids, broadcast_buffers=False)


def gradient_sync(module: nn.Module, *, enabled: bool) -> AbstractContextManager[None]:
    """Whether this backward pass averages gradients over ranks: only the last micro-batch of a step needs to."""
    if enabled or not isinstance(module, DistributedDataParallel):
        return nullcontext()
    return module.no_sync()
