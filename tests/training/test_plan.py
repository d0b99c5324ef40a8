"""The plan: what the original's arrays hold at every step, and where ours differ."""

import math

import numpy as np
import pytest
import torch

from dino_ssl.config import Dino, Optim, PretrainConfig
from dino_ssl.errors import UsageError
from dino_ssl.training.plan import make_plan
from dino_ssl.training.pretraining import prepare

STEPS_PER_EPOCH = 10


def a_plan(*, optim=None, dino=None, **knobs):
    """A plan for epochs of ten steps, without warm-ups unless they are asked for."""
    optim = {"warmup_epochs": 0.0, "freeze_last_layer_epochs": 0.0, **(optim or {})}
    config = PretrainConfig(data="digits", optim=Optim(**optim), dino=Dino(**(dino or {})), **knobs)
    return make_plan(config, STEPS_PER_EPOCH)


WARM = {
    "warmup_teacher_temperature": 0.04,
    "teacher_temperature": 0.07,
    "warmup_teacher_temperature_epochs": 3.0,
}


def original_temperatures(epochs):
    """One per epoch, as facebookresearch/dino's `DINOLoss` lays them out."""
    return np.concatenate((np.linspace(0.04, 0.07, 3), np.ones(epochs - 3) * 0.07))


def test_compat_dino_changes_the_teacher_temperature_once_per_epoch_as_the_original_does():
    plan = a_plan(dino=WARM, epochs=5, compat="dino")
    by_epoch = original_temperatures(5)
    expected = [by_epoch[step // STEPS_PER_EPOCH] for step in range(50)]
    assert [plan.at(step).teacher_temperature for step in range(50)] == expected


def test_the_teacher_temperature_rises_by_the_same_amount_every_step():
    plan = a_plan(dino=WARM, epochs=5)
    temperatures = [plan.at(step).teacher_temperature for step in range(50)]
    assert temperatures[0] == 0.04 and temperatures[29:] == [0.07] * 21
    np.testing.assert_allclose(np.diff(temperatures[:30]), 0.03 / 29)


def test_compat_dino_has_a_value_for_every_step_of_a_run_that_ends_within_an_epoch():
    plan = a_plan(dino=WARM, steps=34, compat="dino")
    expected = np.repeat(original_temperatures(4), STEPS_PER_EPOCH)[:34]
    np.testing.assert_array_equal(plan.teacher_temperature, expected)


def test_without_a_warm_up_the_teacher_temperature_is_final_from_the_first_step():
    for compat in ("none", "dino"):
        plan = a_plan(dino=WARM | {"warmup_teacher_temperature_epochs": 0.0}, steps=25, compat=compat)
        assert plan.teacher_temperature.tolist() == [0.07] * 25


def test_steps_override_epochs_and_every_schedule_is_as_long():
    plan = a_plan(epochs=100, steps=27)
    lengths = {len(s) for s in (plan.lr, plan.weight_decay, plan.momentum, plan.teacher_temperature)}
    assert plan.total_steps == 27 and lengths == {27}
    assert a_plan(epochs=4).total_steps == 40


@pytest.mark.parametrize("batch_size", [64, 256, 1024])
def test_the_peak_is_scaled_with_the_global_batch_but_the_end_is_not(batch_size):
    plan = a_plan(optim={"lr": 1e-3, "min_lr": 1e-6}, epochs=2, batch_size=batch_size)
    peak = 1e-3 * batch_size / 256
    expected = [1e-6 + 0.5 * (peak - 1e-6) * (1 + math.cos(math.pi * step / 20)) for step in range(20)]
    np.testing.assert_allclose(plan.lr, expected, rtol=1e-14)


@pytest.mark.parametrize(("epochs", "steps"), [(0.0, 0), (0.25, 2), (0.5, 5), (1.0, 10), (1.5, 15)])
def test_warm_ups_and_the_freeze_are_given_in_fractions_of_epochs(epochs, steps):
    plan = a_plan(
        optim={"lr": 1.0, "warmup_epochs": epochs, "freeze_last_layer_epochs": epochs},
        dino=WARM | {"warmup_teacher_temperature_epochs": epochs},
        epochs=3,
        batch_size=256,
    )
    np.testing.assert_allclose(plan.lr[:steps], np.linspace(0, 1, steps))
    assert plan.lr[steps] == 1.0 > plan.lr[steps + 1]
    assert [plan.at(step).last_layer_is_frozen for step in range(30)] == [True] * steps + [False] * (30 - steps)
    assert np.argmax(plan.teacher_temperature == 0.07) == max(0, steps - 1)


def test_a_step_s_rates_are_plain_numbers_that_a_checkpoint_may_hold():
    rates = a_plan(epochs=1).at(3)
    values = (rates.lr, rates.weight_decay, rates.momentum, rates.teacher_temperature)
    assert {type(value) for value in values} == {float} and type(rates.last_layer_is_frozen) is bool


def test_decay_and_momentum_climb_along_half_a_cosine_without_a_warm_up():
    plan = a_plan(epochs=2, optim={"warmup_epochs": 1.0}, dino={"momentum": 0.9, "momentum_end": 1.0})
    climb = [0.5 - 0.5 * math.cos(math.pi * step / 20) for step in range(20)]
    np.testing.assert_allclose(plan.weight_decay, [0.04 + 0.36 * share for share in climb], rtol=1e-13)
    np.testing.assert_allclose(plan.momentum, [0.9 + 0.1 * share for share in climb], rtol=1e-13)


def test_a_warm_up_longer_than_a_run_of_so_many_steps_is_refused_before_anything_is_built(tmp_path):
    optim = Optim(warmup_epochs=2.0, freeze_last_layer_epochs=0.0)
    config = PretrainConfig(data="digits", output_dir=tmp_path / "run", batch_size=100, steps=20, optim=optim)
    with pytest.raises(UsageError, match=r"optim\.warmup_epochs=2 is longer .*steps=20.*; write at most 1\.43"):
        prepare(config, torch.device("cpu"))
    assert not (tmp_path / "run").exists()
