"""A run that was stopped, killed or damaged ends bit for bit where the undisturbed one ends."""

import logging
import random
import signal
import time

import pytest
import torch
from small_runs import (
    STEPS_PER_EPOCH,
    a_config,
    as_killed_after,
    assert_bitwise_equal,
    checkpoint_path,
    journal_without_times,
    run_here,
    saved_steps,
    start,
    start_server,
    state_after,
    write_digits,
)

from dino_ssl.errors import RunError, UsageError
from dino_ssl.training.prepare import begin
from dino_ssl.training.pretraining import prepare

STEPS = 8  # an epoch and three steps


def assert_same_end(config, other):
    assert_bitwise_equal(state_after(config, STEPS), state_after(other, STEPS))
    assert journal_without_times(config) == journal_without_times(other)


@pytest.mark.parametrize(
    "knobs",
    [
        {"micro_batch_size": 8},
        {"optim": {"name": "sgd"}, "loader": {"num_workers": 1}, "log": {"every_steps": 4}},
        {"optim": {"name": "lars"}, "compat": "dino", "knn": {"every_epochs": 1, "k": 5}},
        {"model": {"name": "timm/test_resnet"}, "head": {"batch_norm": True}, "micro_batch_size": 8},
    ],
    ids=["accumulation", "sgd, a worker", "lars, compat, k-NN", "batch norm, accumulation"],
)
def test_n_steps_are_k_steps_a_stop_and_the_rest(tmp_path, knobs):
    undisturbed = a_config(tmp_path, steps=STEPS, **knobs)
    run_here(undisturbed)
    for stop in (3, STEPS_PER_EPOCH):
        resumed = as_killed_after(undisturbed, {stop}, tmp_path / f"stopped at {stop}", **knobs)
        run_here(resumed)
        assert_same_end(undisturbed, resumed)


def test_a_resnet_with_batch_norm_sgd_and_a_worker_resumes_exactly(tmp_path):
    knobs = {
        "model": {"name": "resnet18"},
        "head": {"batch_norm": True},
        "optim": {"name": "sgd"},
        "loader": {"num_workers": 1},
        "micro_batch_size": 8,
        "checkpoint": {"every_steps": 6},  # 130 MB each
    }
    undisturbed = a_config(tmp_path, steps=STEPS, **knobs)
    run_here(undisturbed)
    resumed = as_killed_after(undisturbed, {6}, tmp_path / "stopped", **knobs)
    run_here(resumed)
    assert_same_end(undisturbed, resumed)


def test_runs_with_one_seed_are_the_same_and_with_another_are_not(tmp_path):
    ends = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        config = a_config(tmp_path / name, steps=2, seed=seed)
        run_here(config)
        ends.append(state_after(config, 2)["student"])
    assert_bitwise_equal(ends[0], ends[1])
    assert not any(torch.equal(ends[0][key], ends[2][key]) for key in ends[0] if key.endswith("weight_v"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run that nothing disturbed; not to be written to."""
    config = a_config(tmp_path_factory.mktemp("finished"), steps=STEPS)
    run_here(config)
    return config


def test_a_finished_run_is_left_as_it_is(tmp_path, finished):
    again = as_killed_after(finished, {STEPS - 1, STEPS}, tmp_path)
    files = {path: path.read_bytes() for path in (again.output_dir / "checkpoints").iterdir()}
    assert run_here(again).step == STEPS
    assert {path: path.read_bytes() for path in (again.output_dir / "checkpoints").iterdir()} == files
    assert_same_end(finished, again)


def test_a_kill_between_the_last_checkpoint_and_its_second_name_is_made_good(tmp_path, finished):
    killed = as_killed_after(finished, {STEPS - 1, STEPS}, tmp_path)
    newest = killed.output_dir / "checkpoints" / "checkpoint.pth"
    newest.unlink()
    newest.hardlink_to(checkpoint_path(killed, STEPS - 1))
    run_here(killed)
    assert torch.load(newest, weights_only=True)["step"] == STEPS


def test_knobs_that_touch_no_weight_may_change_when_a_run_resumes(tmp_path, finished):
    changes = {"log": {"every_steps": 3}, "loader": {"num_workers": 1}, "checkpoint": {"every_steps": 4}}
    resumed = as_killed_after(finished, {3}, tmp_path, **changes, knn={"every_epochs": 1, "k": 5})
    run_here(resumed)
    ours, theirs = state_after(finished, STEPS), state_after(resumed, STEPS)
    for state in (ours, theirs):
        del state["journal"], state["collapse"]  # which lines there were
    assert_bitwise_equal(ours, theirs)


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut_off(path):
    path.write_bytes(path.read_bytes()[:5000])


@pytest.mark.parametrize("damage", [flip_a_bit, cut_off])
def test_a_damaged_newest_checkpoint_is_named_and_the_run_goes_on_from_the_one_before(
    tmp_path, finished, caplog, damage
):
    damaged = as_killed_after(finished, {2, 4, 6}, tmp_path)
    damage(checkpoint_path(damaged, 6))
    with caplog.at_level(logging.INFO, logger="dino_ssl"):
        run_here(damaged)
    warning, note = (record for record in caplog.records if record.name == "dino_ssl")
    assert warning.levelname == "WARNING" and f"{checkpoint_path(damaged, 6)} is damaged" in warning.message
    assert note.message == f"resumed at step 4 of {STEPS} from {checkpoint_path(damaged, 4)}"
    assert_same_end(finished, damaged)


def a_refusal(config, kind):
    """The error with which the run does not begin; nothing in its folder may change."""
    files = {path: path.read_bytes() for path in config.output_dir.rglob("*") if path.is_file()}
    with pytest.raises(kind) as error:
        begin(prepare(config, torch.device("cpu")))
    changed = {path.name for path, data in files.items() if path.read_bytes() != data}
    assert changed <= {"run.json"}
    return str(error.value)


def test_a_run_of_which_every_checkpoint_is_damaged_neither_starts_anew_nor_deletes_any(tmp_path, finished):
    damaged = as_killed_after(finished, {2, 4}, tmp_path)
    for step in (2, 4):
        cut_off(checkpoint_path(damaged, step))
    message = a_refusal(damaged, RunError)
    assert all(f"{checkpoint_path(damaged, step)} is damaged" in message for step in (2, 4))
    assert "choose another output_dir" in message


def test_a_checkpoint_of_another_architecture_is_named(tmp_path, finished):
    narrow = as_killed_after(finished, {2}, tmp_path / "narrow")
    other = a_config(tmp_path / "other", steps=4, model={"name": "timm/test_resnet"})
    run_here(other)
    checkpoint_path(narrow, 3).write_bytes(checkpoint_path(other, 3).read_bytes())
    message = a_refusal(narrow, RunError)
    assert f"{checkpoint_path(narrow, 3)} holds another architecture (timm/test_resnet)" in message
    assert "write --output-dir for a new folder" in message


def test_a_checkpoint_of_another_tool_is_named(tmp_path, finished):
    mixed = as_killed_after(finished, {2}, tmp_path)
    torch.save({"student": {}, "teacher": {}, "epoch": 3}, checkpoint_path(mixed, 3))
    assert f"{checkpoint_path(mixed, 3)} is not a checkpoint of this tool's" in a_refusal(mixed, RunError)


def test_other_images_under_the_same_name_are_noticed(tmp_path):
    config = a_config(tmp_path, steps=2)
    run_here(config)
    write_digits(tmp_path / "images", first=500)
    message = a_refusal(config, RunError)
    assert f"data={config.data} is not what {checkpoint_path(config, 2)} was trained on" in message
    assert "write --output-dir for a new run" in message


def test_another_configuration_is_refused_with_every_difference_before_anything_is_written(tmp_path, finished):
    changes = {"optim": {"lr": 0.5}, "batch_size": 8, "crops": {"num_local_crops": 0}}
    message = a_refusal(as_killed_after(finished, {2}, tmp_path, **changes), UsageError)
    assert "holds another run; write --output-dir for a new folder, or give these their old values" in message
    assert message.endswith("batch_size: 16 -> 8; crops.num_local_crops: 2 -> 0; optim.lr: 0.004 -> 0.5")


KILLS, LONG = 20, 48  # steps; each kill lets two finish at most


def wait_until(condition, process):
    """Look again every millisecond until the condition holds or the process ended."""
    while not condition() and process.is_alive():
        process.join(timeout=0.001)


def newest(config):
    return max(saved_steps(config), default=0)


def is_saving(config):
    return any((config.output_dir / "checkpoints").glob("*.tmp"))


def run_and_time(config):
    """An undisturbed run; its seconds from the start to the first checkpoint, and between two."""
    start_server()
    begin = time.monotonic()
    process = start(config)
    wait_until(lambda: newest(config) > 0, process)
    first = time.monotonic()
    process.join()
    assert process.exitcode == 0
    return first - begin, (time.monotonic() - first) / (config.steps - 1)


def wait_for_a_moment(config, process, dice, seconds_to_start, seconds_per_step):
    """Any moment of a start or of the two steps after it, or the midst of a save; True if it is the latter."""
    steps, first = dice.randrange(3), newest(config)
    wait_until(lambda: newest(config) >= first + steps, process)
    # A finished save has cleared away what the last kill left, so that a temporary file is a new one.
    if steps and dice.random() < 0.7:
        wait_until(lambda: is_saving(config), process)
        return True
    end = time.monotonic() + dice.uniform(0, seconds_per_step if steps else seconds_to_start)
    wait_until(lambda: time.monotonic() >= end or newest(config) >= first + 2, process)
    return False


def test_twenty_kills_at_random_moments_and_during_saves_leave_no_trace_in_the_weights(tmp_path):
    knobs = {"steps": LONG, "micro_batch_size": 8, "checkpoint": {"keep_last": 2}, "log": {"every_steps": 3}}
    undisturbed, killed = (a_config(tmp_path / name, **knobs) for name in ("undisturbed", "killed"))
    times = run_and_time(undisturbed)
    dice, during_saves, kill_steps = random.Random(0), 0, []
    for _ in range(KILLS):
        process = start(killed)
        caught = wait_for_a_moment(killed, process, dice, *times)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL, "it ended before it was killed"
        during_saves += caught and is_saving(killed)
        kill_steps.append(newest(killed))
    process = start(killed)
    process.join()
    assert process.exitcode == 0 and during_saves >= 3 and len(set(kill_steps)) >= KILLS // 2
    assert_bitwise_equal(state_after(undisturbed, LONG), state_after(killed, LONG))
    assert journal_without_times(undisturbed) == journal_without_times(killed)
    # Nothing of the killed saves is left, and no more checkpoints stay than without kills.
    names = [sorted(p.name for p in (c.output_dir / "checkpoints").iterdir()) for c in (undisturbed, killed)]
    assert names[0] == names[1]
