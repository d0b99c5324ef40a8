"""Sharded, bucketed and compressed runs are the run of one process; real processes over gloo."""

from pathlib import Path

import pytest
import torch
from small_runs import (
    STEPS_PER_EPOCH,
    a_config,
    as_killed_after,
    assert_bitwise_equal,
    journal_without_times,
    on_ranks,
    pretrain_on_ranks,
    run_here,
    state_after,
)

from dino_ssl.config import Parallel
from dino_ssl.dino.centering import Center
from dino_ssl.dino.method import SelfDistillation
from dino_ssl.training import sharding
from dino_ssl.training.build import build_network

STEPS = 2 * STEPS_PER_EPOCH
KNOBS = {
    "steps": STEPS,
    "model": {"drop_path": 0.0},
    "knn": {"every_epochs": 1, "k": 5},
    "checkpoint": {"every_steps": STEPS_PER_EPOCH},
}
SHARDED = {"parallel": {"sharding": "fsdp2"}}
needs_fsdp_on_cpu = pytest.mark.skipif(
    torch.__version__ < sharding.FIRST_ON_CPU, reason="this PyTorch's FSDP2 is right on GPUs only"
)


def losses(config):
    return [line["train/loss"] for line in journal_without_times(config)[0] if "train/loss" in line]


def accuracies(config):
    return [line["eval/knn_top1"] for line in journal_without_times(config)[0] if "eval/knn_top1" in line]


def assert_same_run(one, other, tolerance=1e-6):
    """Seen: at most 1.2e-6 in losses, 1.3e-7 in weights that moved by 2e-3, 3e-9 in the optimizer's memory."""
    assert losses(one) == pytest.approx(losses(other), abs=5 * tolerance)
    assert len(losses(one)) == STEPS
    assert accuracies(one) == pytest.approx(accuracies(other), abs=1 / 80)
    ours, theirs = (state_after(config, STEPS) for config in (one, other))
    for name in ("student", "teacher", "dino_loss", "optimizer"):
        torch.testing.assert_close(ours[name], theirs[name], atol=tolerance, rtol=0)
    assert ours.keys() == theirs.keys()


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory):
    config = a_config(tmp_path_factory.mktemp("one rank"), **KNOBS)
    run_here(config)
    return config


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    config = a_config(tmp_path_factory.mktemp("sharded"), **KNOBS, **SHARDED)
    assert pretrain_on_ranks(2, config) == ["", ""]
    return config


@needs_fsdp_on_cpu
def test_a_sharded_run_is_the_run_of_one_process_and_writes_the_same_checkpoint(one_rank, sharded):
    assert_same_run(one_rank, sharded)


@needs_fsdp_on_cpu
@pytest.mark.parametrize(
    ("ranks", "more"),
    [
        (2, {"micro_batch_size": 4}),  # gradients accumulate
        (2, {"model": {"drop_path": 0.0, "activation_checkpointing": True}}),
        (3, {"batch_size": 15}),  # rows that do not divide, and weights with fewer rows than ranks
        (2, {"compat": "dino", "optim": {"clip_grad": 0.02}}),  # each tensor is clipped by itself
        (2, {"optim": {"clip_grad": 0.02, "name": "sgd"}}),  # all together are
    ],
)
def test_sharded_it_stays_the_run_of_one_process_with(tmp_path, ranks, more):
    knobs = {**KNOBS, **more}
    alone, split = a_config(tmp_path / "alone", **knobs), a_config(tmp_path / "split", **knobs, **SHARDED)
    run_here(alone)
    assert pretrain_on_ranks(ranks, split) == [""] * ranks
    assert_same_run(alone, split)


@needs_fsdp_on_cpu
def test_one_process_goes_on_where_a_sharded_run_stopped(tmp_path, sharded):
    resumed = as_killed_after(sharded, {STEPS_PER_EPOCH}, tmp_path, **KNOBS)
    run_here(resumed)
    assert_same_run(sharded, resumed)


@needs_fsdp_on_cpu
def test_a_sharded_run_goes_on_where_one_process_stopped(tmp_path, one_rank):
    resumed = as_killed_after(one_rank, {STEPS_PER_EPOCH}, tmp_path, **KNOBS, **SHARDED)
    assert pretrain_on_ranks(2, resumed) == ["", ""]
    assert_same_run(one_rank, resumed)


@needs_fsdp_on_cpu
def test_a_rank_keeps_its_part_only_also_after_the_teacher_has_looked():
    parts = on_ranks(2, _elements_held)
    whole = sum(parameter.numel() for parameter in a_small_network().parameters())
    assert [sum(numbers) for numbers in zip(*parts, strict=True)] == [whole, whole]
    assert all(number == pytest.approx(whole / 2, rel=0.05) for numbers in parts for number in numbers)


def a_small_network():
    return build_network(a_config(Path(), data="."), drop_path=0.0)


def _elements_held():
    """Elements of student and teacher on this rank, after a step's forward and backward pass."""
    cpu, center = torch.device("cpu"), Center(16)
    networks, knobs = (a_small_network(), a_small_network()), Parallel(sharding="fsdp2")
    method = SelfDistillation(*networks, center, student_temperature=0.1, device=cpu, parallel=knobs)
    method.loss([torch.randn(2, 2, 3, 16, 16), torch.randn(2, 2, 3, 8, 8)], 0.04).backward()
    return [sum(p.numel() for p in sharding.local(n.parameters())) for n in (method.student, method.teacher)]


@needs_fsdp_on_cpu
def test_a_sharded_run_resumes_bit_for_bit(tmp_path, sharded):
    resumed = as_killed_after(sharded, {STEPS_PER_EPOCH}, tmp_path, **KNOBS, **SHARDED)
    assert pretrain_on_ranks(2, resumed) == ["", ""]
    assert_bitwise_equal(state_after(sharded, STEPS), state_after(resumed, STEPS))


def test_small_buckets_change_nothing(tmp_path, one_rank):
    config = a_config(tmp_path, **KNOBS, micro_batch_size=4, parallel={"bucket_mb": 0.05})
    assert pretrain_on_ranks(2, config) == ["", ""]
    assert_same_run(one_rank, config)


@pytest.mark.parametrize("sharding", ["none", pytest.param("fsdp2", marks=needs_fsdp_on_cpu)])
def test_gradients_that_travel_in_bf16_give_nearly_the_same_run(tmp_path, one_rank, sharding):
    """Each is rounded to 8 bits: the loss differs by less than 0.5 % of itself, and not by nothing."""
    config = a_config(tmp_path, **KNOBS, parallel={"sharding": sharding, "gradients": "bf16"})
    assert pretrain_on_ranks(2, config) == ["", ""]
    assert losses(config) == pytest.approx(losses(one_rank), rel=5e-3)
    ours, exact = (state_after(run, STEPS)["optimizer"]["state"] for run in (config, one_rank))
    errors = [(ours[n]["exp_avg"] - exact[n]["exp_avg"]).norm() / exact[n]["exp_avg"].norm() for n in exact]
    assert 1e-4 < max(errors) < 0.05
