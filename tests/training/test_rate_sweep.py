"""The learning-rate range test: what it finds in curves with known answers, and that it leaves no trace."""

import copy
import json
import math

import numpy as np
import pytest
import torch
from small_runs import a_config, assert_bitwise_equal

from dino_ssl.cli import main
from dino_ssl.config_yaml import write_config
from dino_ssl.training.checkpoint import capture_rng
from dino_ssl.training.pretraining import prepare
from dino_ssl.training.rate_sweep import Sweep, everything_restored, sweep

RATES = np.geomspace(1e-6, 1.0, 121)  # twenty for each factor of ten


def fall_and_rise(rates):
    """Level, steepest at 1e-3, lowest near 1e-2, back at the start at about 1e-1."""
    return 1 - 0.3 / (1 + 1e-3 / rates) + 0.3 * (rates / 1e-1) ** 2


def a_sweep(gaps, information=1.0, losses=8.0):
    each = np.ones(len(gaps))
    return Sweep(RATES[: len(gaps)], losses * each, gaps, information * each)


def test_a_curve_with_known_answers_is_read_right_noise_and_all():
    found = a_sweep(fall_and_rise(RATES) + np.random.default_rng(0).normal(0, 0.01, len(RATES)))
    assert found.steepest() == pytest.approx(1e-3, rel=1.0)
    assert 0.05 < found.divergence() < 0.14


def test_a_gap_that_closes_because_the_teacher_collapses_ends_where_it_says_half_as_much():
    gaps = np.where(RATES < 1e-2, fall_and_rise(RATES), 0.0)
    found = a_sweep(gaps, information=1 / (1 + RATES / 1e-2))
    assert found.divergence() == pytest.approx(1e-2, rel=0.3)
    assert found.steepest() <= found.divergence()


def test_a_loss_that_ends_in_nan_diverges_there_and_the_rest_is_still_read():
    gaps = np.append(fall_and_rise(RATES[:80]), math.nan)
    found = a_sweep(gaps, losses=np.append(np.full(80, 8.0), math.nan))
    assert found.divergence() == RATES[80]
    assert found.steepest() == pytest.approx(1e-3, rel=1.0)


def test_a_level_gap_has_neither():
    found = a_sweep(np.full(len(RATES), 0.9))
    assert found.steepest() is None and found.divergence() is None


def state_of(run):
    task = run.task
    parts = {
        **task.weights(),
        **task.state(),
        "optimizer": task.optimizer.state_dict(),
        "of rank": task.state_of_rank(),
    }
    parts["rng"] = capture_rng()["torch"]
    return copy.deepcopy(parts)


def test_a_sweep_leaves_the_run_as_it_was_and_finds_what_breaks_it(tmp_path):
    run = prepare(a_config(tmp_path, steps=40, optim={"clip_grad": 0.0, "name": "sgd"}), torch.device("cpu"))
    before = state_of(run)
    found = sweep(run, lowest=1e-4, highest=1e4, steps=20)
    assert_bitwise_equal(state_of(run), before)
    assert run.step == 0 and not run.folder.exists()
    assert found.rates[0] == 1e-4 and len(found.losses) == len(found.rates) <= 20
    assert 1e-4 < found.divergence() < 1e4


def test_an_error_within_the_sweep_leaves_the_run_as_it_was_too(tmp_path):
    run = prepare(a_config(tmp_path), torch.device("cpu"))
    before = state_of(run)
    with pytest.raises(ZeroDivisionError), everything_restored(run):
        torch.rand(1)
        for weight in run.task.method.student.parameters():
            weight.data.add_(1.0)
        raise ZeroDivisionError
    assert_bitwise_equal(state_of(run), before)


def test_the_command_draws_writes_its_numbers_and_says_what_the_batch_rule_makes_of_them(tmp_path, capsys):
    config = a_config(tmp_path, steps=40)
    write_config(config, tmp_path / "recipe.yaml")
    command = ["lr-range", str(tmp_path / "recipe.yaml"), "--sweep-steps", "12", "--lowest", "1e-5", "--highest", "0.1"]
    assert main(command) == 0
    said = capsys.readouterr().out
    # 16 images: a sixteenth of the 256 that optim.lr is meant for.
    assert "batch 16, 12 steps" in said and "0.00025, that is optim.lr=0.004" in said
    numbers = json.loads((config.output_dir / "lr_range.json").read_text())
    assert numbers["rates"] == pytest.approx(np.geomspace(1e-5, 0.1, 12)) and len(numbers["gaps"]) == 12
    assert (config.output_dir / "lr_range.png").read_bytes().startswith(b"\x89PNG")
    assert not (config.output_dir / "checkpoints").exists() and not (config.output_dir / "config.yaml").exists()


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (["--lowest", "1", "--highest", "0.1"], "--lowest=1 must be below --highest=0.1"),
        (["--sweep-steps", "99"], "--sweep-steps=99 is longer than the run of 40 steps; write at most that"),
        (["--sweep-steps", "3"], "'3' must be a whole number from 10 on"),
        (["--epoch", "3"], "unknown flag --epoch"),
    ],
)
def test_mistakes_are_named_before_a_step_is_taken(tmp_path, capsys, flags, problem):
    write_config(a_config(tmp_path, steps=40), tmp_path / "recipe.yaml")
    assert main(["lr-range", str(tmp_path / "recipe.yaml"), *flags]) == 2
    assert problem in capsys.readouterr().err
