import numpy as np
import pytest

from dino_ssl.dino.schedules import cosine_schedule, linear_warmup, scaled_learning_rate

STEPS = 1251  # an epoch of ImageNet at batch 1024


def test_tiny_schedule_is_the_original_one():
    # Golden: facebookresearch/dino, cosine_scheduler(1, 0, epochs=4, niter_per_ep=3, warmup_epochs=1).
    golden = [
        0,
        0.5,
        1,
        1,
        0.96984631,
        0.88302222,
        0.75,
        0.58682409,
        0.41317591,
        0.25,
        0.11697778,
        0.03015369,
    ]
    np.testing.assert_allclose(cosine_schedule(1.0, 0.0, steps=12, warmup_steps=3), golden, atol=5e-9)


def test_learning_rate_of_the_original_recipe():
    peak = scaled_learning_rate(5e-4, 1024)
    rate = cosine_schedule(peak, 1e-6, steps=100 * STEPS, warmup_steps=10 * STEPS)
    assert rate[0] == 0
    assert rate[1] == pytest.approx(1.5988488288328e-07, rel=1e-13)
    assert rate[12509] == rate[12510] == 0.002
    assert rate[-1] == pytest.approx(1.0000003890925144e-06, rel=1e-15)


def test_weight_decay_and_momentum_of_the_original_recipe():
    decay = cosine_schedule(0.04, 0.4, steps=100 * STEPS)
    assert decay[[0, 1, -1]] == pytest.approx([0.04, 0.04000000005675808, 0.3999999999432419], rel=1e-15)
    momentum = cosine_schedule(0.996, 1.0, steps=100 * STEPS)
    assert momentum[50 * STEPS] == pytest.approx(0.998, abs=1e-15)
    assert momentum[-1] == pytest.approx(0.9999999999993694, rel=1e-15)


def test_schedule_is_bitwise_the_formula_written_with_lists():
    base, final, steps, warmup = 0.003, 1e-6, 57, 13
    rise = np.linspace(0, base, warmup)
    index = np.arange(steps - warmup)
    fall = np.array([final + 0.5 * (base - final) * (1 + np.cos(np.pi * i / len(index))) for i in index])
    expected = np.concatenate((rise, fall))
    np.testing.assert_array_equal(cosine_schedule(base, final, steps=steps, warmup_steps=warmup), expected)


def test_teacher_temperature_rises_to_its_final_value_and_stays():
    temperature = linear_warmup(0.04, 0.07, steps=5, warmup_steps=3)
    np.testing.assert_allclose(temperature, [0.04, 0.055, 0.07, 0.07, 0.07], rtol=1e-15)


def test_a_warm_up_may_fill_the_run():
    assert cosine_schedule(1.0, 0.0, steps=3, warmup_steps=3).tolist() == [0, 0.5, 1]


@pytest.mark.parametrize("schedule", [cosine_schedule, linear_warmup])
def test_a_warm_up_longer_than_the_run_is_refused(schedule):
    with pytest.raises(ValueError, match="warmup_steps=4 must lie between 0 and steps=3"):
        schedule(1.0, 0.0, steps=3, warmup_steps=4)
