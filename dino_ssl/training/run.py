"""A run: its parts, its place in the data, and how both go into a checkpoint and come back."""

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Generic

import torch

from dino_ssl import __version__
from dino_ssl.config import Renderer, RunConfig
from dino_ssl.config_yaml import to_dict
from dino_ssl.data import render_fused, render_pil
from dino_ssl.data.loader import Batch, CropDataset, Render, Workers, batches
from dino_ssl.data.order import BatchOrder, Shares
from dino_ssl.data.sources import Source
from dino_ssl.data.transfer import copied_ahead
from dino_ssl.durable import also_name
from dino_ssl.errors import RunError
from dino_ssl.training import distributed, sharding
from dino_ssl.training.broken_images import BrokenImages
from dino_ssl.training.checkpoint import NEWEST, CheckpointStore, capture_rng, restore_rng
from dino_ssl.training.journal import Journal
from dino_ssl.training.signals import ctrl_c_waits
from dino_ssl.training.task import Moment, R, Task

# None: whole images travel, and the device renders.
RENDERERS: dict[Renderer, Render | None] = {"fused": render_fused.render, "pil": render_pil.render, "device": None}
logger = logging.getLogger("dino_ssl")


@dataclass
class Run(Generic[R]):
    """Everything that a step touches; `step` counts finished optimizer steps."""

    config: RunConfig
    source: Source
    shares: Shares
    device: torch.device
    autocast_dtype: torch.dtype | None
    task: Task[R]
    scaler: torch.amp.GradScaler
    store: CheckpointStore
    journal: Journal
    broken: BrokenImages
    made_with: dict[str, Any]
    """Code, packages and hosts, see `provenance`; empty but on rank 0."""
    step: int = 0
    saved_step: int | None = None
    """Step of the newest checkpoint, whoever wrote it."""
    seconds_of_save: float | None = None
    """What the newest checkpoint of this process took."""

    @cached_property
    def fingerprint(self) -> str:
        """Of the data; every checkpoint holds it, and reading the names of a large folder takes seconds."""
        return self.source.fingerprint()

    @property
    def epoch(self) -> int:
        """Finished epochs."""
        return self.step // self.task.steps_per_epoch

    @property
    def folder(self) -> Path:
        return self.config.output_dir

    def is_over(self) -> bool:
        return self.step >= self.task.total_steps

    def moment(self) -> Moment:
        return Moment(self.step, self.epoch, self.step % self.task.steps_per_epoch == 0, self.is_over())

    def micro_batches(self, workers: Workers) -> Iterator[Batch]:
        """This rank's micro-batches, on the device, from the present step to the end of the run."""
        order = BatchOrder(
            len(self.source),
            seed=self.config.seed,
            shares=self.shares,
            rank=distributed.rank(),
            start_step=self.step,
            total_steps=self.task.total_steps,
            shard_sizes=self.source.shard_sizes,
            buffer=self.config.shuffle_buffer,
        )
        crops = self.task.crops
        dataset = CropDataset(
            self.source,
            crops,
            seed=self.config.seed,
            channels=self.config.crops.channels,
            render=RENDERERS[self.config.crops.renderer],
            enough_pixels=float("inf") if self.config.crops.renderer == "pil" else crops.enough_pixels,
        )
        made = batches(dataset, order, workers, pin_memory=self.device.type == "cuda")
        return copied_ahead(made, crops, self.device)

    def save(self) -> None:
        """Write a checkpoint; a collective, of which rank 0 writes the file."""
        began = time.monotonic()
        ranks = distributed.gather({"rng": capture_rng(), "task": self.task.state_of_rank()})
        weights = sharding.whole({**self.task.weights(), "optimizer": self.task.optimizer.state_dict()})
        if distributed.is_main():
            with ctrl_c_waits():
                sentinel = self.task.sentinel
                is_sound = sentinel is None or sentinel.sees_nothing
                self.store.save({**weights, **self._state(ranks)}, self.step, is_sound=is_sound)
        distributed.barrier()
        self.saved_step, self.seconds_of_save = self.step, time.monotonic() - began

    def _state(self, ranks: list[dict[str, Any]]) -> dict[str, Any]:
        """The task's own, then what exact resuming needs."""
        return {
            "epoch": self.epoch,
            **self.task.state(),
            "fp16_scaler": self.scaler.state_dict(),
            "format": self.task.format,
            "version": __version__,
            "made_with": self.made_with,
            "step": self.step,
            "config": to_dict(self.config),
            "data": {"fingerprint": self.fingerprint, "num_images": len(self.source)},
            "rng": [rank["rng"] for rank in ranks],
            "task_of_ranks": [rank["task"] for rank in ranks],
            "journal": self.journal.state_dict(),
        }

    def resume(self) -> None:
        """Continue from the newest good checkpoint in the run's folder, if there is one."""
        found = self.store.load_latest()
        if found is None:
            return
        state, path = found
        self._check_fits(state, path)
        self._take(state, path)
        logger.info("resumed at step %d of %d from %s", self.step, self.task.total_steps, path)

    def rewind(self) -> bool:
        """Go back to the newest checkpoint that was saved as sound, and delete those after it; False without one.

        A collective. The lines of the journal after it are dropped as well.
        """
        step = distributed.broadcast(self.store.sound_step)
        if step is None:
            return False
        self._take(*self.store.load(step))
        distributed.barrier()
        if distributed.is_main():
            self.store.delete_after(step)
        return True

    def _take(self, state: dict[str, Any], path: Path) -> None:
        # Checkpoints of older versions have none.
        of_ranks = state.get("task_of_ranks", [])
        as_many = len(of_ranks) == distributed.world_size()
        self.task.load(state, of_ranks[distributed.rank()] if as_many else None)
        sharding.load_optimizer(self.task.optimizer, state["optimizer"])
        self.scaler.load_state_dict(state["fp16_scaler"])
        self.step = self.saved_step = state["step"]
        self._restore_rng(state["rng"])
        self.journal.load_state_dict(state["journal"])
        self.journal.resume_at(self.step, self.epoch)
        if distributed.is_main():
            # A kill between a checkpoint and its second name, or damage, leaves that name to another.
            also_name(path, self.store.folder / NEWEST)

    def _check_fits(self, state: dict[str, Any], path: Path) -> None:
        if state.get("format") != self.task.format:
            raise RunError(
                f"{path} is not a checkpoint of this tool's, or of another kind of run; move it out of {self.folder}"
            )
        expected, stored = ({
            f"{network}: {name}": value.shape
            for network in self.task.weights() for name, value in holder[network].items()
        } for holder in (self.task.weights(), state))  # fmt: skip
        odd = sorted(name for name in expected.keys() | stored.keys() if expected.get(name) != stored.get(name))
        if odd:
            raise RunError(
                f"{path} holds another architecture ({state['config']['model']['name']}): {len(odd)} tensors "
                f"differ, first {odd[0]}; write --output-dir for a new folder, or the model and head that "
                "the folder was made with"
            )
        if state["data"]["fingerprint"] != self.fingerprint:
            raise RunError(
                f"data={self.config.data} is not what {path} was trained on ({state['data']['num_images']} images "
                f"then, {len(self.source)} now, or other names); restore them, or write --output-dir for a new run"
            )

    def _restore_rng(self, rng: list[dict[str, Any]]) -> None:
        if len(rng) == distributed.world_size():
            restore_rng(rng[distributed.rank()])
            return
        logger.warning(
            "resuming on %d ranks what ran on %d: the global batch stays %d; drop path draws anew",
            distributed.world_size(), len(rng), self.config.batch_size,
        )  # fmt: skip
        torch.manual_seed(self.config.seed + (self.step << 16) + distributed.rank())
