"""Distillation from the file of the teacher to the checkpoints of the students, on digits."""

import json
import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from dino_ssl.config_flags import configure
from dino_ssl.config_kinds import CLASSIFY, DISTILL
from dino_ssl.config_yaml import from_dict
from dino_ssl.errors import UsageError
from dino_ssl.finetuning.classify import classify
from dino_ssl.finetuning.distill import Distillation, _together, distill, prepare, warmed_up
from dino_ssl.finetuning.distillation import soft_target_loss
from dino_ssl.finetuning.knowledge_review import levels
from dino_ssl.finetuning.report import Report
from dino_ssl.finetuning.student import Student
from dino_ssl.finetuning.task import FinetuneRates
from dino_ssl.finetuning.teacher import Teacher, _in_order, open_teacher
from dino_ssl.models.backbone import build_backbone
from dino_ssl.models.cifar_resnet import CifarResNet
from dino_ssl.models.cmt import CMT_SIZES, CMTSize
from dino_ssl.models.weights import load
from dino_ssl.training.loop import train
from dino_ssl.training.prepare import begin
from tests.training.small_runs import a_config, on_ranks, run_here, write_digits

RECIPES = Path(__file__).parents[2] / "launch" / "recipes" / "distill"
PIXELS = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.25, 0.3)}

DIGITS = tuple("0123456789")


def tree(folder, **changes):
    found = {
        "data": str(folder / "images"),
        "output_dir": str(folder / "run"),
        "steps": 5,
        "batch_size": 16,
        "device": "cpu",
        "precision": "fp32",
        "crops": {"size": 16, "scale": (1.0, 1.0), "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)},
        "model": {"name": "resnet20", "drop_path": 0.0},
        "optim": {"name": "sgd", "lr": 0.5, "warmup_epochs": 0.0},
        "loader": {"num_workers": 0},
        "validation": {"test": str(folder / "test"), "center_crop": 1.0},
        "teacher": {"weights": str(folder / "teacher.npz")},
        "distill": {"review": 0.6, "kd": 0.5},
        "log": {"every_steps": 1},
    }
    for name, value in changes.items():
        found[name] = {**found.get(name, {}), **value} if isinstance(value, dict) else value
    return found


def a_distillation(folder, **changes):
    """A run on digits with a teacher that nobody trained."""
    for name, first in (("images", 0), ("test", 100)):
        if not (folder / name).exists():
            write_digits(folder / name, first=first)
    if not (folder / "teacher.npz").exists():
        save_teacher(folder / "teacher.npz")
    return from_dict(tree(folder, **changes), DISTILL)


def save_teacher(path, *, num_classes=10):
    torch.manual_seed(5)
    network = CifarResNet("resnet8x4")
    classifier = {"linear.weight": torch.randn(num_classes, 256), "linear.bias": torch.randn(num_classes)}
    np.savez(path, **{key: value.numpy() for key, value in (network.state_dict() | classifier).items()})


def checkpoint(folder):
    return torch.load(folder / "checkpoints" / "checkpoint.pth", weights_only=True)


@pytest.mark.parametrize(("epoch", "expected"), [(0.0, 0), (0.9, 0), (1.0, 0.05), (10.5, 0.5), (20.0, 1), (99.0, 1)])
def test_the_warm_up_counts_finished_epochs_from_zero(epoch, expected):
    assert warmed_up(epoch, 20.0) == expected and warmed_up(epoch, 0.0) == 1


@pytest.mark.parametrize(("warmup", "rising"), [(0.0, 1.0), (4.0, 0.5)])
def test_the_total_is_cross_entropy_and_the_warmed_up_weights_times_the_losses(tmp_path, warmup, rising):
    config = a_distillation(
        tmp_path, distill={"classification": 0.3, "kd": 0.7, "review": 0.6, "temperature": 3.0, "warmup_epochs": warmup}
    )
    teacher = open_teacher(config, DIGITS)
    student = Student(CifarResNet("resnet20"), 10, teacher.dims, config)
    objective = Distillation(student, teacher, config, 10, torch.device("cpu"))
    images, labels = torch.rand(4, 3, 16, 16), torch.tensor([3, 1, 4, 1])
    found = objective.loss(student, images, labels, FinetuneRates(0.1, 0.0, epoch=2.5))
    with torch.no_grad():
        pooled, stages = teacher.backbone.pooled_and_preactivations(images)
        ours = student.backbone.pooled_and_stages(images)
        logits = student.head(ours[0])
        soft = soft_target_loss(logits, teacher.head(pooled), 3.0)
        review = student.review(levels(*ours), levels(pooled, stages))
    expected = 0.3 * F.cross_entropy(logits, labels) + rising * (0.7 * soft + 0.6 * review)
    torch.testing.assert_close(found.detach(), expected)
    found.backward()
    assert all(parameter.grad is not None for parameter in student.parameters())
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_a_teacher_speaks_in_the_order_of_the_datas_classes_or_not_at_all():
    weight, bias = torch.arange(6.0).reshape(3, 2), torch.arange(3.0)
    found = _in_order((weight, bias), {"classes": ["cat", "dog", "ant"]}, ("ant", "cat", "dog"))
    assert found[0].tolist() == [[4, 5], [0, 1], [2, 3]] and found[1].tolist() == [2, 0, 1]
    assert _in_order((weight, bias), {"classes": ["cat", "dog", "eel"]}, ("ant", "cat", "dog")) is None
    assert _in_order((weight, bias), {}, ("ant", "cat", "dog")) == (weight, bias), "the file names none"


def test_every_loss_at_once_reaches_every_parameter_of_the_student(tmp_path):
    names = ("dkd", "fitnet", "attention_transfer", "rkd_distance", "rkd_angle", "cosine", "kd", "review")
    config = a_distillation(tmp_path, distill=dict.fromkeys(names, 1.0))
    teacher = open_teacher(config, DIGITS)
    student = Student(CifarResNet("resnet20"), 10, teacher.dims, config)
    images, targets = torch.rand(4, 3, 16, 16), torch.eye(10)[:4]
    found = student(images, teacher(images), targets, targets.argmax(1))
    assert set(found) == {"classification", *names} and all(loss.isfinite() for loss in found.values())
    sum(found.values()).backward()
    assert [name for name, parameter in student.named_parameters() if parameter.grad is None] == []


def a_teacher(batch_norm="running", own_pixels=PIXELS, preactivation=True):
    torch.manual_seed(3)
    return Teacher(
        CifarResNet("resnet8x4"), None, pixels=tuple(PIXELS.values()), own_pixels=tuple(own_pixels.values()),
        preactivation=preactivation, batch_norm=batch_norm,
    )  # fmt: skip


def test_the_teacher_gets_its_own_pixels():
    pixels = torch.rand(2, 3, 16, 16)
    mean, std = (torch.tensor(PIXELS[name])[:, None, None] for name in ("mean", "std"))
    teacher = a_teacher(own_pixels={"mean": (0.1, 0.2, 0.3), "std": (1.0, 0.9, 0.8)})
    own = (pixels - torch.tensor((0.1, 0.2, 0.3))[:, None, None]) / torch.tensor((1.0, 0.9, 0.8))[:, None, None]
    expected = levels(*teacher.backbone.pooled_and_preactivations(own))
    torch.testing.assert_close(teacher((pixels - mean) / std).levels, expected)


def test_stages_of_the_teacher_are_taken_after_its_activation_if_so_wished():
    images = torch.rand(2, 3, 16, 16)
    before, after = (a_teacher(preactivation=wish)(images).levels for wish in (True, False))
    torch.testing.assert_close([level.relu() for level in before], after)
    assert before[0].min() < 0


@pytest.mark.parametrize("batch_norm", ["running", "batch"])
def test_the_teacher_uses_running_statistics_or_those_of_the_batch_and_changes_neither(batch_norm):
    teacher, images = a_teacher(batch_norm), torch.rand(4, 3, 16, 16)
    before = {name: value.clone() for name, value in teacher.state_dict().items() if "tracked" not in name}
    first = teacher(images).levels
    torch.testing.assert_close(teacher(images).levels, first)
    after = teacher.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    # A batch of other images changes what is said of the first one only where statistics are the batch's.
    others = torch.cat((images[:1], torch.rand(3, 3, 16, 16)))
    assert torch.allclose(teacher(others).levels[0][0], first[0][0], atol=1e-5) == (batch_norm == "running")


def test_several_seeds_are_runs_of_their_own_with_a_mean_and_a_deviation(tmp_path):
    report = distill(a_distillation(tmp_path, seeds=2, seed=4))
    found = json.loads((tmp_path / "run" / "seeds.json").read_text())
    values = list(found["last"]["seeds"].values())
    assert list(found["last"]["seeds"]) == ["4", "5"]
    assert report.scores["last"] == found["last"]["mean"] == pytest.approx(np.mean(values))
    assert found["last"]["deviation"] == pytest.approx(np.std(values, ddof=1))
    alone = distill(a_distillation(tmp_path, seed=5, output_dir=str(tmp_path / "alone")))
    assert alone.scores["last"] == values[1] and alone.scores["teacher"] == found["teacher"] == report.scores["teacher"]
    one, other = (checkpoint(tmp_path / name)["model"] for name in ("run/seed_5", "alone"))
    torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_of_several_ranks_the_first_alone_writes_what_the_seeds_reached(tmp_path):
    reports = {seed: Report(tmp_path / f"seed_{seed}", {"last": 0.25 * seed}, "") for seed in (1, 2)}
    found = _together(tmp_path, reports)
    assert found.scores == {"last": 0.375} and found.text == "" and not list(tmp_path.iterdir())


def test_a_finished_distillation_says_the_same_again_and_only_its_backbone_is_exported(tmp_path):
    config = a_distillation(tmp_path)
    first = distill(config)
    assert distill(config).scores == first.scores
    state = checkpoint(tmp_path / "run")["model"]
    assert any(name.startswith("review.") for name in state)
    loaded = load(tmp_path / "run")
    assert loaded.encoder.name == "resnet20"
    assert {name: value.shape for name, value in loaded.tensors.items()} == {
        name: value.shape for name, value in CifarResNet("resnet20").state_dict().items()
    }
    torch.testing.assert_close(loaded.tensors["conv1.weight"], state["backbone.conv1.weight"])


def test_a_run_of_classification_teaches_with_its_classifier(tmp_path):
    config = a_distillation(tmp_path)
    plain = {name: value for name, value in tree(tmp_path).items() if name not in ("teacher", "distill")}
    reached = classify(
        from_dict({**plain, "output_dir": str(tmp_path / "big"), "model": {"name": "resnet8x4"}}, CLASSIFY)
    )
    config = a_distillation(tmp_path, teacher={"weights": str(tmp_path / "big")})
    assert distill(config).scores["teacher"] == pytest.approx(reached.scores["last"])


@pytest.mark.parametrize(
    ("teacher", "student", "standardize"),
    [("vit_micro", "resnet20", True), ("vit_micro", "cmt_odd", True), ("cmt_odd", "vit_micro", False)],
)
def test_a_network_pretrained_here_teaches_and_learns(tmp_path, monkeypatch, teacher, student, standardize):
    """Both start from pretrainings of a step, and learn without the teacher's logits, which it has not."""
    monkeypatch.setitem(CMT_SIZES, "cmt_odd", CMTSize(5, (3, 6, 12, 24), (1, 1, 1, 1), 3.3))
    names = [name for name in {teacher, student} if name != "resnet20"]
    for name in names:
        options = {"name": name, "patch_size": 8} if name == "vit_micro" else {"name": name, "small_stem": True}
        crops, optim = (
            {"global_size": 32, "num_local_crops": 0},
            {"warmup_epochs": 0.2, "freeze_last_layer_epochs": 0.0},
        )
        run_here(a_config(tmp_path / name, steps=1, crops=crops, model=options, optim=optim))
    model = {"weights": str(tmp_path / student / "run"), "name": ""} if student in names else {"name": student}
    config = a_distillation(
        tmp_path, crops={"size": 32}, model=model, steps=2, distill={"kd": 0.0, "review": 1.0, "cosine": 1.0},
        teacher={"weights": str(tmp_path / teacher / "run")}, review={"standardize": standardize},
    )  # fmt: skip
    before = load(tmp_path / student / "run").tensors if student in names else None
    assert "teacher" not in distill(config).scores
    after = load(tmp_path / "run")
    assert after.encoder.name.startswith(student)
    if before is not None:
        assert any(not torch.equal(before[name], after.tensors[name]) for name in before)


def without_classifier(folder):
    np.savez(folder / "teacher.npz", **{k: v.numpy() for k, v in CifarResNet("resnet8x4").state_dict().items()})


@pytest.mark.parametrize(
    ("arrange", "changes", "message"),
    [
        (without_classifier, {}, r"has 10 classes, teacher.weights=.* no classifier of these; write --distill.kd 0"),
        (lambda folder: save_teacher(folder / "teacher.npz", num_classes=7), {}, "teacher.weights=.* 7 classes"),
        (
            None,
            {"review": {"design": "same", "pair": (0, 9)}},
            r"review.pair=\[0, 9\] must be levels from 0 to 3",
        ),
        (None, {"distill": {"fitnet": 1.0, "fitnet_level": 4}}, "distill.fitnet_level=4 must be a level from 0 to 3"),
        (
            None,
            {
                "model": {"name": "timm/test_convnext"},
                "distill": {"student_preactivation": True},
                "crops": {"size": 32},
            },
            "distill.student_preactivation=true: timm/test_convnext does not give its stages before",
        ),
    ],
)
def test_what_the_networks_cannot_give_is_an_error_before_any_training(tmp_path, arrange, changes, message):
    if arrange is not None:
        arrange(tmp_path)
    with pytest.raises(UsageError, match=message):
        distill(a_distillation(tmp_path, **changes))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher": {"weights": ""}}, "teacher.weights is not set; write --teacher.weights"),
        ({"distill": {"review": 0.0, "kd": 0.0}}, "nothing is asked of the teacher; write --distill.review 1"),
        ({"distill": {"dkd": 1.0}, "loss": {"mixup": 0.2}}, "distill.dkd needs one label for each image"),
        ({"review": {"pair": (0, 1)}}, r"review.pair=\[0, 1\] must be two levels"),
        ({"distill": {"temperature": 0.0}}, "distill.temperature=0.0 must be above 0"),
        ({"distill": {"review": -1.0}}, "distill.review=-1.0 must not be negative"),
        ({"distill": {"rkd_angle": 1.0}, "micro_batch_size": 1}, "write a --micro-batch-size of 2 or more"),
        ({"optim": {"schedule": "steps", "decay_epochs": (-1.0, 3.0)}}, r"decay_epochs=\[-1.0, 3.0\] must be above 0"),
        ({"model": {"compile": True}}, "model.compile compiles what a backbone gives"),
        ({"seeds": 0}, "seeds=0 must be at least 1"),
        ({"teacher": {"mean": (0.5, 0.5, 0.5)}}, "teacher.mean and teacher.std go together"),
    ],
)
def test_a_configuration_that_makes_no_sense_is_refused(tmp_path, changes, message):
    problems = DISTILL.check(from_dict(tree(tmp_path, **changes), DISTILL))
    assert len(problems) == 1 and re.search(message, problems[0])


def test_a_student_with_more_stages_than_its_teacher_takes_part_with_its_deepest(tmp_path):
    config = a_distillation(tmp_path)
    student = Student(build_backbone("resnet18", image_size=32, small_stem=True), 10, (64, 128, 256, 256), config)
    assert [fusion.reduce[0].in_channels for fusion in student.review.modules_of] == [128, 256, 512, 512]


@pytest.mark.parametrize("recipe", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_is_sound_once_it_has_a_teacher(recipe):
    config, _ = configure([str(recipe), "--teacher.weights", "teacher.pth", "--data", "photos"], DISTILL)
    assert config.distill.review > 0


def _train(config):
    """On whatever ranks there are."""
    run = prepare(config, torch.device("cpu"))
    begin(run)
    with run.journal:
        train(run)


def test_two_ranks_learn_what_one_learns(tmp_path):
    """By KD into a ViT, which has no batch norm whose statistics would be each rank's own."""
    model = {"name": "vit_micro", "patch_size": 8}
    changes = {"model": model, "distill": {"review": 0.0}, "steps": 3, "validation": {"every_epochs": 0}}
    alone, shared = (a_distillation(tmp_path, output_dir=str(tmp_path / n), **changes) for n in ("alone", "shared"))
    _train(alone)
    on_ranks(2, partial(_train, shared))
    one, two = (checkpoint(config.output_dir)["model"] for config in (alone, shared))
    torch.testing.assert_close(two, one, rtol=1e-4, atol=1e-5)
