"""Two ranks, one rank and accumulation are one and the same run; real processes over gloo."""

import logging
import subprocess
import sys

import pytest
import torch
from small_runs import (
    STEPS_PER_EPOCH,
    a_config,
    as_killed_after,
    as_submitit,
    assert_bitwise_equal,
    journal_without_times,
    pretrain_on_ranks,
    run_here,
    saved_steps,
    state_after,
)

from dino_ssl.config_yaml import write_config

STEPS = 2 * STEPS_PER_EPOCH
KNOBS = {
    "steps": STEPS,
    "model": {"drop_path": 0.0},
    "knn": {"every_epochs": 1, "k": 5},
    "checkpoint": {"every_steps": STEPS_PER_EPOCH},
}


def losses(config):
    return [line["train/loss"] for line in journal_without_times(config)[0] if "train/loss" in line]


def accuracies(config):
    return [line["eval/knn_top1"] for line in journal_without_times(config)[0] if "eval/knn_top1" in line]


def assert_same_run(one, other):
    """Seen: at most 1.2e-6 in losses from 6 to 1.1, 1.2e-7 in weights that moved by 2e-3 and in the centre."""
    assert losses(one) == pytest.approx(losses(other), abs=5e-6)
    assert len(losses(one)) == STEPS
    assert accuracies(one) == pytest.approx(accuracies(other), abs=1 / 80)  # at most one image of the bank
    for part in ("student", "teacher", "dino_loss"):
        ours, theirs = (state_after(config, STEPS)[part] for config in (one, other))
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory):
    config = a_config(tmp_path_factory.mktemp("one rank"), **KNOBS)
    run_here(config)
    return config


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    config = a_config(tmp_path_factory.mktemp("two ranks"), **KNOBS)
    assert pretrain_on_ranks(2, config) == ["", ""]
    return config


def test_two_ranks_of_b_are_one_rank_of_2b(one_rank, two_ranks):
    assert_same_run(one_rank, two_ranks)
    before = state_after(one_rank, STEPS_PER_EPOCH)["student"]
    after = state_after(one_rank, STEPS)["student"]
    assert max((after[name] - before[name]).abs().max() for name in after) > 3e-4, "too little to compare"


def test_two_micro_batches_of_b_are_one_of_2b(tmp_path, one_rank):
    parts = a_config(tmp_path, **KNOBS, micro_batch_size=8)
    run_here(parts)
    assert_same_run(one_rank, parts)


def test_two_ranks_with_two_micro_batches_each_are_one_rank_of_4b(tmp_path, one_rank):
    parts = a_config(tmp_path, **KNOBS, micro_batch_size=4)
    assert pretrain_on_ranks(2, parts) == ["", ""]
    assert_same_run(one_rank, parts)


def test_one_rank_goes_on_where_two_ranks_stopped(tmp_path, two_ranks, caplog):
    resumed = as_killed_after(two_ranks, {STEPS_PER_EPOCH}, tmp_path, **KNOBS)
    with caplog.at_level(logging.WARNING, logger="dino_ssl"):
        assert run_here(resumed).shares.micro_batch == 16
    assert "resuming on 1 ranks what ran on 2: the global batch stays 16" in caplog.text
    assert_same_run(two_ranks, resumed)


def test_two_ranks_go_on_where_one_rank_stopped(tmp_path, one_rank):
    resumed = as_killed_after(one_rank, {STEPS_PER_EPOCH}, tmp_path, **KNOBS)
    assert pretrain_on_ranks(2, resumed) == ["", ""]
    assert_same_run(one_rank, resumed)


def test_two_ranks_with_drop_path_resume_bit_for_bit_each_with_its_own_masks(tmp_path):
    knobs = {**KNOBS, "model": {"drop_path": 0.2}}
    undisturbed = a_config(tmp_path, **knobs)
    assert pretrain_on_ranks(2, undisturbed) == ["", ""]
    state = state_after(undisturbed, STEPS)
    assert not torch.equal(*state["rng"])
    resumed = as_killed_after(undisturbed, {STEPS_PER_EPOCH}, tmp_path / "resumed", **knobs)
    assert pretrain_on_ranks(2, resumed) == ["", ""]
    assert_bitwise_equal(state, state_after(resumed, STEPS))


def test_ranks_without_an_address_meet_in_the_run_s_folder_and_leave_nothing_there(tmp_path, two_ranks):
    config = a_config(tmp_path, **KNOBS)
    config.output_dir.mkdir()
    # Of a start that was killed: nobody listens there any more.
    meeting = config.output_dir / ".rendezvous-77"
    meeting.write_text("9\nlocalhost")
    assert pretrain_on_ranks(2, config, as_submitit) == ["", ""]
    assert not meeting.exists()
    assert_bitwise_equal(*(state_after(run, STEPS) for run in (two_ranks, config)))


def test_ranks_that_met_in_a_folder_leave_none_if_the_configuration_is_wrong(tmp_path):
    config = a_config(tmp_path, batch_size=15)
    assert all("does not divide among 2 ranks" in said for said in pretrain_on_ranks(2, config, as_submitit))
    assert not config.output_dir.exists()


def test_a_batch_that_does_not_divide_among_the_ranks_is_refused_on_each(tmp_path):
    config = a_config(tmp_path, batch_size=15)
    message = (
        "UsageError: batch_size=15 does not divide among 2 ranks; write --batch-size 14, or start a number of "
        "ranks that divides it"
    )
    assert pretrain_on_ranks(2, config) == [message] * 2
    assert not config.output_dir.exists()


def test_a_folder_of_another_run_is_refused_on_every_rank(tmp_path, one_rank):
    other = as_killed_after(one_rank, {STEPS}, tmp_path, **{**KNOBS, "seed": 1})
    for said in pretrain_on_ranks(2, other):
        assert said.startswith("UsageError: output_dir=") and said.endswith("resume it: seed: 0 -> 1")


def test_torchrun_runs_the_command_on_two_ranks(tmp_path):
    config = a_config(tmp_path, **KNOBS)
    write_config(config, tmp_path / "recipe.yaml")
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [sys.executable, *torchrun, "-m", "dino_ssl", "pretrain", "recipe.yaml"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("teacher, last checkpoint") == 1, done.stdout
    files = {path.name for path in config.output_dir.iterdir()}
    folders = {"checkpoints", "attention", "eval", "lock"}
    records = {"heartbeat.json", "restarts.jsonl"}
    assert files == folders | records | {"config.yaml", "run.json", "metrics.jsonl", "log.txt", "curve.png"}
    assert len(losses(config)) == STEPS and saved_steps(config) == [STEPS_PER_EPOCH, STEPS]
