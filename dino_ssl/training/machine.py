"""What a run computes on: device, precision, and the cores that are left to workers."""

import os

import torch

from dino_ssl.config import RunConfig
from dino_ssl.config_kinds import kind_of
from dino_ssl.data import render_fused
from dino_ssl.data.loader import Workers
from dino_ssl.errors import UsageError
from dino_ssl.training import distributed
from dino_ssl.training.ranks import cores_of_this_rank
from dino_ssl.training.trackers import missing_extras

MOST_WORKERS = 16
THREADS_PER_PROCESS = 4


def check_environment(config: RunConfig) -> torch.device:
    """This rank's device.

    Raises:
        UsageError: every mistake of the configuration, and a device that is not there.
    """
    problems = kind_of(config).check(config)
    kind = "cpu"
    try:
        kind = distributed.device_kind(config.device)
    except UsageError as error:
        problems += error.problems
    if config.precision == "fp16" and kind != "cuda":
        problems.append("precision=fp16 needs a GPU; write --precision bf16 or --precision fp32")
    problems += missing_extras(tensorboard=config.log.tensorboard, wandb=config.log.wandb)
    if problems:
        raise UsageError(*problems)
    return distributed.local_device(kind)


def workers(config: RunConfig, device: torch.device) -> Workers:
    """Who makes the batches of this rank: what the config says, or all its cores but one."""
    knobs = config.loader
    num = knobs.num_workers if knobs.num_workers is not None else min(MOST_WORKERS, cores_of_this_rank() - 1)
    if config.crops.renderer == "pil" or (config.crops.renderer == "fused" and render_fused.IMPLEMENTATION == "pil"):
        # PIL keeps the GIL.
        return Workers(num if knobs.num_processes is None else knobs.num_processes, 0)
    default = num // THREADS_PER_PROCESS if device.type == "cuda" else 0
    processes = default if knobs.num_processes is None else knobs.num_processes
    return Workers(processes, -(-num // max(1, processes)))


def share_cores(config: RunConfig, device: torch.device) -> None:
    """On the CPU, leave the workers their cores.

    OpenMP's threads spin while they wait for each other, so that with more threads than free cores the steps of a
    small network become many times slower. `OMP_NUM_THREADS` (which torchrun sets) is left alone.
    """
    if device.type == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, cores_of_this_rank() - workers(config, device).total))


def autocast_dtype(config: RunConfig, device: torch.device) -> torch.dtype | None:
    """What autocast computes in; None for fp32."""
    match config.precision:
        case "fp32":
            return None
        case "bf16":
            return torch.bfloat16
        case "fp16":
            return torch.float16
        case "auto":
            has_bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
            return torch.bfloat16 if has_bf16 else None
