"""A run on a real Slurm ends as the undisturbed one does, whatever stops it on the way."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from jobs import FAILING, REPORTING, WAIT, WAITING, a_recipe, a_script, final_weights, restarts, step_of, stops

TWO_RANKS = ("--nodes=2", "--ntasks-per-node=1")
ENDED = ("COMPLETED", "FAILED", "TIMEOUT", "CANCELLED", "NODE_FAIL")
SHORT = {"steps": 60, "checkpoint": {"every_steps": 25}}
NEVER_LATE = 240  # seconds; a job starts in 5 to 10


def log_of(config):
    path = config.output_dir.parent / "job.log"
    return path.read_text() if path.exists() else ""


def end_of(cluster, job):
    cluster.wait_until("the job has ended", lambda: cluster.state(job) in ENDED, NEVER_LATE)
    return cluster.state(job)


def wait_for_step(cluster, config, step):
    cluster.wait_until(f"step {step} is done", lambda: step_of(config) >= step, NEVER_LATE)


@pytest.fixture(scope="module")
def undisturbed(running_cluster, tmp_path_factory):
    """Two ranks on two nodes, which nothing disturbs."""
    folder = tmp_path_factory.mktemp("undisturbed")
    config = a_recipe(folder, **SHORT)
    job = running_cluster.submit(a_script(folder, *TWO_RANKS))
    assert end_of(running_cluster, job) == "COMPLETED", log_of(config)
    assert "2 ranks on 2 nodes, from Slurm" in log_of(config)
    assert stops(config) == ["done"]
    return config


def assert_ends_alike(cluster, job, config, undisturbed):
    assert end_of(cluster, job) == "COMPLETED", log_of(config)
    torch.testing.assert_close(final_weights(config), final_weights(undisturbed), atol=0, rtol=0)


def steps_of_events(config):
    return [(line["event"], line["step"]) for line in restarts(config)]


def test_two_nodes_of_two_tasks_end_as_one_process_with_the_same_global_batch(cluster, tmp_path):
    """Tolerance: 2e-6, where weights have moved by 1e-3 and more; sums of gradients have another order."""
    knobs = {"steps": 20, "model": {"drop_path": 0.0}, "optim": {"warmup_epochs": 0.4}}
    one, four = (a_recipe(tmp_path / name, **knobs) for name in ("one", "four"))
    command = [sys.executable, "-m", "dino_ssl", "pretrain", "recipe.yaml"]
    subprocess.run(command, cwd=tmp_path / "one", check=True, capture_output=True)
    job = cluster.submit(a_script(tmp_path / "four", "--nodes=2", "--ntasks-per-node=2"))
    assert end_of(cluster, job) == "COMPLETED", log_of(four)
    assert "4 ranks on 2 nodes, from Slurm" in log_of(four)
    ours, theirs = final_weights(one), final_weights(four)
    for part in ("student", "teacher", "dino_loss"):
        torch.testing.assert_close(ours[part], theirs[part], atol=2e-6, rtol=0)


def test_a_job_that_is_requeued_from_outside_saves_and_ends_bit_for_bit_the_same(cluster, tmp_path, undisturbed):
    config = a_recipe(tmp_path, **SHORT)
    job = cluster.submit(a_script(tmp_path, *TWO_RANKS, command=WAITING))
    wait_for_step(cluster, config, WAIT)
    cluster.call("scontrol", "requeue", job)
    assert_ends_alike(cluster, job, config, undisturbed)
    assert stops(config) == ["stopped", "done"] and [line["restart"] for line in restarts(config)] == [0, 0, 1, 1]
    saved = restarts(config)[1]["step"]
    assert WAIT <= saved <= WAIT + 2 and restarts(config)[2]["step"] == saved


def test_a_preempted_job_saves_goes_back_to_the_queue_and_ends_the_same(cluster, tmp_path, undisturbed):
    config = a_recipe(tmp_path, **SHORT)
    nodes = ("--nodelist=n1,n2", "--partition=preempt", "--signal=USR2@60")
    job = cluster.submit(a_script(tmp_path, *TWO_RANKS, *nodes, command=WAITING))
    wait_for_step(cluster, config, WAIT)
    urgent = cluster.call("sbatch", "--parsable", "--exclusive", "--nodelist=n1", "-o/dev/null", "--wrap=true").strip()
    assert_ends_alike(cluster, job, config, undisturbed)
    assert end_of(cluster, urgent) == "COMPLETED"
    assert stops(config) == ["requeued", "done"]


def test_a_job_warned_of_its_time_limit_goes_back_to_the_queue_and_ends_the_same(cluster, tmp_path, undisturbed):
    config = a_recipe(tmp_path, **SHORT)
    job = cluster.submit(a_script(tmp_path, *TWO_RANKS, "--time=2", "--signal=USR1@60", command=WAITING))
    assert_ends_alike(cluster, job, config, undisturbed)
    assert [line["text"].split(";")[0] for line in restarts(config) if line["event"] == "stop"] == ["SIGUSR1", "done"]


def test_a_job_that_loses_a_node_goes_on_from_its_last_checkpoint_and_ends_the_same(cluster, tmp_path, undisturbed):
    config = a_recipe(tmp_path, **SHORT)
    job = cluster.submit(a_script(tmp_path, *TWO_RANKS, "--nodelist=n1,n2", command=WAITING))
    wait_for_step(cluster, config, WAIT)
    cluster.crash("n2")
    try:
        cluster.wait_until("Slurm has noticed", lambda: cluster.detail(job, "Restarts") == "1", NEVER_LATE)
    finally:
        cluster.boot("n2")
    assert_ends_alike(cluster, job, config, undisturbed)
    assert ("start", 25) in steps_of_events(config)


def test_a_cancelled_job_saves_and_stays_cancelled(cluster, tmp_path):
    config = a_recipe(tmp_path, **SHORT)
    job = cluster.submit(a_script(tmp_path, *TWO_RANKS, command=WAITING))
    wait_for_step(cluster, config, WAIT)
    cluster.call("scancel", job)
    assert end_of(cluster, job) == "CANCELLED"
    cluster.wait_until("it has stopped", lambda: stops(config) == ["stopped"])
    assert restarts(config)[-1]["step"] >= WAIT and cluster.state(job) == "CANCELLED"


def test_a_rank_that_fails_ends_the_job_at_once_and_leaves_its_traceback(cluster, tmp_path):
    config = a_recipe(tmp_path, **SHORT)
    job = cluster.submit(a_script(tmp_path, *TWO_RANKS, command=FAILING))
    assert end_of(cluster, job) == "FAILED"
    first = (config.output_dir / "logs" / "rank_1.err").read_text()
    assert "ZeroDivisionError: the bug of this test" in first and first.split()[1] == "n2"


def test_a_second_job_of_one_folder_is_refused_and_the_first_is_left_alone(cluster, tmp_path):
    config = a_recipe(tmp_path, **SHORT)
    first = cluster.submit(a_script(tmp_path, *TWO_RANKS, command=WAITING))
    wait_for_step(cluster, config, WAIT)
    shutil.copy(tmp_path / "job.sh", tmp_path / "second.sh")
    # Of one rank: srun reports the largest exit code of all, and ends the others by SIGTERM (143).
    second = cluster.submit(tmp_path / "second.sh", "--nodes=1", f"--output={tmp_path}/second.log")
    assert end_of(cluster, second) == "FAILED"
    assert cluster.detail(second, "ExitCode") == "2:0"
    said = (tmp_path / "second.log").read_text()
    assert f"error: output_dir={config.output_dir} is run by job {first}, process " in said
    assert f"stop it with scancel {first}" in said
    cluster.call("scancel", "--signal=USR2", first)
    assert end_of(cluster, first) == "COMPLETED", log_of(config)
    assert {line["job"] for line in restarts(config)} == {first}


def test_a_signal_during_the_report_is_answered_though_the_other_ranks_wait_for_it(cluster, tmp_path, undisturbed):
    config = a_recipe(tmp_path, **SHORT)
    job = cluster.submit(a_script(tmp_path, *TWO_RANKS, command=REPORTING))
    wait_for_step(cluster, config, config.steps)
    heartbeat = config.output_dir / "heartbeat.json"
    cluster.wait_until("it reports", lambda: json.loads(heartbeat.read_text())["state"] == "reporting")
    cluster.call("scancel", "--signal=USR2", job)
    assert_ends_alike(cluster, job, config, undisturbed)
    assert stops(config) == ["requeued", "done"] and steps_of_events(config)[2] == ("start", config.steps)


def test_of_an_array_only_the_task_that_was_stopped_is_requeued(cluster, tmp_path):
    """The number of one of its tasks is also that of the whole array."""
    configs = [a_recipe(tmp_path / str(task), **SHORT) for task in range(2)]
    in_its_folder = f"bash -c 'cd $SLURM_ARRAY_TASK_ID && exec {WAITING}'"
    job = cluster.submit(a_script(tmp_path, "--array=0-1", command=in_its_folder))
    for config in configs:
        wait_for_step(cluster, config, WAIT)
    for task, config in enumerate(configs):
        cluster.call("scancel", "--signal=USR2", f"{job}_{task}")
        cluster.wait_until(f"task {task} is done", lambda config=config: stops(config) == ["requeued", "done"])
        assert [line["job"] for line in restarts(config)] == [f"{job}_{task}"] * 4
        if task == 0:
            assert len(restarts(configs[1])) == 1


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """What the wheel installs, in a folder of its own; and nothing of the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    root = Path(__file__).parents[2]
    for name in ("setup.cfg", "setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(root / name, folder)
    shutil.copytree(root / "dino_ssl", folder / "dino_ssl", ignore=shutil.ignore_patterns("__pycache__"))
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--target",
        str(folder / "site"),
        str(folder),
    ]
    subprocess.run(pip, check=True)
    shutil.rmtree(folder / "dino_ssl")
    return folder / "site"


def test_a_hand_written_script_with_the_installed_command_is_requeued_the_same_way(
    cluster, tmp_path, undisturbed, installed, monkeypatch
):
    monkeypatch.setenv("PYTHONPATH", str(installed))
    monkeypatch.setenv("PATH", f"{installed}/bin:{os.environ['PATH']}")
    config = a_recipe(tmp_path, **SHORT)
    job = cluster.submit(a_script(tmp_path, *TWO_RANKS, "--signal=USR2@120", command="dino-ssl pretrain recipe.yaml"))
    wait_for_step(cluster, config, 2)
    cluster.call("scancel", "--signal=USR2", job)
    assert_ends_alike(cluster, job, config, undisturbed)
    assert stops(config) == ["requeued", "done"]
