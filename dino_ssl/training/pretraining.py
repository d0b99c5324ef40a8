"""Pretraining with DINO: what the loop trains, measures and saves there."""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dino_ssl.config import PretrainConfig
from dino_ssl.config_checks import check_schedule
from dino_ssl.data.loader import Batch
from dino_ssl.data.transfer import normalize
from dino_ssl.errors import UsageError
from dino_ssl.training import distributed, evaluation_jobs, sharding
from dino_ssl.training.build import backbone_of, build_crops, build_method
from dino_ssl.training.final_report import Report, final_report
from dino_ssl.training.frozen_teacher import PRETRAINED, frozen_teacher
from dino_ssl.training.journal import Journal
from dino_ssl.training.loop import train_to_the_end
from dino_ssl.training.online_knn import OnlineKnn, open_knn
from dino_ssl.training.optim import (
    build_optimizer,
    clip_gradients,
    drop_last_layer_gradients,
    parameter_groups,
    set_rates,
)
from dino_ssl.training.plan import DinoRates, make_plan
from dino_ssl.training.prepare import Input, open_run
from dino_ssl.training.run import Run
from dino_ssl.training.sentinel import Sentinel
from dino_ssl.training.task import Moment


def pretrain(config: PretrainConfig) -> Report:
    """Pretrain to the end of the plan, from the newest checkpoint in `config.output_dir` if there is one.

    Raises:
        UsageError: something in the configuration or the input is wrong; nothing was started.
        RunError: the run cannot go on; earlier checkpoints are untouched.
        DivergedError: the loss or the weights are no longer finite.
        CollapsedError: the networks have stopped to learn, and `collapse.on_collapse` wants more than a warning.
        Stopped: a signal came, and everything is saved.
    """
    return train_to_the_end(config, prepare, _report)


def prepare(config: PretrainConfig, device: torch.device) -> Run[DinoRates]:
    """Open the data and build the method; the folder is left as it is.

    Raises:
        UsageError: the data, the batch, the folder or the network do not fit the configuration.
    """
    return open_run(config, device, lambda opened: Pretraining(config, opened))


def _report(run: Run[DinoRates]) -> Report:
    assert isinstance(run.task, Pretraining)
    return final_report(run.task.config, run, run.task.teacher_backbone(), run.task.knn)


class Pretraining:
    """A student that learns from its moving average (see `dino.method`).

    Raises:
        UsageError: the schedules, the k-NN or the crops do not fit the data or the network.
    """

    format = PRETRAINED
    score = "knn_top1"
    advice = (
        "start anew in another --output-dir with a lower --optim.lr or --dino.teacher-temperature, "
        "a longer --optim.warmup-epochs, or --precision fp32"
    )

    def __init__(self, config: PretrainConfig, opened: Input) -> None:
        if problems := check_schedule(config, opened.steps_per_epoch):
            raise UsageError(*problems)
        self.config = config
        self.plan = make_plan(config, opened.steps_per_epoch)
        self.knn: OnlineKnn | None = open_knn(config, opened.source, opened.device)
        frozen = frozen_teacher(config)
        self.method = build_method(config, opened.device, frozen.network if frozen else None)
        if frozen:
            self.method.center.load_state_dict(frozen.center)
        self.optimizer = build_optimizer(config.optim.name, parameter_groups(self.method.student))
        self.network: nn.Module = self.method.student
        self.parallel: nn.Module = self.method.parallel_student
        self.crops = build_crops(config)
        self.sentinel = Sentinel(
            config, self.method, total_steps=self.total_steps,
            warmup_steps=round(config.optim.warmup_epochs * self.steps_per_epoch),
        )  # fmt: skip
        # Ranks differ in their drop path masks; in the original they are alike.
        torch.manual_seed(config.seed + (0 if config.compat == "dino" else distributed.rank()))

    @property
    def steps_per_epoch(self) -> int:
        return self.plan.steps_per_epoch

    @property
    def total_steps(self) -> int:
        return self.plan.total_steps

    def teacher_backbone(self) -> nn.Module:
        """The teacher's backbone, whole on every rank; a collective."""
        return backbone_of(self.config, self.method.teacher)

    def begin_step(self, step: int) -> DinoRates:
        now = self.plan.at(step)
        now = replace(now, lr=now.lr * self.sentinel.rate)
        set_rates(self.optimizer, lr=now.lr, weight_decay=now.weight_decay)
        return now

    def loss(self, batch: Batch, now: DinoRates) -> Float[Tensor, ""]:
        return self.method.loss(self.normalized(batch), now.teacher_temperature)

    def normalized(self, batch: Batch) -> list[Float[Tensor, "_v b c _s _s"]]:
        """Bytes to floats."""
        crops = self.config.crops
        return [normalize(view, crops.mean, crops.std) for view in batch.views]

    def before_optimizer(self, now: DinoRates) -> None:
        per_tensor = self.config.compat == "dino"
        clip_gradients(self.network.parameters(), self.config.optim.clip_grad, per_tensor=per_tensor)
        if now.last_layer_is_frozen:
            drop_last_layer_gradients(self.network)

    def after_optimizer(self, now: DinoRates, *, stepped: bool) -> None:
        """The centre moves by what it has seen; the teacher with the student only, unlike in the original."""
        self.method.update_center()
        if stepped or self.config.compat == "dino":
            self.method.update_teacher(now.momentum)

    def weights(self) -> dict[str, Mapping[str, Any]]:
        """Students of the original carry `module.`."""
        student = self.method.student.state_dict()
        return {
            "student": {f"module.{name}": value for name, value in student.items()},
            "teacher": self.method.teacher.state_dict(),
        }

    def state(self) -> dict[str, Any]:
        """Under the names of the original."""
        model = self.config.model
        flags = {"arch": model.name, "patch_size": model.patch_size, "out_dim": self.config.head.prototypes}
        center, collapse = self.method.center.state_dict(), self.sentinel.state_dict()
        return {"args": flags, "dino_loss": center, "collapse": collapse}

    def state_of_rank(self) -> dict[str, Any]:
        return self.method.observations.state_dict()

    def load(self, state: Mapping[str, Any], of_rank: Mapping[str, Any] | None) -> None:
        student = {name.removeprefix("module."): value for name, value in state["student"].items()}
        sharding.load_module(self.method.student, student)
        sharding.load_module(self.method.teacher, state["teacher"])
        self.method.center.load_state_dict(state["dino_loss"])
        if "collapse" in state:
            self.sentinel.load_state_dict(state["collapse"])
        else:  # a checkpoint of an older version
            self.method.first_teacher = math.prod(self.plan.momentum[: state["step"]].tolist())
        if of_rank is not None:
            self.method.observations.load_state_dict(of_rank)

    def end_epoch(self, moment: Moment, journal: Journal) -> None:
        """k-NN of the teacher if it is due, and what evaluation jobs have found meanwhile."""
        if self.knn is not None and moment.is_epoch_end and self.knn.is_due(moment.epoch):
            with journal.paused():
                found = self.knn.measure(self.teacher_backbone(), max_images=self.config.knn.max_images)
            journal.scored(moment.step, moment.epoch, found.top1["teacher"])
        if self.config.evaluate.every_epochs and distributed.is_main():
            for step, numbers in evaluation_jobs.collect(self.config.output_dir):
                journal.evaluated(moment.step, moment.epoch, step, numbers)

    def wants_checkpoint(self, moment: Moment) -> bool:
        """Whether the checkpoint of this step is evaluated by a job of its own."""
        ends = moment.step > 0 and (moment.is_over or moment.is_epoch_end)
        return ends and evaluation_jobs.is_due(self.config, moment.epoch, is_over=moment.is_over)

    def after_save(self, moment: Moment, checkpoint: Path) -> None:
        """Start that job, if it was not started before."""
        if self.wants_checkpoint(moment) and distributed.is_main():
            evaluation_jobs.send(self.config, checkpoint, moment.step)

    def when_over(self) -> None:
        """A job that is done later takes its results in itself."""
        if distributed.is_main() and self.config.evaluate.every_epochs:
            evaluation_jobs.collect_afterwards(self.config.output_dir)
