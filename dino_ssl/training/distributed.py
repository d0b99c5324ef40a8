"""Ranks. The only importer of `torch.distributed`; on one process every collective is the identity."""

import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.distributed import TCPStore  # type: ignore[attr-defined]
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

from dino_ssl.config import Parallel
from dino_ssl.errors import UsageError
from dino_ssl.training import sharding
from dino_ssl.training.ranks import Placement, placement
from dino_ssl.training.rendezvous import SECONDS_TO_START, announce, follow, meeting_file, withdraw

T = TypeVar("T")
STEP_TIMEOUT = timedelta(minutes=15)
"""A rank that waits longer for the others within a step gives up: one of them is lost."""
CONTROL_TIMEOUT = timedelta(hours=12)
"""The same where the others wait for work of rank 0 alone: k-NN, pictures, a checkpoint."""
_control: dist.ProcessGroup | None = None
logger = logging.getLogger("dino_ssl")


@contextmanager
def process_group(device: torch.device, folder: Path) -> Iterator[None]:
    """Join the ranks of this run; NCCL on GPUs, gloo on CPUs, nothing on one process.

    Args:
        folder: where ranks meet whose launcher gave no address: the run's.
    """
    global _control  # noqa: PLW0603
    here = placement()
    logger.info("%s", here)
    if here.world_size == 1:
        yield
        return
    _join("nccl" if device.type == "cuda" else "gloo", here, folder)
    # On the CPU and of its own, so that what it carries waits for no device, nor for what a device still has to do.
    _control = cast(dist.ProcessGroup, dist.new_group(backend="gloo", timeout=CONTROL_TIMEOUT))
    try:
        yield
    finally:
        _control = None
        dist.destroy_process_group()


def _join(backend: str, here: Placement, folder: Path) -> None:
    if here.has_address:
        dist.init_process_group(backend, timeout=STEP_TIMEOUT)
        return
    path = meeting_file(folder)
    if here.rank > 0:
        store = follow(path, lambda host, port: _store(host, port, here))
        dist.init_process_group(backend, store=store, rank=here.rank, world_size=here.world_size, timeout=STEP_TIMEOUT)
        return
    store = _store("localhost", 0, here)
    made = announce(path, store.port)
    try:
        dist.init_process_group(backend, store=store, rank=0, world_size=here.world_size, timeout=STEP_TIMEOUT)
    finally:
        withdraw(path, made)


def _store(host: str, port: int, here: Placement) -> TCPStore:
    """Rank 0 listens, with port 0 on a free one, which the system chooses; the others connect."""
    wait = timedelta(seconds=SECONDS_TO_START)
    return TCPStore(host, port, here.world_size, here.rank == 0, timeout=wait, wait_for_workers=False)


def device_kind(device: str) -> str:
    """cpu or cuda, where `auto` takes CUDA if there is one.

    Raises:
        UsageError: CUDA is asked for and not there.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError("device=cuda, but PyTorch finds no GPU; write --device cpu, or install PyTorch with CUDA")
    return "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"


def local_device(kind: str) -> torch.device:
    """This rank's device; on CUDA the GPU of its number on this node, or the only one that it may see."""
    if kind != "cuda":
        return torch.device(kind)
    device = torch.device("cuda", placement().local_rank % torch.cuda.device_count())
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


def summed(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """`all_sum` with the gradient of the sum of all ranks' losses."""
    result: Tensor = _Summed.apply(x)
    return result


class _Summed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return all_sum(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return all_sum(gradient)


def all_mean(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Mean of `x` over ranks; `x` itself on one process."""
    return all_sum(x) / world_size()


def all_largest(x: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
    """The largest of each number over ranks, without gradient; `x` itself on one process."""
    x = x.detach()
    if world_size() > 1:
        x = x.clone()
        dist.all_reduce(x, dist.ReduceOp.MAX)
    return x


def gather_rows(x: Shaped[Tensor, "n ..."]) -> Shaped[Tensor, "m ..."]:
    """The rows of all ranks, in rank order, as many of each; `x` itself on one process.

    What flows back to a row is the sum over all ranks, times their number, which cancels the mean that `data_parallel`
    takes of gradients afterwards.
    """
    return x if world_size() == 1 else cast(Tensor, _GatherRows.apply(x))


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        everyone = [torch.empty_like(x) for _ in range(world_size())]
        dist.all_gather(everyone, x.contiguous())
        return torch.cat(everyone)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return all_sum(gradient.contiguous()).chunk(world_size())[rank()] * world_size()


class LargestOfAll:
    """The largest number that any rank gave in the call before this one: known to all, at no rank's waiting.

    On one process it is that of this call.
    """

    def __init__(self) -> None:
        self._numbers = torch.zeros(1, dtype=torch.int64)
        self._work: dist.Work | None = None

    def exchange(self, number: int) -> int:
        if world_size() == 1:
            return number
        answer = 0
        if self._work is not None:
            self._work.wait()
            answer = int(self._numbers)
        self._numbers = torch.tensor([number])
        self._work = dist.all_reduce(self._numbers, dist.ReduceOp.MAX, group=_control, async_op=True)
        return answer


def gather(value: T) -> list[T]:
    """One picklable `value` of each rank, in rank order, on every rank."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value, group=_control)
    return values


def broadcast(value: T) -> T:
    """Rank 0's `value` on every rank."""
    box: list[Any] = [value]
    if world_size() > 1:
        dist.broadcast_object_list(box, src=0, group=_control)
    return box[0]  # type: ignore[no-any-return]


def barrier() -> None:
    if world_size() > 1:
        dist.barrier(group=_control)


def sharded(module: nn.Module, device: torch.device, knobs: Parallel) -> nn.Module:
    """`module`, of whose weights each rank keeps its part, if that is asked for; all of them on one process."""
    if world_size() > 1 and knobs.sharding == "fsdp2":
        sharding.split(module, device, _gradient_type(knobs))
    return module


def data_parallel(module: nn.Module, device: torch.device, knobs: Parallel) -> nn.Module:
    """`module` with gradients averaged over ranks; `module` itself on one process."""
    if world_size() == 1 or knobs.sharding == "fsdp2":
        return sharded(module, device, knobs)
    # What ranks hold a part of each is nothing to average.
    parts = [name for name, weight in module.named_parameters() if sharding.is_part(weight)]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, parts)
    parallel = DistributedDataParallel(
        module,
        device_ids=[device.index] if device.type == "cuda" else None,
        # Buffers stay each rank's own: only BN has any, and SyncBN keeps those equal.
        broadcast_buffers=False,
        bucket_cap_mb=knobs.bucket_mb,
        gradient_as_bucket_view=True,
    )
    if knobs.gradients == "bf16":
        parallel.register_comm_hook(None, bf16_compress_hook)
    return parallel


def share_buffers(module: nn.Module) -> None:
    """Give every rank rank 0's buffers, as they will be saved; of a batch norm that no rank synchronised, too."""
    for buffer in module.buffers():
        buffer.copy_(broadcast(buffer.cpu()))


def _gradient_type(knobs: Parallel) -> torch.dtype:
    return torch.bfloat16 if knobs.gradients == "bf16" else torch.float32


def gradient_sync(module: nn.Module, *, enabled: bool) -> AbstractContextManager[None]:
    """Whether this backward pass averages gradients over ranks: only the last micro-batch of a step needs to."""
    if enabled:
        return nullcontext()
    match module:
        case DistributedDataParallel():
            return module.no_sync()
        case FSDPModule():
            return sharding.gradients_stay(module)
        case _:
            return nullcontext()
