"""Learning rates step by step, against each rule written out."""

import math

import numpy as np
import pytest

from dino_ssl.finetuning.schedule import rates_by_step


def rates(name, **changes):
    knobs = {"steps": 20, "warmup_steps": 4, "decay_steps": [10, 15]} | changes
    return rates_by_step(name, 1.0, 0.1, **knobs)


def test_every_schedule_rises_linearly_to_the_peak():
    for name in ("cosine", "linear", "steps"):
        assert rates(name)[:4] == pytest.approx([0, 1 / 3, 2 / 3, 1])
        assert len(rates(name)) == 20


def test_what_follows_the_warm_up():
    after = range(16)
    assert rates("cosine")[4:] == pytest.approx([0.1 + 0.45 * (1 + math.cos(math.pi * t / 16)) for t in after])
    assert rates("linear")[4:] == pytest.approx([1 - 0.9 * t / 16 for t in after])
    assert rates("steps")[4:] == pytest.approx([1.0] * 6 + [0.1] * 5 + [0.01] * 5)


def test_without_warm_up_the_first_step_has_the_peak():
    assert [rates(name, warmup_steps=0)[0] for name in ("cosine", "linear", "steps")] == [1.0, 1.0, 1.0]
    assert np.all(rates("steps", warmup_steps=0, decay_steps=[0]) == pytest.approx(0.1))
