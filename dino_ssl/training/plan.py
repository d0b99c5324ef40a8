"""What every step will use: the schedules of a run, laid out before it starts."""

from dataclasses import dataclass

import numpy as np

from dino_ssl.config import PretrainConfig
from dino_ssl.dino.schedules import Schedule, cosine_schedule, linear_warmup, scaled_learning_rate
from dino_ssl.training.task import Rates


@dataclass(frozen=True)
class DinoRates(Rates):
    """Those of pretraining, too."""

    momentum: float
    teacher_temperature: float
    last_layer_is_frozen: bool


@dataclass(frozen=True)
class Plan:
    """Schedules with one value per step.

    Attributes:
        steps_per_epoch: full global batches in one pass over the data.
    """

    steps_per_epoch: int
    frozen_steps: int
    lr: Schedule
    weight_decay: Schedule
    momentum: Schedule
    teacher_temperature: Schedule

    @property
    def total_steps(self) -> int:
        return len(self.lr)

    def at(self, step: int) -> DinoRates:
        return DinoRates(
            lr=float(self.lr[step]),
            weight_decay=float(self.weight_decay[step]),
            momentum=float(self.momentum[step]),
            teacher_temperature=float(self.teacher_temperature[step]),
            last_layer_is_frozen=step < self.frozen_steps,
        )


def make_plan(config: PretrainConfig, steps_per_epoch: int) -> Plan:
    """Lay out the schedules; warm-ups are given in epochs, values change every step."""
    optim, dino = config.optim, config.dino
    steps = config.steps or config.epochs * steps_per_epoch
    peak = scaled_learning_rate(optim.lr, config.batch_size)
    warmup_steps = round(optim.warmup_epochs * steps_per_epoch)
    return Plan(
        steps_per_epoch=steps_per_epoch,
        frozen_steps=round(optim.freeze_last_layer_epochs * steps_per_epoch),
        lr=cosine_schedule(peak, optim.min_lr, steps=steps, warmup_steps=warmup_steps),
        weight_decay=cosine_schedule(optim.weight_decay, optim.weight_decay_end, steps=steps),
        momentum=cosine_schedule(dino.momentum, dino.momentum_end, steps=steps),
        teacher_temperature=_teacher_temperature(config, steps, steps_per_epoch),
    )


def _teacher_temperature(config: PretrainConfig, steps: int, steps_per_epoch: int) -> Schedule:
    """Per step; once per epoch as the original does with `compat: dino`."""
    dino = config.dino
    start, final = dino.warmup_teacher_temperature, dino.teacher_temperature
    warmup_epochs = dino.warmup_teacher_temperature_epochs
    if config.compat != "dino":
        return linear_warmup(start, final, steps=steps, warmup_steps=round(warmup_epochs * steps_per_epoch))
    epochs = -(-steps // steps_per_epoch)
    by_epoch = linear_warmup(start, final, steps=epochs, warmup_steps=min(epochs, round(warmup_epochs)))
    return np.repeat(by_epoch, steps_per_epoch)[:steps]
