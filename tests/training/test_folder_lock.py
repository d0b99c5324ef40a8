"""One folder is run by one process at a time; a dead holder is taken over from."""

import json
import multiprocessing
import os
import signal
import time
from dataclasses import asdict, replace

import pytest
from small_runs import SERVER, a_config, start, start_server

from dino_ssl.errors import UsageError
from dino_ssl.training import folder_lock
from dino_ssl.training.folder_lock import SECONDS_UNTIL_DEAD, FolderLock, this_process
from dino_ssl.training.heartbeat import HEARTBEAT


def leave_holder(folder, *, heartbeat_age=0.0, **changes):
    """What another process, on another machine unless `changes` say otherwise, would have left."""
    (folder / "lock").mkdir(parents=True)
    elsewhere = replace(this_process(), host="n9", machine="another", pid=77, ticks=1, since=time.time())
    holder = replace(elsewhere, **changes)
    (folder / "lock" / "000004.json").write_text(json.dumps(asdict(holder)))
    (folder / HEARTBEAT).write_text("{}")
    os.utime(folder / HEARTBEAT, (time.time() - heartbeat_age,) * 2)
    return holder


def numbers(folder):
    return sorted(path.name for path in (folder / "lock").iterdir())


def test_a_living_holder_elsewhere_is_named_and_nothing_is_changed(tmp_path):
    leave_holder(tmp_path, heartbeat_age=SECONDS_UNTIL_DEAD - 30)
    with pytest.raises(UsageError, match=r"is run by process 77 on n9, since 20.*its last heartbeat is 90 s old"):
        FolderLock(tmp_path)
    assert numbers(tmp_path) == ["000004.json"]


@pytest.mark.parametrize(
    "changes",
    [{"heartbeat_age": SECONDS_UNTIL_DEAD + 30}, {"state": "gone"}],
    ids=["an old heartbeat", "a holder that left"],
)
def test_a_folder_that_nobody_runs_is_taken(tmp_path, changes):
    leave_holder(tmp_path, **changes)
    lock = FolderLock(tmp_path)
    assert lock.is_mine() and numbers(tmp_path) == ["000005.json"]


def test_a_requeued_job_takes_over_from_its_earlier_start_at_once(tmp_path, monkeypatch):
    leave_holder(tmp_path, job="12_3", restart=1)
    for name, value in {"JOB_ID": "15", "ARRAY_JOB_ID": "12", "ARRAY_TASK_ID": "3", "RESTART_COUNT": "2"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert FolderLock(tmp_path).is_mine()


@pytest.mark.parametrize(
    ("in_queue", "heartbeat_age", "is_refused"),
    [
        ("PENDING", 10_000, True),
        ("SUSPENDED", 10_000, True),
        ("RUNNING", 0, True),
        ("RUNNING", 10_000, False),
        ("", 0, False),
        (None, 0, True),
        (None, 10_000, False),
    ],
)
def test_a_job_holds_its_folder_while_slurm_says_so(tmp_path, monkeypatch, in_queue, heartbeat_age, is_refused):
    leave_holder(tmp_path, job="12", heartbeat_age=heartbeat_age)
    monkeypatch.setattr(folder_lock, "_state_in_queue", lambda job: in_queue)
    if is_refused:
        with pytest.raises(UsageError, match="is run by job 12, process 77 on n9"):
            FolderLock(tmp_path)
    else:
        assert FolderLock(tmp_path).is_mine()


def test_a_process_that_was_killed_is_taken_over_from_at_once_and_one_that_lives_is_not(tmp_path):
    start_server()
    config = a_config(tmp_path, steps=100_000, checkpoint={"every_steps": 100_000})
    process = start(config)
    heartbeat = config.output_dir / HEARTBEAT
    end = time.monotonic() + 120
    while not heartbeat.exists():
        assert process.is_alive() and time.monotonic() < end
        time.sleep(0.01)
    with pytest.raises(UsageError, match=f"is run by process {process.pid} on .*it is alive"):
        FolderLock(config.output_dir)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert FolderLock(config.output_dir).is_mine()


def take(folder, begin, results):
    begin.wait()
    try:
        lock = FolderLock(folder)
    except UsageError:
        results.put("refused")
    else:
        results.put("taken")
        begin.wait()  # alive until all have tried
        assert lock.is_mine()


def test_of_many_that_come_at_once_one_gets_the_folder(tmp_path):
    leave_holder(tmp_path, state="gone")
    many = 8
    with multiprocessing.Manager() as manager:
        begin, results = manager.Barrier(many + 1), manager.Queue()
        processes = [SERVER.Process(target=take, args=(tmp_path, begin, results)) for _ in range(many)]
        for process in processes:
            process.start()
        begin.wait(timeout=60)
        said = sorted(results.get(timeout=60) for _ in range(many))
        begin.abort()
        for process in processes:
            process.join()
    assert said == ["refused"] * (many - 1) + ["taken"]
