import shlex
from pathlib import Path

import pytest

from dino_ssl.training.journal import EVALUATED_STEP, append_metrics
from launch import status_text
from launch.evaluations import sbatch_command
from launch.profiles import Profile
from launch.slurm import main
from tests.launch.made_runs import a_line, write_heartbeat, write_lines

PROFILE = "partition: gpu\naccount: lab\ngpus_per_node: 8\ncpus_per_gpu: 8\nmemory_per_gpu: 60\ntime: 04:00:00\n"


def options(command: str) -> dict[str, str]:
    program, *words = shlex.split(command)
    assert program == "sbatch"
    return {word.removeprefix("--").partition("=")[0]: word.partition("=")[2] for word in words}


def test_a_job_gets_the_share_of_one_rank():
    profile = Profile(partition="gpu", account="lab", nodes=4, gpus_per_node=8, cpus_per_gpu=8, memory_per_gpu=60)
    found = options(sbatch_command(profile, "a run"))
    assert found == {
        "parsable": "",
        "partition": "gpu",
        "account": "lab",
        "nodes": "1",
        "ntasks-per-node": "1",
        "gpus-per-node": "1",
        "cpus-per-task": "8",
        "mem": "60G",
        "time": "1440",
        "requeue": "",
        "job-name": "a run-evaluation",
        "output": "/dev/null",
    }


def test_cores_and_memory_of_a_node_are_shared_out_and_no_gpu_stays_none():
    found = options(sbatch_command(Profile(gpus_per_node=0, tasks_per_node=4, cpus_per_node=8, memory_per_node=6), "x"))
    assert found["cpus-per-task"] == "2" and found["mem"] == "1536M" and "gpus-per-node" not in found


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    (tmp_path / "lab.yaml").write_text(PROFILE)
    return tmp_path


SUBMIT = ["submit", "--preset", "digits", "--cluster", "lab.yaml", "--output-dir", "run", "--dry-run"]


def test_a_run_that_asks_for_evaluations_learns_how_to_send_them(here, monkeypatch):
    made = []
    monkeypatch.setattr("launch.commands.executor_of", lambda wanted: made.append(wanted) or _Nothing())
    assert main([*SUBMIT, "--evaluate.every-epochs", "5"]) == 0
    assert options(made[0].config.evaluate.submit)["job-name"] == "run-evaluation"
    assert main(SUBMIT) == 0
    assert made[1].config.evaluate.submit == ""
    assert main([*SUBMIT, "--evaluate.every-epochs", "5", "--evaluate.submit", "qsub -q short"]) == 0
    assert made[2].config.evaluate.submit == "qsub -q short"


class _Nothing:
    def script(self) -> str:
        return ""


def test_the_screen_of_a_run_says_what_its_jobs_found(tmp_path):
    run = tmp_path / "run"
    write_lines(run / "metrics.jsonl", [a_line(10, 1.0)])
    write_heartbeat(run)
    append_metrics(run, step=20, epoch=2.0, values={EVALUATED_STEP: 1500, "eval/knn_top1@20": 0.745, "eval/x": 0.1})
    for step, done in ((1500, True), (3000, False)):
        folder = run / "eval" / f"step_{step:09d}"
        folder.mkdir(parents=True)
        (folder / "sent").touch()
        (folder / "done").touch() if done else None
    lines = status_text.status([run], is_detailed=True).splitlines()
    assert "jobs say  step 1,500: knn_top1@20 74.5%; 1 of them not done" in lines
