"""`dino-ssl finetune distill`: a small network learns from labels and from a large, frozen one."""

import json
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from dino_ssl.config_distill import DistillConfig
from dino_ssl.durable import naming, write_atomically
from dino_ssl.errors import UsageError
from dino_ssl.finetuning.accuracy import Accuracy, open_accuracy
from dino_ssl.finetuning.report import Report, final_report
from dino_ssl.finetuning.start import started
from dino_ssl.finetuning.student import Student
from dino_ssl.finetuning.task import FinetuneRates, Finetuning, one_rank_at_random
from dino_ssl.finetuning.teacher import Logits, Teacher, check_stages, open_teacher
from dino_ssl.finetuning.views import Mixing
from dino_ssl.training.loop import train_to_the_end
from dino_ssl.training.prepare import Input, open_run
from dino_ssl.training.run import Run

SUMMARY = "seeds.json"
"""In the folder of several seeds: scores of every run, their means and deviations."""


def distill(config: DistillConfig) -> Report:
    """Train every seed to its end, each from its newest checkpoint if there is one.

    Raises:
        UsageError: something in the configuration or the input is wrong; nothing was started.
        RunError: the run cannot go on; earlier checkpoints are untouched.
        DivergedError: the loss or the weights are no longer finite.
        Stopped: a signal came, and everything is saved.
    """
    if config.seeds == 1:
        return train_to_the_end(config, prepare, _with_teacher)
    seeds = range(config.seed, config.seed + config.seeds)
    reports = [
        train_to_the_end(_of_seed(config, seed), prepare, _with_teacher if seed == config.seed else final_report)
        for seed in seeds
    ]
    return _together(config.output_dir, dict(zip(seeds, reports, strict=True)))


def _of_seed(config: DistillConfig, seed: int) -> DistillConfig:
    return replace(config, seed=seed, seeds=1, output_dir=config.output_dir / f"seed_{seed}")


def prepare(config: DistillConfig, device: torch.device) -> Run[FinetuneRates]:
    """Open data and teacher and build the student; the folder is left as it is.

    Raises:
        UsageError: the data, the batch, the folder or the weights do not fit the configuration.
    """
    full, backbone = started(config)
    return open_run(full, device, lambda opened: _task(full, backbone, opened), given=config)


def _task(config: DistillConfig, backbone: nn.Module, opened: Input) -> Finetuning:
    num_classes = len(opened.source.classes)
    if opened.source.labels is None or num_classes < 2:
        raise UsageError(f"data={config.data} has no labels to learn; they come from two class folders or more")
    teacher = open_teacher(config, opened.source.classes)
    _check_classes(config, teacher, num_classes)
    student = Student(backbone, num_classes, teacher.dims, config)
    check_stages(
        backbone, config, preactivation=config.distill.student_preactivation, knob="distill.student_preactivation"
    )
    objective = Distillation(student, teacher, config, num_classes, opened.device)
    validator = open_accuracy(config, opened.source, opened.device)
    task = Finetuning(config, opened, objective, validator, opened.source.classes)
    one_rank_at_random(config.seed)
    return task


def _check_classes(config: DistillConfig, teacher: Teacher, num_classes: int) -> None:
    knobs = config.distill
    if (knobs.kd or knobs.dkd) and teacher.num_classes != num_classes:
        has = f"{teacher.num_classes} classes" if teacher.num_classes else "no classifier of these"
        raise UsageError(
            f"distill.kd and distill.dkd compare logits: data={config.data} has {num_classes} classes, "
            f"teacher.weights={config.teacher.weights} {has}; write --distill.kd 0 --distill.dkd 0"
        )


class Distillation:
    """Cross-entropy with labels, and the losses that compare a student with its teacher."""

    def __init__(
        self, student: Student, teacher: Teacher, config: DistillConfig, num_classes: int, device: torch.device
    ) -> None:
        self.network: nn.Module = student
        self.teacher = teacher.to(device).to(memory_format=torch.channels_last)
        self.knobs = config.distill
        self.mixing = Mixing(
            num_classes,
            mixup=config.loss.mixup,
            cutmix=config.loss.cutmix,
            erase=config.crops.erase,
            label_smoothing=config.loss.label_smoothing,
            device=device.type,
        )

    def loss(
        self,
        network: nn.Module,
        images: Float[Tensor, "b c s s"],
        labels: Int64[Tensor, " b"] | None,
        now: FinetuneRates,
    ) -> Float[Tensor, ""]:
        assert labels is not None, "checked when the run was opened"
        mixed, targets = self.mixing(images, labels)
        found = network(mixed, self.teacher(mixed), targets, labels)
        weights = vars(self.knobs)
        rising = warmed_up(now.epoch, self.knobs.warmup_epochs)
        terms = [
            value * (weights[name] * (1.0 if name == "classification" else rising)) for name, value in found.items()
        ]
        return torch.stack(terms).sum()


def warmed_up(epoch: float, warmup_epochs: float) -> float:
    """min(1, whole epochs that are finished / warmup_epochs); 1 without a warm-up."""
    return 1.0 if warmup_epochs == 0 else min(1.0, int(epoch) / warmup_epochs)


def _with_teacher(run: Run[FinetuneRates]) -> Report:
    """The student's, and the teacher's accuracy on the same images."""
    report = final_report(run)
    task = cast(Finetuning, run.task)
    teacher = cast(Distillation, task.objective).teacher
    if not isinstance(task.validator, Accuracy) or teacher.num_classes != len(task.validator.classes):
        return report  # it says nothing of these classes
    top1 = task.validator.measure(Logits(teacher))[task.score]
    text = f"{report.text}\n\nteacher, measured alike: {top1:.2%}" if report.text else ""
    return replace(report, scores={**report.scores, "teacher": top1}, text=text)


def _together(folder: Path, reports: dict[int, Report]) -> Report:
    """Means and deviations over seeds, and the teacher's accuracy; rank 0 writes them."""
    by_name = {
        name: {seed: report.scores[name] for seed, report in reports.items()}
        for name in list(reports.values())[-1].scores
    }
    found: dict[str, Any] = {
        name: {
            "mean": statistics.mean(scores.values()),
            "deviation": statistics.stdev(scores.values()),
            "seeds": scores,
        }
        for name, scores in by_name.items()
    }
    means = {name: value["mean"] for name, value in found.items()}
    teacher = {name: top1 for name, top1 in next(iter(reports.values())).scores.items() if name == "teacher"}
    if not any(report.text for report in reports.values()):  # another rank than the first; they have parted by now
        return Report(folder, {**means, **teacher}, "")
    with naming(folder):
        write_atomically(folder / SUMMARY, (json.dumps({**found, **teacher}, indent=2) + "\n").encode())
    return Report(folder, {**means, **teacher}, _text(folder, found, teacher))


def _text(folder: Path, found: dict[str, Any], teacher: dict[str, float]) -> str:
    rows = [
        f"  {name:<8} {value['mean']:7.2%} ± {value['deviation']:.2%}   "
        + "  ".join(f"seed {seed} {score:.2%}" for seed, score in value["seeds"].items())
        for name, value in found.items()
    ]
    rows += [f"  {name:<8} {top1:7.2%}, measured alike" for name, top1 in teacher.items()]
    return "\n".join(["accuracy: mean ± deviation over seeds, and each", *rows, "", f"numbers  {folder / SUMMARY}"])
