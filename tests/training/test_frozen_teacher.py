"""Pretraining with the targets of another, frozen network."""

import pytest
import torch

from dino_ssl.dino.losses import dino_loss, teacher_probabilities
from dino_ssl.errors import UsageError
from dino_ssl.training.pretraining import prepare
from tests.training.small_runs import a_config, run_here

CROPS = {"global_size": 16, "num_local_crops": 0}


@pytest.fixture
def large(tmp_path):
    """A run whose teacher teaches; its patches are other than the student's."""
    config = a_config(tmp_path, output_dir=str(tmp_path / "large"), crops=CROPS, model={"patch_size": 4})
    return str(run_here(config).folder)


def a_student(folder, large, **changes):
    changes = {"head": {"hidden_dim": 24}, "dino": {"frozen_teacher": large, "momentum": 0.5}, **changes}
    return a_config(folder, output_dir=str(folder / "small"), crops=CROPS, **changes)


def checkpoint(folder):
    return torch.load(f"{folder}/checkpoints/checkpoint.pth", weights_only=True)


def test_the_frozen_network_gives_the_targets_and_its_centre_is_the_first(tmp_path, large):
    method = prepare(a_student(tmp_path, large), torch.device("cpu")).task.method
    method.student.eval()  # without drop path
    views = [torch.randn(2, 4, 3, 16, 16)]
    saved = checkpoint(large)
    assert method.center.center.tolist() == saved["dino_loss"]["center"].tolist()
    torch.testing.assert_close(dict(method.targets_from.state_dict()), dict(saved["teacher"]))
    with torch.no_grad():
        targets = teacher_probabilities(method.targets_from(views), method.center.center, 0.04)
        expected = dino_loss(method.student(views), targets, method.student_temperature)
        torch.testing.assert_close(method.loss(views, 0.04), expected)


def test_the_student_learns_from_it_and_its_moving_average_is_saved(tmp_path, large):
    config = a_student(tmp_path, large)
    run = run_here(config)
    assert not run.task.method.targets_from.training
    torch.testing.assert_close(dict(run.task.method.targets_from.state_dict()), dict(checkpoint(large)["teacher"]))
    ours = checkpoint(config.output_dir)
    student = {name.removeprefix("module."): value for name, value in ours["student"].items()}
    name = "backbone.blocks.0.attn.qkv.weight"
    assert ours["teacher"][name].shape == student[name].shape
    assert 0 < (ours["teacher"][name] - student[name]).norm() < student[name].norm()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head": {"prototypes": 8}}, r"head.prototypes=8, but of dino.frozen_teacher=.* it is 16; write the same"),
        ({"crops": {**CROPS, "std": [0.2, 0.2, 0.2]}}, r"crops.std=\(0.2, 0.2, 0.2\), but of dino.frozen_teacher"),
    ],
)
def test_another_number_of_prototypes_or_other_pixels_are_refused(tmp_path, large, changes, message):
    dino = {"frozen_teacher": large}
    config = a_config(tmp_path, output_dir=str(tmp_path / "small"), **{"crops": CROPS, "dino": dino, **changes})
    with pytest.raises(UsageError, match=message):
        run_here(config)
