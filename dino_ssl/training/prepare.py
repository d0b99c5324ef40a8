"""Everything that is checked, opened and built before the first step."""

import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from dino_ssl.config import RunConfig
from dino_ssl.config_kinds import kind_of
from dino_ssl.config_yaml import differences, load_config, write_config
from dino_ssl.data import render_fused
from dino_ssl.data.decoding import BrokenImage
from dino_ssl.data.order import Shares, share_out
from dino_ssl.data.sources import Source, load, open_source, problems_of
from dino_ssl.errors import UsageError
from dino_ssl.training import distributed
from dino_ssl.training.broken_images import BrokenImages
from dino_ssl.training.checkpoint import CheckpointStore
from dino_ssl.training.journal import Journal
from dino_ssl.training.machine import autocast_dtype
from dino_ssl.training.provenance import describe_start, made_with
from dino_ssl.training.ranks import placement, seconds_to_wait
from dino_ssl.training.run import Run
from dino_ssl.training.task import R, Task

# Knobs that may change when a run resumes: they do not touch the weights.
FREE_TO_CHANGE = (
    "data_root",
    "output_dir",
    "device",
    "micro_batch_size",
    "loader.",
    "parallel.sharding",
    "parallel.bucket_mb",
    "knn.",
    "collapse.",
    "checkpoint.",
    "log.",
)
PROBED_IMAGES = 32
logger = logging.getLogger("dino_ssl")


@dataclass(frozen=True)
class Input:
    """What a task is built for."""

    source: Source
    steps_per_epoch: int
    device: torch.device


def open_run(
    config: RunConfig, device: torch.device, build: Callable[[Input], Task[R]], *, given: RunConfig | None = None
) -> Run[R]:
    """Open the data, then build the task for it; the folder is left as it is.

    Args:
        given: the configuration before pretrained weights decided what it left open.
    Raises:
        UsageError: the data, the batch, the folder or the network do not fit the configuration.
    """
    # Ranks have just met, and would all open the images at once.
    time.sleep(seconds_to_wait(placement()))
    source, shares, steps_per_epoch = open_input(config, ranks=distributed.world_size(), given=given)
    task = build(Input(source, steps_per_epoch, device))
    _check_batch_norm(config, task.network, shares)
    return Run(
        config=config,
        source=source,
        shares=shares,
        device=device,
        autocast_dtype=autocast_dtype(config, device),
        task=task,
        scaler=torch.amp.GradScaler(device.type, enabled=config.precision == "fp16"),
        store=_open_store(config),
        journal=_open_journal(config, task.total_steps, task.score),
        broken=BrokenImages(_list_of_broken(config), len(source), config.loader.max_broken),
        made_with=made_with(),
    )


def begin(run: Run[R]) -> None:
    """Resume, and write into the folder what runs there, last: an error before leaves it free for the next command.

    Raises:
        RunError: the folder has checkpoints, but none that this run can continue.
    """
    run.resume()
    if distributed.is_main():
        _claim_folder(run)
        _list_problems(run.config, run.source)
        _warn_of_slow_crops(run.config)
    distributed.barrier()


def open_input(config: RunConfig, *, ranks: int, given: RunConfig | None = None) -> tuple[Source, Shares, int]:
    """The data, the micro-batches of each of `ranks`, and the steps of an epoch; nothing is written.

    Raises:
        UsageError: the data, the batch or the folder do not fit the configuration.
    """
    source = open_source(config.data, config.data_root)
    _check_readable(source, config.crops.channels)
    _check_apart(config, source)
    shares, steps_per_epoch = _share_out(config, len(source), ranks)
    _check_folder(config, given or config)
    return source, shares, steps_per_epoch


def _check_readable(source: Source, channels: int) -> None:
    """Try images spread over the data set until one can be read."""
    reasons = []
    for index in range(0, len(source), max(1, len(source) // PROBED_IMAGES)):
        try:
            load(source, index, channels=channels)
        except BrokenImage as error:
            reasons.append(f"{source.describe(index)}: {error.reason}")
        else:
            return
    raise UsageError(
        f"data={source.name}: none of the {len(reasons)} images tried could be read; write --data with a folder "
        f"of images. The first: {'; '.join(reasons[:3])}"
    )


def _share_out(config: RunConfig, num_images: int, ranks: int) -> tuple[Shares, int]:
    """Micro-batches, and steps in an epoch."""
    if config.batch_size > num_images:
        raise UsageError(
            f"batch_size={config.batch_size} is larger than the data set ({num_images} images in {config.data}); "
            f"write --batch-size {num_images} or less"
        )
    try:
        shares = share_out(config.batch_size, ranks, config.micro_batch_size)
    except ValueError as error:
        raise UsageError(str(error)) from error
    return shares, num_images // config.batch_size


def _check_apart(config: RunConfig, source: Source) -> None:
    """The pictures that a run draws must not become images of its own data."""
    folder = Path(source.name)  # of other sources the name is no folder
    if folder.is_dir() and config.output_dir.resolve().is_relative_to(folder.resolve()):
        raise UsageError(
            f"output_dir={config.output_dir} lies in the folder of images, data={config.data}, where the run's own "
            "pictures would be taken for data; write --output-dir with a folder outside"
        )


def _check_batch_norm(config: RunConfig, network: nn.Module, shares: Shares) -> None:
    """Batch norm needs company; where it is synchronised over ranks, one image on each will do."""
    alone = any(isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) for module in network.modules())
    if alone and shares.micro_batch == 1:
        raise UsageError(
            f"batch_size={config.batch_size} is split into micro-batches of one image, which leave the network's "
            "batch norm nothing to normalise over; write a --batch-size and a --micro-batch-size that make "
            "micro-batches of 2 or more"
        )


def _check_folder(config: RunConfig, given: RunConfig) -> None:
    """Compare the configuration with that of the run in the folder, if there is one.

    A run that was submitted and has not begun has the configuration as it was given.
    """
    path = config.output_dir / "config.yaml"
    if not path.exists():
        return
    before = load_config(path, kind_of(config))
    changed, changed_as_given = (
        [line for line in differences(before, now) if not line.startswith(FREE_TO_CHANGE)] for now in (config, given)
    )
    if changed and changed_as_given:
        raise UsageError(
            f"output_dir={config.output_dir} holds another run; write --output-dir for a new folder, or give "
            f"these their old values to resume it: {'; '.join(changed)}"
        )


def _claim_folder(run: Run[R]) -> None:
    """Write the resolved configuration and what it runs on."""
    config = run.config
    told = describe_start(run.source, run.device, config.seed, run.made_with)
    try:
        config.output_dir.mkdir(parents=True, exist_ok=True)
        write_config(config, config.output_dir / "config.yaml")
        (config.output_dir / "run.json").write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise UsageError(
            f"output_dir={config.output_dir} cannot be written ({error.strerror}); "
            "write --output-dir with another folder"
        ) from error


def _list_problems(config: RunConfig, source: Source) -> None:
    """Say that the source is not whole, and keep the list."""
    problems = problems_of(source)
    if not problems:
        return
    path = config.output_dir / "data_problems.txt"
    path.write_text("".join(f"{problem}\n" for problem in problems), encoding="utf-8")
    logger.warning("data=%s: %d problems, the first: %s; all in %s", config.data, len(problems), problems[0], path)


def _warn_of_slow_crops(config: RunConfig) -> None:
    if config.crops.renderer == "fused" and render_fused.IMPLEMENTATION != "compiled":
        times = {"opencv": "two times", "pil": "eight times"}[render_fused.IMPLEMENTATION]
        logger.warning(
            "crops.renderer=fused: its kernel was not compiled, and %s needs about %s as much time; install dino-ssl "
            "again where there is a C++ compiler, or with the extra opencv",
            render_fused.IMPLEMENTATION, times,
        )  # fmt: skip


def _open_store(config: RunConfig) -> CheckpointStore:
    knobs = config.checkpoint
    return CheckpointStore(config.output_dir / "checkpoints", keep_last=knobs.keep_last, keep_every=knobs.keep_every)


def _open_journal(config: RunConfig, total_steps: int, score: str) -> Journal:
    return Journal(
        config.output_dir,
        every_steps=config.log.every_steps,
        total_steps=total_steps,
        images_per_step=config.batch_size,
        is_main=distributed.is_main(),
        score=score,
        tensorboard=config.log.tensorboard,
        wandb=config.log.wandb,
    )


def _list_of_broken(config: RunConfig) -> Path:
    """One list per rank, so that no two processes write one file."""
    suffix = "" if distributed.is_main() else f".rank{distributed.rank()}"
    return config.output_dir / f"broken_images{suffix}.txt"
