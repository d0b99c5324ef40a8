"""Runs that collapse: what is written, what is said, and what becomes of them; real training on digits."""

import logging
import math

import pytest
import torch
from small_runs import (
    a_config,
    as_killed_after,
    assert_bitwise_equal,
    journal_without_times,
    pretrain_on_ranks,
    run_here,
    saved_steps,
    state_after,
)

from dino_ssl.cli import answer
from dino_ssl.dino import verdicts
from dino_ssl.errors import CollapsedError
from dino_ssl.training.prepare import begin
from dino_ssl.training.pretraining import prepare, pretrain

# Temperatures at which both say the same of all prototypes, from the first step on.
UNIFORM = {"teacher_temperature": 5.0, "warmup_teacher_temperature": 5.0, "student_temperature": 1.0}
LATE = {**UNIFORM, "warmup_teacher_temperature": 0.02, "warmup_teacher_temperature_epochs": 6}
EVERY = {"log": {"every_steps": 5}, "checkpoint": {"every_steps": 10}}


@pytest.fixture
def impatient(monkeypatch):
    """Verdicts after 20 steps instead of 100."""
    monkeypatch.setattr(verdicts, "PATIENCE", 20)


def statistics(config):
    return [line for line in journal_without_times(config)[0] if "collapse/divergence" in line]


def test_every_line_of_the_journal_has_the_statistics(tmp_path):
    config = a_config(tmp_path, steps=4)
    run_here(config)
    lines = statistics(config)
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    for line in lines:
        assert 0 < line["collapse/teacher_entropy"] <= line["collapse/mean_entropy"] <= math.log(16)
        # The loss is the cross-entropy, their sum.
        parts = line["collapse/teacher_entropy"] + line["collapse/divergence"]
        assert line["train/loss"] == pytest.approx(parts, abs=1e-5)
        assert 1 <= line["collapse/effective_rank"] <= 8
        assert 0 <= line["collapse/agreement"] <= 1 and 0 < line["collapse/prototypes_used"] <= 1
    momenta = [line["train/momentum"] for line in lines]
    assert [line["collapse/first_teacher"] for line in lines] == pytest.approx(
        [math.prod(momenta[: n + 1]) for n in range(4)]
    )
    assert [line["collapse/center_norm"] for line in lines][-1] == pytest.approx(
        state_after(config, 4)["dino_loss"]["center"].norm().item()
    )
    # Both are equal until the first step with a learning rate above 0, which is the second.
    assert lines[0]["collapse/distance"] == 0 < lines[1]["collapse/distance"]


def test_a_resumed_run_has_the_statistics_of_one_that_was_never_stopped(tmp_path):
    knobs = {"steps": 8, "log": {"every_steps": 3}}
    whole = a_config(tmp_path / "whole", **knobs)
    run_here(whole)
    # After a save in the middle of a line.
    killed = as_killed_after(whole, {4}, tmp_path / "killed", **knobs)
    run_here(killed)
    assert_bitwise_equal(journal_without_times(killed), journal_without_times(whole))


def test_the_first_teacher_is_forgotten_once_on_other_ranks_and_from_older_checkpoints_too(tmp_path):
    knobs = {"steps": 6, "model": {"drop_path": 0.0}}
    whole = a_config(tmp_path / "whole", **knobs)
    run_here(whole)
    on_two = as_killed_after(whole, {3}, tmp_path / "on two", **knobs)
    assert pretrain_on_ranks(2, on_two) == ["", ""]
    older = prepare(whole, torch.device("cpu"))
    state, _ = older.store.load(3)
    del state["collapse"]
    older.task.load(state, None)
    share = "collapse/first_teacher"
    assert [line[share] for line in statistics(on_two)] == [line[share] for line in statistics(whole)]
    assert older.task.method.first_teacher == statistics(whole)[2][share]


def test_two_ranks_have_the_statistics_of_one(tmp_path):
    knobs = {"steps": 6, "model": {"drop_path": 0.0}, "log": {"every_steps": 2}}
    one, two = (a_config(tmp_path / name, **knobs) for name in ("one", "two"))
    run_here(one)
    assert pretrain_on_ranks(2, two) == ["", ""]
    for ours, theirs in zip(statistics(one), statistics(two), strict=True):
        assert ours == pytest.approx(theirs, abs=2e-4)


@pytest.mark.usefixtures("impatient")
def test_a_collapse_is_a_warning_with_the_knob_and_the_value_to_try_and_the_run_goes_on(tmp_path, caplog):
    config = a_config(tmp_path, steps=35, dino=UNIFORM, **EVERY)
    with caplog.at_level(logging.WARNING):
        run = run_here(config)
    assert run.step == 35
    (said,) = [record.getMessage() for record in caplog.records if "collapse" in record.getMessage()]
    assert said.startswith("uniform collapse at step 25") and "dino.teacher_temperature=0.04 (now 5)" in said


PROVOKED = [
    ({"dino": {"momentum": 1.0}}, "stalled at step 25", "dino.momentum=0.9 (now 1)"),
    ({"optim": {"lr": 1e-12, "min_lr": 0.0}, "dino": {"momentum": 0.9}}, "stalled at step 25", "optim.lr=0.0005"),
    ({"head": {"bottleneck_dim": 2}}, "dimensional collapse at step", "head.bottleneck_dim=256 (now 2)"),
]


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(("changes", "verdict", "knob"), PROVOKED)
def test_what_else_can_be_wrong_is_recognised_in_a_real_training(tmp_path, caplog, changes, verdict, knob):
    with caplog.at_level(logging.WARNING):
        run_here(a_config(tmp_path, steps=45, **{**EVERY, **changes}))
    (said,) = [record.getMessage() for record in caplog.records]
    assert said.startswith(verdict) and knob in said


@pytest.mark.usefixtures("impatient")
def test_a_healthy_run_raises_no_verdict(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        run_here(a_config(tmp_path, steps=40, **EVERY))
    assert caplog.records == []


@pytest.mark.usefixtures("impatient")
def test_asked_to_stop_the_command_leaves_with_exit_code_4_and_the_checkpoints_stay(tmp_path, capsys):
    config = a_config(tmp_path, steps=50, dino=UNIFORM, collapse={"on_collapse": "stop"}, **EVERY)
    assert answer(lambda: pretrain(config), "dino-ssl pretrain") == 4
    assert "error: uniform collapse at step 25" in capsys.readouterr().err
    assert saved_steps(config) == [10, 20]
    assert '"reason": "collapsed", "exit_code": 4' in (config.output_dir / "restarts.jsonl").read_text()


@pytest.mark.usefixtures("impatient")
def test_asked_to_rewind_it_goes_back_to_the_last_healthy_checkpoint_at_half_the_rate_three_times(tmp_path, caplog):
    knobs = {**EVERY, "checkpoint": {"every_steps": 5, "keep_last": 2}}
    config = a_config(tmp_path, steps=80, dino=LATE, collapse={"on_collapse": "rewind"}, **knobs)
    with caplog.at_level(logging.WARNING), pytest.raises(CollapsedError, match="uniform collapse at step"):
        run_here(config)
    back = [record.getMessage().splitlines()[-1] for record in caplog.records if "back at" in record.getMessage()]
    assert [text.split()[5] for text in back] == ["0.5", "0.25", "0.125"]
    first, *later = saved_steps(config)
    assert f"back at step {first}," in back[-1] and len(later) == 2, "it stays though it is not among the last two"
    assert state_after(config, first)["collapse"]["sign"] == "healthy"
    assert {state_after(config, step)["collapse"]["sign"] for step in later} == {"uniform collapse"}


@pytest.mark.usefixtures("impatient")
def test_without_a_healthy_checkpoint_there_is_nothing_to_go_back_to(tmp_path):
    config = a_config(tmp_path, steps=50, dino=UNIFORM, collapse={"on_collapse": "rewind"}, **EVERY)
    with pytest.raises(CollapsedError):
        run_here(config)


def test_going_back_leaves_no_trace_of_the_steps_that_were_taken_back(tmp_path):
    """In weights, optimizer, centre, statistics and journal."""
    knobs = {"steps": 8, "log": {"every_steps": 2}}
    config = a_config(tmp_path / "whole", **knobs)
    run = run_here(config)
    killed = as_killed_after(config, {4}, tmp_path / "killed", **knobs)
    run.store.sound_step = 4
    assert run.rewind() and run.step == 4 and saved_steps(config) == [1, 2, 3, 4]
    assert [line["step"] for line in journal_without_times(config)[0]] == [1, 2, 3, 4]
    resumed = prepare(killed, torch.device("cpu"))
    begin(resumed)
    ours, theirs = (
        {**r.task.weights(), **r.task.state(), **r.task.state_of_rank(), "optimizer": r.task.optimizer.state_dict()}
        for r in (run, resumed)
    )
    assert_bitwise_equal(ours, theirs)


def test_two_ranks_stop_together(tmp_path):
    config = a_config(tmp_path, steps=200, dino=UNIFORM, collapse={"on_collapse": "stop"}, **EVERY)
    said = pretrain_on_ranks(2, config)
    assert said[0] == said[1] and said[0].startswith("CollapsedError: uniform collapse at step 105")
