"""A fine-tuning as the loop sees it, whatever its objective: classification, distillation, faces."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from dino_ssl.config_finetune import FinetuneConfig
from dino_ssl.data.crops import MultiCrop, ViewRecipe
from dino_ssl.data.loader import Batch
from dino_ssl.data.transfer import normalize
from dino_ssl.dino.schedules import scaled_learning_rate
from dino_ssl.durable import also_name
from dino_ssl.errors import UsageError
from dino_ssl.finetuning.layers import layerwise_groups
from dino_ssl.finetuning.schedule import rates_by_step
from dino_ssl.finetuning.views import shifted
from dino_ssl.training import distributed, sharding
from dino_ssl.training.build import synchronize_batch_norm
from dino_ssl.training.journal import Journal
from dino_ssl.training.optim import build_optimizer, clip_gradients
from dino_ssl.training.prepare import Input
from dino_ssl.training.task import Moment, Rates

BEST = "best.pth"
"""Beside `checkpoint.pth`, which is the last one: the checkpoint with the highest score."""
M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class FinetuneRates(Rates):
    """Those of every run, and how far it is: finished epochs, with their fraction."""

    epoch: float


@runtime_checkable
class Objective(Protocol):
    """What is minimised.

    Attributes:
        network: everything that is trained; the backbone that will be used later is its `backbone`. Under `head` is
            what reads the backbone in use; other parts serve the training alone.
    """

    network: nn.Module

    def loss(
        self,
        network: nn.Module,
        images: Float[Tensor, "b c s s"],
        labels: Int64[Tensor, " b"] | None,
        now: FinetuneRates,
    ) -> Float[Tensor, ""]:
        """Mean loss of a micro-batch.

        Args:
            network: `self.network` as ranks share it; call this one.
            images: normalised.
            labels: None where the data has none.
        """


@runtime_checkable
class Validator(Protocol):
    """What is measured on images that are not trained on.

    Attributes:
        score: name of the number in [0, 1] that decides which checkpoint is the best.
    """

    score: str

    def measure(self, network: nn.Module) -> dict[str, float]:
        """Numbers by name, `score` among them; all ranks share the work and know the result."""


@dataclass
class Best:
    """The highest score so far; step 0 stands for none."""

    score: float = -1.0
    step: int = 0
    epoch: int = 0


class Finetuning:
    """An objective, optimised.

    Args:
        classes: in the order of the network's logits, if its `head` is a classifier; checkpoints name them.
    Raises:
        UsageError: the schedule does not fit the number of steps.
    """

    format = "dino-ssl/finetune/1"
    sentinel = None
    advice = "start anew in another --output-dir with a lower --optim.lr, a longer warm-up, or --precision fp32"

    def __init__(
        self,
        config: FinetuneConfig,
        opened: Input,
        objective: Objective,
        validator: Validator | None,
        classes: Sequence[str] = (),
    ) -> None:
        self.config = config
        self.device = opened.device
        self.objective = objective
        self.validator = validator
        self.score = "score" if validator is None else validator.score
        self.best = self.newest = Best()
        self.classes = list(classes)
        self.labels = None if opened.source.labels is None else torch.from_numpy(opened.source.labels).long()
        objective.network = self.network = synchronize_batch_norm(objective.network, opened.device).to(opened.device)
        self.network.to(memory_format=torch.channels_last)
        self.parallel: nn.Module = distributed.data_parallel(self.network, opened.device, config.parallel)
        groups = layerwise_groups(self.network, config.optim.layer_decay)
        self.optimizer = build_optimizer(config.optim.name, groups)
        self.crops = one_view(config)
        self._steps_per_epoch = opened.steps_per_epoch
        self.rates = _rates(config, opened.steps_per_epoch)

    @property
    def steps_per_epoch(self) -> int:
        return self._steps_per_epoch

    @property
    def total_steps(self) -> int:
        return len(self.rates)

    def begin_step(self, step: int) -> FinetuneRates:
        now = FinetuneRates(float(self.rates[step]), self.config.optim.weight_decay, step / self.steps_per_epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = now.lr * group["lr_scale"]
            group["weight_decay"] = now.weight_decay * group["is_decayed"]
        return now

    def loss(self, batch: Batch, now: FinetuneRates) -> Float[Tensor, ""]:
        crops = self.config.crops
        images = shifted(normalize(batch.views[0][0], crops.mean, crops.std), crops.random_shift)
        # Convolutions are a third faster so, on the CPU too.
        images = images.contiguous(memory_format=torch.channels_last)
        labels = None if self.labels is None else self.labels[batch.indices].to(self.device)
        return self.objective.loss(self.parallel, images, labels, now)

    def before_optimizer(self, now: FinetuneRates) -> None:
        clip_gradients(self.network.parameters(), self.config.optim.clip_grad, per_tensor=False)

    def after_optimizer(self, now: FinetuneRates, *, stepped: bool) -> None:
        """Nothing follows the weights."""

    def weights(self) -> dict[str, Mapping[str, Any]]:
        return {"model": self.network.state_dict()}

    def state(self) -> dict[str, Any]:
        return {"best": vars(self.best), "classes": self.classes}

    def state_of_rank(self) -> dict[str, Any]:
        return {}

    def load(self, state: Mapping[str, Any], of_rank: Mapping[str, Any] | None) -> None:
        sharding.load_module(self.network, state["model"])
        self.best = Best(**state["best"])

    def end_epoch(self, moment: Moment, journal: Journal) -> None:
        """Measure if it is due, and remember the best; the first of equal ones."""
        every = self.config.validation.every_epochs
        if self.validator is None or not every or (moment.epoch % every and not moment.is_over):
            return
        with journal.paused():
            found = self.validator.measure(self.network)
        score = found.pop(self.score)
        self.newest = Best(score, moment.step, moment.epoch)
        journal.scored(moment.step, moment.epoch, score, {f"eval/{name}": value for name, value in found.items()})
        if score > self.best.score:
            self.best = self.newest

    def wants_checkpoint(self, moment: Moment) -> bool:
        """The best one must be there."""
        return self.best.step == moment.step > 0

    def after_save(self, moment: Moment, checkpoint: Path) -> None:
        if self.best.step == moment.step > 0 and distributed.is_main():
            also_name(checkpoint, checkpoint.with_name(BEST))

    def when_over(self) -> None:
        """Nothing waits for the end."""


def one_rank_at_random(seed: int) -> None:
    """Set every global random state that a step draws from, to other numbers on each rank."""
    torch.manual_seed(seed + distributed.rank())
    random.seed(seed + distributed.rank())
    np.random.seed(seed + distributed.rank())


def one_view(config: FinetuneConfig) -> MultiCrop:
    """The view of an image, as the configuration wants it."""
    crops = config.crops
    recipe = ViewRecipe(crops.size, crops.scale, crops.flip, crops.color_jitter, grayscale=0.0, blur=0.0, solarize=0.0)
    return MultiCrop([recipe])


def _rates(config: FinetuneConfig, steps_per_epoch: int) -> Float[Any, " steps"]:
    optim = config.optim
    steps = config.steps or config.epochs * steps_per_epoch
    warmup = round(optim.warmup_epochs * steps_per_epoch)
    if warmup > steps:
        raise UsageError(
            f"optim.warmup_epochs={optim.warmup_epochs:g} is longer than the run of {steps} steps "
            f"({steps / steps_per_epoch:.3g} epochs); write at most that"
        )
    return rates_by_step(
        optim.schedule,
        scaled_learning_rate(optim.lr, config.batch_size),
        optim.min_lr,
        steps=steps,
        warmup_steps=warmup,
        decay_steps=[round(epoch * steps_per_epoch) for epoch in optim.decay_epochs],
    )
