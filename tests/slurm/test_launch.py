"""`python -m launch.slurm` on a real Slurm without accounting."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from jobs import a_recipe, final_weights, restarts, step_of, stops

from launch import run_files
from launch.profile_files import own_folder
from launch.run_files import Job
from launch.run_state import look
from launch.slurm import main

NEVER_LATE = 240  # seconds; a job starts in 5


@pytest.fixture(autouse=True)
def profiles(tmp_path, monkeypatch):
    """`here` is one rank on one node; `held` waits until it is released."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)
    own_folder().mkdir(parents=True)
    text = "gpus_per_node: 0\ncpus_per_node: 2\ntime: 30\nenvironment: {OMP_NUM_THREADS: 1}\n"
    (own_folder() / "here.yaml").write_text(text)
    (own_folder() / "held.yaml").write_text(f"{text}sbatch: {{hold: true}}\n")
    (own_folder() / "once.yaml").write_text(f"{text}requeue: false\n")


def last_job(folder: Path) -> Job:
    return run_files.jobs(folder)[-1]


def is_gone(cluster, job: str) -> bool:
    return cluster.state(job) not in ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING")


def run_to_the_end(cluster, folder: Path, reason: str = "done") -> None:
    job = last_job(folder).job
    cluster.wait_until(f"job {job} has ended", lambda: is_gone(cluster, job), NEVER_LATE)
    assert run_files.last_stop(folder) == reason, run_files.last_lines(run_files.log_of(folder, job), 40)


def wait_for_step(cluster, config, step: int) -> None:
    cluster.wait_until(f"step {step} is done", lambda: step_of(config) >= step, NEVER_LATE)


def submit(folder: Path, *words: str, cluster: str = "here") -> None:
    assert main(["submit", str(folder / "recipe.yaml"), "--cluster", cluster, *words]) == 0


def pretrain_here(folder: Path) -> None:
    command = [sys.executable, "-m", "dino_ssl", "pretrain", "recipe.yaml"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """One process, without Slurm."""
    folder = tmp_path_factory.mktemp("undisturbed")
    config = a_recipe(folder)
    pretrain_here(folder)
    return config


def assert_ends_alike(config, undisturbed) -> None:
    torch.testing.assert_close(final_weights(config), final_weights(undisturbed), atol=0, rtol=0)


def test_one_line_submits_two_nodes_of_two_ranks_which_end_as_one_process_does(cluster, tmp_path, capsys):
    """Tolerance: 2e-6 in weights that moved by more than 1e-3; sums of gradients have another order."""
    knobs = {"steps": 20, "model": {"drop_path": 0.0}, "optim": {"warmup_epochs": 0.4}}
    one, four = (a_recipe(tmp_path / name, **knobs) for name in ("one", "four"))
    submit(tmp_path / "four", "--nodes", "2", "--tasks-per-node", "2")
    folder, job = four.output_dir, last_job(four.output_dir)
    printed = capsys.readouterr().out
    for part in (str(folder), job.job, job.log.format(rank=0), "here.yaml", "launch.slurm status", "launch.slurm tail"):
        assert part in printed
    pretrain_here(tmp_path / "one")
    run_to_the_end(cluster, folder)
    assert {(event["nodes"], event["ranks"], event["launcher"]) for event in restarts(four)[:1]} == {(2, 4, "submitit")}
    assert all(Path(job.log.format(rank=rank)).exists() for rank in range(4))
    for part in ("student", "teacher", "dino_loss"):
        torch.testing.assert_close(final_weights(one)[part], final_weights(four)[part], atol=2e-6, rtol=0)


def test_slurm_is_asked_whether_it_would_run_a_job(cluster, tmp_path, capsys):
    config = a_recipe(tmp_path)
    words = ["submit", str(tmp_path / "recipe.yaml"), "--cluster", "here", "--test-only"]
    assert main(words) == 0
    assert "to start at" in capsys.readouterr().out
    assert main([*words, "--partition", "nothing"]) == 1
    assert "invalid partition" in capsys.readouterr().err.lower()
    assert main([*words[:-1], "--partition", "nothing"]) == 1
    assert "invalid partition" in capsys.readouterr().err.lower()
    assert run_files.jobs(config.output_dir) == []


def test_a_second_submission_of_a_folder_is_refused_while_the_first_waits_or_runs(cluster, tmp_path, capsys):
    config = a_recipe(tmp_path)
    submit(tmp_path, cluster="held")
    job = last_job(config.output_dir).job
    again = ["submit", str(tmp_path / "recipe.yaml"), "--cluster", "here"]
    assert main(again) == 2
    assert f"job {job} of this run is pending already" in capsys.readouterr().err
    assert look([config.output_dir])[0][0].state == "queued"
    cluster.call("scontrol", "release", job)
    wait_for_step(cluster, config, 5)
    assert main(again) == 2
    assert f"job {job} of this run is running already" in capsys.readouterr().err
    assert look([config.output_dir])[0][0].state == "running"
    assert len(run_files.jobs(config.output_dir)) == 1


def test_a_failed_rank_ends_the_job_with_its_traceback_in_status_and_new_code_mends_it(cluster, tmp_path, capsys):
    """The mistake is made in the snapshot of a job that waits: that is the code which runs."""
    config = a_recipe(tmp_path, steps=40, checkpoint={"every_steps": 10})
    submit(tmp_path, "--nodes", "2", cluster="held")
    folder, job = config.output_dir, last_job(config.output_dir).job
    loop = folder / "code/dino_ssl/training/loop.py"
    mistake = "    if run.step == 15 and distributed.rank() == 1:\n        raise ZeroDivisionError('the mistake')\n"
    text = loop.read_text()
    begin = text.index('    """Write this step\'s numbers')
    body = text.index('    """\n', begin + 10) + 8
    loop.write_text(text[:body] + mistake + text[body:])
    cluster.call("scontrol", "release", job)
    cluster.wait_until("the job has ended", lambda: is_gone(cluster, job), NEVER_LATE)
    assert cluster.state(job) == "FAILED"
    capsys.readouterr()
    assert main(["status", str(folder)]) == 0
    said = capsys.readouterr().out
    assert "rank 1 failed:" in said and "ZeroDivisionError: the mistake" in said and str(loop) in said
    assert main(["resume", str(folder), "--cluster", "here", "--new-code"]) == 0
    assert main(["tail", str(folder)]) == 0  # until the end
    assert "step 40/40" in capsys.readouterr().out
    run_to_the_end(cluster, folder)
    starts = [event["step"] for event in restarts(config) if event["event"] == "start"]
    assert starts == [0, 10] and last_job(folder).nodes == 2


def test_requeue_saves_first_and_the_run_ends_bit_for_bit_the_same(cluster, tmp_path, undisturbed, capsys):
    config = a_recipe(tmp_path)
    submit(tmp_path)
    wait_for_step(cluster, config, 20)
    assert main(["requeue", str(config.output_dir)]) == 0
    assert "saves and goes back to the queue" in capsys.readouterr().out
    run_to_the_end(cluster, config.output_dir)
    assert stops(config) == ["requeued", "done"]
    assert restarts(config)[2]["step"] == restarts(config)[1]["step"] >= 20
    assert_ends_alike(config, undisturbed)
    assert main(["tail", str(config.output_dir), "--once", "--lines", "1000"]) == 0
    assert capsys.readouterr().out.count("Starting with JobEnvironment") == 2  # both starts are in one log


def test_cancel_takes_a_waiting_and_a_running_job_and_resume_goes_on(cluster, tmp_path, undisturbed, capsys):
    config = a_recipe(tmp_path)
    submit(tmp_path, cluster="held")
    assert main(["cancel", str(config.output_dir)]) == 0
    assert "(was pending)" in capsys.readouterr().out
    assert look([config.output_dir])[0][0].state == "cancelled"
    submit(tmp_path)
    wait_for_step(cluster, config, 20)
    running = last_job(config.output_dir).job
    assert main(["cancel", str(config.output_dir)]) == 0
    assert "(was running)" in capsys.readouterr().out
    cluster.wait_until("the job is gone", lambda: is_gone(cluster, running), NEVER_LATE)
    assert cluster.state(running) == "CANCELLED" and stops(config) == ["stopped"]
    assert look([config.output_dir])[0][0].state == "cancelled"
    assert main(["resume", str(config.output_dir)]) == 0
    run_to_the_end(cluster, config.output_dir)
    assert_ends_alike(config, undisturbed)
    assert main(["cancel", str(config.output_dir)]) == 0
    assert "none of its jobs is in the queue" in capsys.readouterr().out


def test_a_chain_goes_on_where_a_job_may_not_be_requeued(cluster, tmp_path, undisturbed):
    config = a_recipe(tmp_path)
    assert main(["chain", "3", str(tmp_path / "recipe.yaml"), "--cluster", "once"]) == 0
    first, second, third = (job.job for job in run_files.jobs(config.output_dir))
    wait_for_step(cluster, config, 20)
    cluster.call("scancel", "--signal=USR2", first)
    run_to_the_end(cluster, config.output_dir)
    assert [(line["job"], line["reason"]) for line in restarts(config) if line["event"] == "stop"] == [
        (first, "stopped"), (second, "done"),
    ]  # fmt: skip
    cluster.wait_until("the last link has ended", lambda: is_gone(cluster, third), NEVER_LATE)
    assert look([config.output_dir])[0][0].state == "done"
    assert "nothing left to do" in Path(run_files.log_of(config.output_dir, third)).read_text()
    assert_ends_alike(config, undisturbed)


def test_a_sweep_with_a_failing_point_runs_that_one_again_when_it_is_mended(cluster, tmp_path, capsys):
    config = a_recipe(tmp_path, steps=10, optim={"warmup_epochs": 0.1})
    good, bad = tmp_path / "images", tmp_path / "missing"
    (tmp_path / "grid.yaml").write_text(f"data: ['{good}', '{bad}']\nseed: [0, 1]\n")
    words = ["sweep", "grid.yaml", "recipe.yaml", "--cluster", "here", "--cap", "2", "--data-elsewhere"]
    assert main([*words, "--wait"]) == 1
    said = capsys.readouterr().out
    assert "4 points, 4 to submit" in said
    states = {line.split()[0]: line.split()[3] for line in said.splitlines() if line[2:5].isdigit()}
    assert states == {"000": "done", "001": "done", "002": "failed", "003": "failed"}
    assert str(bad) in said  # the reason
    bad.symlink_to(good)
    assert main([*words, "--wait"]) == 0
    assert "4 points, 2 to submit" in capsys.readouterr().out
    assert main([*words, "--wait"]) == 0
    assert "4 points, 0 to submit" in capsys.readouterr().out
    runs = run_files.runs_in(tmp_path / "runs/grid")
    assert len(runs) == 4 and all(run_files.last_stop(run) == "done" for run in runs)
    assert [len(run_files.jobs(run)) for run in runs] == [1, 1, 2, 2]
    assert config.steps == 10


def test_checkpoints_are_evaluated_by_jobs_of_their_own_whose_results_reach_the_journal(cluster, tmp_path):
    config = a_recipe(tmp_path, evaluate={"every_epochs": 10, "methods": ["knn"]})
    submit(tmp_path)
    run_to_the_end(cluster, config.output_dir)
    folders = sorted((config.output_dir / "eval").glob("step_*"))
    assert [folder.name for folder in folders] == ["step_000000100", "step_000000200"]
    for folder in folders:
        job = (folder / "sent").read_text().strip()
        cluster.wait_until(f"job {job} has ended", lambda job=job: is_gone(cluster, job), NEVER_LATE)
        assert (folder / "done").exists() and not (folder / "failed").exists(), (folder / "log.txt").read_text()
        assert not (folder / "checkpoint.pth").exists()
    lines = [line for line in run_files.metrics(config.output_dir) if run_files.EVALUATED_STEP in line]
    assert sorted(line[run_files.EVALUATED_STEP] for line in lines) == [int(folder.name[5:]) for folder in folders]
    assert all(0 <= line["eval/knn_top1@20"] <= 1 for line in lines)
