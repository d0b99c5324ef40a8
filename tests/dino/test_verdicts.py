"""Which numbers are called what, after how many steps, and what is then advised."""

import math
from dataclasses import replace

import pytest

from dino_ssl.dino.verdicts import PATIENCE, VERDICTS, Judge, Settings, advice, sign_of

K = 1024
# As measured on digits after 200 steps.
HEALTHY = {
    "teacher_entropy": 3.8, "mean_entropy": 5.4, "divergence": 0.56, "prototypes_used": 0.065, "agreement": 0.56,
    "effective_rank": 19.0, "center_norm": 1.4, "distance": 7e-2, "first_teacher": 0.19,
}  # fmt: skip
UNIFORM = HEALTHY | {"teacher_entropy": 6.904, "mean_entropy": 6.931, "divergence": 0.007}
ONE_HOT = HEALTHY | {"teacher_entropy": 0.02, "mean_entropy": 0.07, "divergence": 0.018}
FLAT = HEALTHY | {"effective_rank": 2.0}
SAME_TEACHER = HEALTHY | {"first_teacher": 1.0}
SAME_STUDENT = HEALTHY | {"distance": 3e-12}
CASES = [
    (HEALTHY, "healthy"), (UNIFORM, "uniform collapse"), (ONE_HOT, "one-hot collapse"),
    (FLAT, "dimensional collapse"), (SAME_TEACHER, "stalled"), (SAME_STUDENT, "stalled"),
]  # fmt: skip
SETTINGS = Settings(
    teacher_temperature=0.04, center_momentum=0.9, momentum=0.996, lr=5e-4, batch_size=512,
    bottleneck_dim=256, total_steps=10_000,
)  # fmt: skip


@pytest.mark.parametrize(("numbers", "verdict"), CASES)
def test_numbers_as_measured_have_their_name(numbers, verdict):
    assert sign_of(numbers, prototypes=K, progress=0.5) == verdict


def test_few_sharp_prototypes_are_healthy_as_long_as_images_differ_in_them():
    assert sign_of(ONE_HOT | {"mean_entropy": 2.3}, prototypes=K, progress=0.5) == "healthy"


def test_a_slow_teacher_is_stalled_only_if_the_run_ends_before_it_has_moved():
    after_200 = HEALTHY | {"first_teacher": 0.9999**200}
    assert sign_of(after_200, prototypes=K, progress=200 / 100_000) == "healthy"
    assert sign_of(after_200, prototypes=K, progress=200 / 2000) == "stalled"


def test_a_teacher_that_is_the_student_by_momentum_0_is_not_stalled():
    numbers = HEALTHY | {"distance": 0.0, "first_teacher": 0.0}
    assert sign_of(numbers, prototypes=K, progress=0.5) == "healthy"


def judged(looks, *, every=10, grace=0):
    """The verdict after each of `looks`."""
    judge = Judge(K, total_steps=10_000, grace=grace)
    return [judge.look((number + 1) * every, numbers) for number, numbers in enumerate(looks)]


def test_a_sign_becomes_the_verdict_when_it_was_seen_for_a_hundred_steps_and_goes_at_once():
    verdicts = judged([HEALTHY] * 5 + [UNIFORM] * 12 + [HEALTHY])
    # Seen first after 60 steps.
    assert verdicts == ["healthy"] * 15 + ["uniform collapse"] * 2 + ["healthy"] and PATIENCE == 100


def test_a_sign_that_comes_and_goes_is_no_verdict_and_one_look_is_none_either():
    assert set(judged([UNIFORM, UNIFORM, HEALTHY] * 20)) == {"healthy"}
    assert judged([UNIFORM], every=5000) == ["healthy"]


def test_the_start_of_a_run_is_not_judged():
    assert judged([UNIFORM] * 31, grace=200) == ["healthy"] * 29 + ["uniform collapse"] * 2


def test_numbers_that_are_not_finite_change_nothing():
    assert judged([UNIFORM] * 11 + [UNIFORM | {"divergence": math.nan}])[-2:] == ["uniform collapse"] * 2


def test_a_judge_goes_on_from_a_checkpoint():
    first, second = (Judge(K, total_steps=10_000, grace=0) for _ in range(2))
    first.look(10, UNIFORM)
    second.load_state_dict(first.state_dict())
    assert second.look(110, UNIFORM) == "uniform collapse"


ADVISED = [
    ("uniform collapse", {"teacher_temperature": 0.1}, "dino.teacher_temperature=0.04 (now 0.1)"),
    ("uniform collapse", {}, "dino.teacher_temperature=0.02 (now 0.04)"),
    ("uniform collapse", {"batch_size": 32}, "batch_size=64 (now 32)"),
    ("one-hot collapse", {"center_momentum": 1.0}, "dino.center_momentum=0.9 (now 1)"),
    ("one-hot collapse", {"teacher_temperature": 0.01}, "dino.teacher_temperature=0.04 (now 0.01)"),
    ("dimensional collapse", {"bottleneck_dim": 2}, "head.bottleneck_dim=256 (now 2)"),
    ("dimensional collapse", {}, "optim.lr=0.00025 (now 0.0005)"),
    ("stalled", {"momentum": 1.0}, "dino.momentum=0.998 (now 1)"),
    ("stalled", {"momentum": 1.0, "total_steps": 100}, "dino.momentum=0.9 (now 1)"),
    ("stalled", {"lr": 1e-12}, "optim.lr=0.0005 (now 1e-12)"),
]


@pytest.mark.parametrize(("verdict", "changes", "knob"), ADVISED)
def test_the_advice_names_the_knob_and_the_value_to_try(verdict, changes, knob):
    assert knob in advice(verdict, replace(SETTINGS, **changes))


def test_every_verdict_but_healthy_has_advice():
    assert [verdict for verdict in VERDICTS if not advice(verdict, SETTINGS)] == ["healthy"]
