"""Signals to real processes: what they save, and how they leave."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from small_runs import a_config, assert_bitwise_equal, run_here, saved_steps, state_after

from dino_ssl.config_yaml import write_config

LONG = 100_000  # steps, of which none of these tests sees the last
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}


def start(config, folder, *before):
    """`dino-ssl pretrain`, after the Python statements `before`."""
    write_config(config, folder / "recipe.yaml")
    program = "\n".join([*before, "import sys; from dino_ssl.cli import main; sys.exit(main(sys.argv[1:]))"])
    command = [sys.executable, "-c", program, "pretrain", "recipe.yaml"]
    return subprocess.Popen(command, cwd=folder, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)


@pytest.fixture(autouse=True)
def none_left():
    """Whatever a failed test has started is ended."""
    before = set(children(os.getpid()))
    yield
    for pid in set(children(os.getpid())) - before:
        if "recipe.yaml" in Path(f"/proc/{pid}/cmdline").read_text():
            os.kill(pid, signal.SIGKILL)


def last_step(config):
    path = config.output_dir / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return json.loads(lines[-1])["step"] if lines else 0


def wait_until(condition, process, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < end
        time.sleep(0.01)


def end_of(process):
    _, said = process.communicate(timeout=120)
    return process.returncode, said


def last_stop(config):
    return json.loads((config.output_dir / "restarts.jsonl").read_text().splitlines()[-1])


@pytest.fixture
def long_run(tmp_path):
    return a_config(tmp_path, steps=LONG, checkpoint={"every_steps": LONG, "keep_last": 1})


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGUSR1, 75), (signal.SIGUSR2, 75)], ids=str
)
def test_a_signal_saves_at_the_end_of_the_step_and_the_run_goes_on_bit_for_bit(tmp_path, long_run, number, code):
    process = start(long_run, tmp_path)
    wait_until(lambda: last_step(long_run) >= 3, process)
    process.send_signal(number)
    assert end_of(process)[0] == code
    stop = last_stop(long_run)
    assert (stop["reason"], stop["exit_code"], stop["text"]) == ("stopped", code, signal.Signals(number).name)
    assert saved_steps(long_run) == [stop["step"]]
    undisturbed = a_config(tmp_path / "other", steps=LONG, data=long_run.data)
    heartbeat = json.loads((long_run.output_dir / "heartbeat.json").read_text())
    assert (heartbeat["state"], heartbeat["step"]) == ("stopped", stop["step"])
    stop_after(undisturbed, stop["step"])
    assert_bitwise_equal(*(state_after(config, stop["step"]) for config in (undisturbed, long_run)))


def stop_after(config, step):
    """Train in this process up to `step`, and save there."""

    class EnoughError(Exception):
        pass

    from dino_ssl.training import loop  # noqa: PLC0415

    original = loop.after_step

    def after_step(run, now):
        original(run, now)
        if run.step == step:
            raise EnoughError

    loop.after_step = after_step
    try:
        with pytest.raises(EnoughError):
            run_here(config)
    finally:
        loop.after_step = original


def test_the_same_signal_again_kills_at_once_though_the_main_thread_hangs(tmp_path, long_run):
    hang = "import threading; from dino_ssl.training import loop; loop.after_step = lambda *_: hang()"
    define = f"def hang(): open({str(tmp_path / 'hangs')!r}, 'w').close(); threading.Event().wait()"
    process = start(long_run, tmp_path, hang, define)
    wait_until((tmp_path / "hangs").exists, process)
    process.send_signal(signal.SIGUSR2)
    end = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < end:  # within a second it counts as one signal
        time.sleep(0.1)
        process.send_signal(signal.SIGUSR2)
    assert end_of(process)[0] == 128 + signal.SIGUSR2


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGUSR2, 75)], ids=["TERM", "USR2"])
def test_before_the_first_step_and_after_the_last_a_signal_ends_the_run_at_once(tmp_path, number, code):
    places = {
        "pretraining.prepare": "prepare",
        "pretraining.final_report": "report",
    }
    for place, name in places.items():
        config = a_config(tmp_path / name, steps=2)
        define = f"def hang(*_): open({str(tmp_path / name / 'hangs')!r}, 'w').close(); threading.Event().wait()"
        process = start(
            config, tmp_path / name,
            f"import threading; from dino_ssl.training import pretraining; {place} = 0", define,
            f"{place} = hang",
        )  # fmt: skip
        wait_until((tmp_path / name / "hangs").exists, process)
        process.send_signal(number)
        assert end_of(process)[0] == code
    assert last_stop(config)["reason"] == "stopped"
    assert run_here(config).is_over()


def test_a_signal_in_the_midst_of_a_save_waits_for_its_end(tmp_path):
    config = a_config(tmp_path, steps=LONG, checkpoint={"every_steps": 3, "keep_last": 1})
    told = "import os, signal; from dino_ssl.training import checkpoint; publish = checkpoint._publish"
    define = "def tell(*a): os.kill(os.getpid(), signal.SIGTERM); publish(*a)"
    process = start(config, tmp_path, told, define, "checkpoint._publish = tell")
    assert end_of(process)[0] == 143
    assert saved_steps(config) == [3] == [last_stop(config)["step"]]


def test_ctrl_c_is_recorded_and_exits_130(tmp_path, long_run):
    process = start(long_run, tmp_path, "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)")
    wait_until(lambda: last_step(long_run) >= 3, process)
    process.send_signal(signal.SIGINT)
    assert end_of(process)[0] == 130
    assert last_stop(long_run)["reason"] == "interrupted"


def children(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_worker_processes_ignore_what_slurm_sends_to_all_and_end_with_their_parent(tmp_path):
    config = a_config(tmp_path, steps=LONG, loader={"num_workers": 2, "num_processes": 2})
    process = start(config, tmp_path)
    wait_until(lambda: last_step(config) >= 3, process)
    workers = children(process.pid)
    assert len(workers) >= 2
    for worker in workers:
        for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM):
            os.kill(worker, number)
    step = last_step(config)
    wait_until(lambda: last_step(config) > step + 20, process)  # more than they make ahead
    for pid in (*workers, process.pid):
        os.kill(pid, signal.SIGTERM)
    assert end_of(process)[0] == 143
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)


def test_the_handlers_of_whoever_calls_pretrain_are_given_back():
    from dino_ssl.training import signals  # noqa: PLC0415

    def mine(number, frame):
        raise AssertionError

    before = signal.signal(signal.SIGTERM, mine)
    try:
        with signals.listening(lambda number: None):
            assert signal.getsignal(signal.SIGTERM) is not mine
        assert signal.getsignal(signal.SIGTERM) is mine
    finally:
        signal.signal(signal.SIGTERM, before)
    assert torch.get_num_threads() == 1


def test_a_disk_that_is_full_when_a_run_ends_does_not_hide_why_it_ends(tmp_path, long_run):
    program = (
        "from dino_ssl.training import lifetime, loop",
        "def full(*_): raise OSError(28, 'No space left on device')",
        "def fail(*_): lifetime._Record._append = full; raise loop.RunError('the reason')",
        "loop.after_step = fail",
    )
    code, said = end_of(start(long_run, tmp_path, *program))
    assert code == 1 and "error: the reason" in said
    assert f"cannot write in {long_run.output_dir}: No space left on device" in said
