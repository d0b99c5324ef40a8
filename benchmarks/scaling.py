"""Data parallelism measured over gloo here, and the model of docs/scaling.md: `python -m benchmarks.scaling`.

It starts 1, 2, 4 and 8 processes of one thread each. They share the machine's cores and its loopback, so that 8 of
them are no faster than the cores allow: what can be checked is bytes, the all-reduce by itself, and whether a step
takes what its parts take. `--table` prints the model's tables alone; `--device cuda` measures NCCL where GPUs are.
Bytes are those of the whole loopback: `unshare -n sh -c 'ip link set lo up; ...'` keeps those of others out.
"""

import argparse
import math
import multiprocessing
import os
import socket
import statistics
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.scaling_model import BFLOAT16, FLOAT32, NETWORKS, Machine, Model, efficiency, ring_bytes
from dino_ssl.config import Parallel
from dino_ssl.dino.centering import Center
from dino_ssl.dino.method import MultiCropNetwork, SelfDistillation
from dino_ssl.models.backbone import build_backbone
from dino_ssl.models.heads import DINOHead
from dino_ssl.training import distributed, sharding
from dino_ssl.training.optim import build_optimizer, clip_gradients, parameter_groups, set_rates

RANKS = (1, 2, 4, 8)
MEBIBYTES = (1, 4, 16)
BATCH, PROTOTYPES = 2, 4096
VARIANTS = {
    "DDP": Parallel(),
    "DDP, buckets of 1 MiB": Parallel(bucket_mb=1.0),
    "DDP, bf16": Parallel(gradients="bf16"),
    "FSDP2": Parallel(sharding="fsdp2"),
    "FSDP2, bf16": Parallel(sharding="fsdp2", gradients="bf16"),
}


@dataclass
class Measured:
    """Medians of one rank: seconds, and bytes that all ranks sent in it (over the loopback; nan elsewhere)."""

    all_reduce: dict[int, float] = field(default_factory=dict)
    steps: dict[str, tuple[float, float]] = field(default_factory=dict)


def sent() -> float:
    """Bytes that the loopback of this network namespace carried so far."""
    lines = [line.split(":") for line in Path("/proc/net/dev").read_text().splitlines() if ":" in line]
    return next((float(numbers.split()[8]) for name, numbers in lines if name.strip() == "lo"), math.nan)


def measured(call: Callable[[], object], rounds: int, device: torch.device) -> tuple[float, float]:
    """Median seconds and bytes of a call, after one that is not counted; all ranks begin together."""
    seconds, carried = [], []
    for _ in range(rounds + 1):
        dist.barrier()
        before, begin = sent(), time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - begin)
        dist.barrier()
        carried.append(sent() - before)
    return statistics.median(seconds[1:]), statistics.median(carried[1:])


def a_method(device: torch.device, knobs: Parallel) -> SelfDistillation:
    torch.manual_seed(0)
    networks = []
    for _ in range(2):
        backbone = build_backbone("vit_micro", image_size=64, patch_size=16)
        networks.append(MultiCropNetwork(backbone, DINOHead(backbone.embed_dim, PROTOTYPES, hidden_dim=512)))
    center = Center(PROTOTYPES)
    return SelfDistillation(*networks, center, student_temperature=0.1, device=device, parallel=knobs)


def a_step(method: SelfDistillation, device: torch.device) -> Callable[[], None]:
    """What `training.loop` does in a step, on noise."""
    optimizer = build_optimizer("adamw", parameter_groups(method.student))
    set_rates(optimizer, lr=1e-4, weight_decay=0.04)
    views = [torch.randn(v, BATCH, 3, size, size, device=device) for v, size in ((2, 64), (4, 32))]

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        method.loss(views, 0.04).backward()
        clip_gradients(method.student.parameters(), 3.0, per_tensor=False)
        optimizer.step()
        method.update_center()
        method.update_teacher(0.996)

    return step


def on_rank(environment: dict[str, str], rounds: int, kind: str, send: Any) -> None:
    os.environ.update(environment)
    warnings.filterwarnings("ignore", category=UserWarning)
    warnings.filterwarnings("ignore", category=FutureWarning)
    torch.set_num_threads(1)
    device = distributed.local_device(kind)
    found = Measured()
    dist.init_process_group("nccl" if kind == "cuda" else "gloo")
    for size in MEBIBYTES if dist.get_world_size() > 1 else ():
        buffer = torch.ones(size * 2**20 // FLOAT32, device=device)
        found.all_reduce[size] = measured(partial(dist.all_reduce, buffer), rounds, device)[0]
    variants = VARIANTS if dist.get_world_size() == 2 else {"DDP": Parallel()}
    for name, knobs in variants.items():
        if knobs.sharding == "fsdp2" and kind == "cpu" and torch.__version__ < sharding.FIRST_ON_CPU:
            continue
        found.steps[name] = measured(a_step(a_method(device, knobs), device), rounds, device)
    send.send(found)
    dist.destroy_process_group()


def run(ranks: int, rounds: int, kind: str) -> Measured:
    """What rank 0 of `ranks` measured; its medians are everybody's, since all wait for each other."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("forkserver")
    pipes = [context.Pipe(duplex=False) for _ in range(ranks)]
    processes = []
    for rank, (_, send) in enumerate(pipes):
        numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
        environment = {name: str(number) for name, number in numbers.items()} | address
        processes.append(context.Process(target=on_rank, args=(environment, rounds, kind, send), daemon=True))
        processes[-1].start()
    found: Measured = next(iter([receive.recv() for receive, _ in pipes]))
    for process in processes:
        process.join()
    return found


def table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """Markdown."""
    head = list(head)
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines) + "\n"


def print_measured(results: dict[int, Measured]) -> None:
    pair = results[2].all_reduce
    small, large = min(pair), max(pair)
    # Two ranks send 2 x size over a wire that all share, and wait twice; from that, larger numbers are predicted.
    wire = 2 * (large - small) * 2**20 / (pair[large] - pair[small])
    wait = max(0.0, pair[small] - 2 * small * 2**20 / wire) / 2
    print(f"All-reduce alone: shared wire {wire / 1e9:.2f} GB/s and {wait * 1e6:.0f} us a message, both from 2 ranks\n")
    rows = []
    for ranks, found in results.items():
        for size, seconds in found.all_reduce.items():
            told = ranks * ring_bytes(size * 2**20, ranks) / wire + 2 * (ranks - 1) * wait
            rows.append((ranks, size, f"{seconds * 1e3:.1f}", f"{told * 1e3:.1f}", f"{told / seconds - 1:+.0%}"))
    print(table(("ranks", "MiB", "ms measured", "ms predicted", "error"), rows))
    print_steps(results, wire, wait)


def print_steps(results: dict[int, Measured], wire: float, wait: float) -> None:
    method = a_method(torch.device("cpu"), Parallel())
    trained = sum(p.numel() for p in method.student.parameters() if p.requires_grad)
    blocks = sum(p.numel() for p in method.student.backbone.blocks.parameters())  # type: ignore[union-attr]
    model = Model("vit_micro", blocks, trained - blocks)
    alone, rows = results[1].steps["DDP"][0], []
    cores = len(os.sched_getaffinity(0))
    for ranks, found in results.items():
        for name, (seconds, carried) in found.steps.items():
            told = ranks * bytes_of(model, VARIANTS[name], ranks)
            expected = alone * max(1.0, ranks / cores) + told / wire + 2 * (ranks - 1) * wait
            rows.append((
                ranks, name, f"{carried / 1e6:.2f}", f"{told / 1e6:.2f}",
                f"{seconds * 1e3:.0f}", f"{expected * 1e3:.0f}", f"{expected / seconds - 1:+.0%}",
            ))  # fmt: skip
    print(f"A step of {trained:,} trained parameters, {BATCH} images a rank, {cores} cores for all ranks\n")
    print(table(("ranks", "", "MB sent by all", "formula", "ms", "ms predicted", "error"), rows))


def bytes_of(model: Model, knobs: Parallel, ranks: int) -> float:
    """That each rank sends over gloo in a step of this file's small head."""
    gradient, share = BFLOAT16 if knobs.gradients == "bf16" else FLOAT32, (ranks - 1) / ranks
    center = ring_bytes(PROTOTYPES * FLOAT32, ranks)
    if knobs.sharding == "none":
        return ring_bytes(model.parameters * gradient, ranks) + center
    gathered = (5 * model.blocks + 2 * model.others) * FLOAT32
    # gloo has no reduce-scatter: gradients are reduced everywhere, and each rank keeps its part.
    return share * gathered + ring_bytes(model.parameters * gradient, ranks) + center


def print_model() -> None:
    models = [Model.of(name) for name in ("vit_small", "vit_base", "vit_large", "vit_giant")]
    rows = [
        (
            m.name, f"{m.parameters / 1e6:.0f}",
            f"{m.ddp_bytes(FLOAT32) / 1e6:.0f}", f"{m.ddp_bytes(BFLOAT16) / 1e6:.0f}",
            f"{m.fsdp_bytes(FLOAT32, 1024) / m.ddp_bytes(FLOAT32) / 2:.1f}", f"{m.compute()[0] / 1e9:.0f}",
            f"{m.compute()[1] / m.compute()[0]:.0%}",
        )
        for m in models
    ]  # fmt: skip
    head = (
        "", "million trained parameters", "MB reduced, fp32", "bf16", "FSDP2: times the bytes", "GFLOP an image",
        "of which hide the network",
    )  # fmt: skip
    print(table(head, rows))
    ranks = (1, 8, 16, 32, 64, 128, 256, 512, 1024)
    for network in NETWORKS:
        print(f"{network.name} between nodes of {network.gpus_per_node} GPUs, 64 images a GPU (giant: 16)\n")
        rows = []
        for m in models:
            for gradient, name in ((FLOAT32, "fp32"), (BFLOAT16, "bf16")):
                batch = 16 if m.name == "vit_giant" else 64
                share = [efficiency(m, network, n, batch=batch, gradient=gradient, machine=Machine()) for n in ranks]
                rows.append((f"{m.name}, {name}", *(f"{x:.0%}" for x in share)))
        print(table(("GPUs", *ranks), rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", action="store_true", help="the model's tables alone")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    words = parser.parse_args()
    if not words.table:
        limit = torch.cuda.device_count() if words.device == "cuda" else max(RANKS)
        print_measured({ranks: run(ranks, words.rounds, words.device) for ranks in RANKS if ranks <= limit})
    print_model()


if __name__ == "__main__":
    main()
