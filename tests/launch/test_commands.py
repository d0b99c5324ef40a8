"""The command line of the launcher on a machine without Slurm: what it checks, prints and refuses."""

import pickle
import subprocess
import sys
from pathlib import Path

import cloudpickle
import numpy as np
import pytest
from made_runs import add_job, start, stop, without_slurm, write_heartbeat, write_lines

from dino_ssl.config_flags import configure
from dino_ssl.config_kinds import CLASSIFY, PRETRAIN
from dino_ssl.config_yaml import write_config
from dino_ssl.errors import UsageError
from launch.job import TrainingJob
from launch.profile_files import choose, own_folder
from launch.run_files import record_job
from launch.slurm import COMMANDS, OVERVIEW, main
from launch.submission import claimed, executor_of, job_of, job_record, request
from launch.words import take_apart


@pytest.fixture(autouse=True)
def no_slurm(monkeypatch, tmp_path):
    without_slurm(monkeypatch, tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def recipe(tmp_path) -> Path:
    """Sixty-four grey images, and a recipe for them."""
    (tmp_path / "images").mkdir()
    np.save(tmp_path / "images/x_train.npy", np.random.default_rng(0).integers(0, 255, (64, 8, 8), dtype=np.uint8))
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "preset: digits\ndata: images\nbatch_size: 16\nepochs: 1\nknn: {every_epochs: 0}\n"
        "optim: {warmup_epochs: 0, freeze_last_layer_epochs: 0}\n"
        "dino: {warmup_teacher_temperature_epochs: 0}\n"
    )
    return path


def errors(capsys, *words: str) -> list[str]:
    """The problems of a command that has to end with exit code 2."""
    assert main(words) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1] == "nothing was submitted"
    return [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]


def test_a_dry_run_prints_a_script_that_bash_can_read_and_leaves_nothing_behind(recipe, capsys, tmp_path):
    before = set(tmp_path.rglob("*"))
    assert main(["submit", str(recipe), "--cluster", "cpu", "--nodes", "2", "--dry-run", "--output-dir", "a b"]) == 0
    said = capsys.readouterr()
    assert said.out.startswith("#!/bin/bash\n")
    assert "cpu.yaml (named by --cluster): 2 nodes x 1 rank" in said.err
    assert f"--output '{tmp_path}/a b/logs/%j_%t_log.out'" in said.out
    assert f"#SBATCH --chdir={tmp_path}" in said.out
    subprocess.run(["/bin/bash", "-n"], input=said.out, text=True, check=True)
    assert set(tmp_path.rglob("*")) == before


def test_the_script_that_is_printed_is_the_one_that_is_submitted(recipe, capsys, tmp_path):
    main(["submit", str(recipe), "--cluster", "cpu", "--dry-run", "--output-dir", "run"])

    config, _ = configure([str(recipe), "--output-dir", "run"], PRETRAIN)
    wanted = request(config, choose("cpu", {}), [], tmp_path)
    submitted = executor_of(wanted)
    wanted.place.logs.mkdir(parents=True)
    text = submitted._make_submission_file_text(submitted._submitit_command_str, "x")
    assert capsys.readouterr().out == text + "\n"


def test_mistakes_in_words_profile_recipe_and_flags_come_at_once(recipe, capsys):
    own_folder().mkdir(parents=True)
    (own_folder() / "mine.yaml").write_text("partitoin: x\n")
    recipe.write_text(recipe.read_text() + "epoch: 3\n")
    found = errors(
        capsys, "submit", str(recipe), "--cluster", "mine", "--nodes", "two", "--optim.lrr", "1", "--dry-rum"
    )
    assert len(found) == 5
    for problem, part in zip(found, ("--dry-rum", "--nodes", "'epoch'", "--optim.lrr", "'partitoin'"), strict=False):
        assert part in problem or any(part in other for other in found)


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--batch-size", "30", "--nodes", "4"], "batch_size=30 does not divide among 4 ranks"),
        (["--batch-size", "128"], "batch_size=128 is larger than the data set (64 images"),
        (["--data", "nothing"], "nothing"),
        (["--device", "cuda"], "device=cuda, but "),
        (["--nodes"], "--nodes has no value"),
        (["--clustr", "cpu"], "unknown flag --clustr; did you mean '--cluster'?"),
        (["--time", "1:30"], '--time="1:30" must be minutes'),
    ],
)
def test_what_the_job_would_refuse_is_refused_before_it_waits(recipe, capsys, words, problem):
    (only,) = errors(capsys, "submit", str(recipe), "--cluster", "cpu", "--dry-run", *words)
    assert problem in only


def test_data_that_only_the_nodes_see_are_not_opened(recipe, capsys):
    words = ["submit", str(recipe), "--cluster", "cpu", "--dry-run", "--data", "/on/the/nodes"]
    assert main(words) == 2
    assert main([*words, "--data-elsewhere"]) == 0


def test_without_slurm_nothing_is_written_and_the_dry_run_is_named(recipe, capsys, tmp_path):
    assert main(["submit", str(recipe), "--cluster", "cpu", "--output-dir", "run"]) == 1
    assert "--dry-run" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert main(["submit", str(recipe), "--cluster", "cpu", "--test-only"]) == 1
    assert "there is no sbatch here" in capsys.readouterr().err


def test_a_finetuning_is_checked_submitted_and_resumed_under_its_own_command(capsys, tmp_path):
    words = ["finetune", "classify", "--data", "digits", "--model.name", "vit_micro", "--crops.size", "32"]
    assert main(["submit", *words, "--cluster", "cpu", "--output-dir", "run", "--dry-run"]) == 0
    assert "#SBATCH --job-name=dino-run" in capsys.readouterr().out
    (only,) = errors(capsys, "submit", *words, "--cluster", "cpu", "--dry-run", "--model.weights", "nowhere.pth")
    assert "nowhere.pth does not exist" in only
    (only,) = errors(capsys, "submit", "finetune", "clasify", "--cluster", "cpu", "--dry-run")
    assert "did you mean 'classify'?" in only
    config, _ = configure([*words[2:], "--output-dir", "run"], CLASSIFY)
    wanted = request(config, choose("cpu", {}), [], tmp_path)
    wanted.folder.mkdir()
    write_config(wanted.config, wanted.folder / "config.yaml")
    record_job(wanted.folder, job_record(wanted, "7", wanted.place.logs))
    assert job_of(wanted) == TrainingJob(str(wanted.folder / "config.yaml"), "finetune classify")
    assert main(["resume", "run", "--dry-run", "--epochs", "9"]) == 2  # a knob of the run's own, now changed
    assert "epochs: 100 -> 9" in capsys.readouterr().err
    assert main(["resume", "run", "--dry-run"]) == 0


def test_a_job_runs_the_command_that_it_holds(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("dino_ssl.cli.main", lambda words: asked.append(words) or 0)
    TrainingJob("run/config.yaml", "finetune classify")()
    TrainingJob("run/config.yaml")()
    assert asked == [["finetune", "classify", "run/config.yaml"], ["pretrain", "run/config.yaml"]]


def test_resuming_takes_the_profile_the_flags_and_the_cwd_of_the_last_job(recipe, capsys, tmp_path, monkeypatch):

    config, _ = configure([str(recipe), "--output-dir", "run"], PRETRAIN)
    changes = {"nodes": 2, "qos": "low"}
    wanted = request(config, choose("cpu", changes), [], tmp_path)
    wanted.folder.mkdir()
    write_config(wanted.config, wanted.folder / "config.yaml")
    record_job(wanted.folder, job_record(wanted, "7", wanted.place.logs))
    write_heartbeat(wanted.folder, age=600, state="stopped", checkpoint_seconds=100.0)
    assert main(["resume", str(wanted.folder), "--dry-run", "--time", "30", "--loader.num-workers", "0"]) == 0
    script = capsys.readouterr().out.splitlines()
    assert {"#SBATCH --nodes=2", "#SBATCH --qos=low", "#SBATCH --time=30", "#SBATCH --signal=USR2@330"} <= set(script)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    wanted.folder.rename(tmp_path / "moved")
    assert main(["resume", "../moved", "--dry-run"]) == 0
    script = capsys.readouterr().out
    assert f"--output {tmp_path}/moved/logs/" in script and f"#SBATCH --chdir={tmp_path}\n" in script
    (only,) = errors(capsys, "resume", "../moved", "--dry-run", "--optim.lr", "1")
    assert "optim.lr: " in only and "holds another run" in only


@pytest.mark.parametrize("words", [["resume", "nowhere"], ["cancel", "nowhere"], ["requeue", "nowhere"], ["tail", "x"]])
def test_a_folder_that_is_no_run_is_named(capsys, words):
    (only,) = errors(capsys, *words)
    assert only.startswith(f"{words[1]} is no run's folder")


def test_a_chain_needs_its_number(capsys, recipe):
    (only,) = errors(capsys, "chain", str(recipe))
    assert only.startswith("chain takes a number of jobs first")


def test_two_submissions_of_one_folder_at_once_are_one(tmp_path):
    refused = pytest.raises(UsageError, match="another submission of it is under way")
    with claimed(tmp_path / "run"), refused, claimed(tmp_path / "run"):
        pass
    with claimed(tmp_path / "run"):
        pass


def test_a_sweep_is_planned_printed_and_shown_without_slurm(recipe, capsys, tmp_path):
    (tmp_path / "grid.yaml").write_text("optim.lr: [1e-3, 5e-4]\nseed: [0, 1]\n")
    words = ["sweep", "grid.yaml", str(recipe), "--cluster", "cpu", "--cap", "3"]
    assert main([*words, "--dry-run"]) == 0
    script = capsys.readouterr().out
    assert "#SBATCH --array=0-3%3" in script
    assert f"{tmp_path}/runs/grid/logs/%A_%a_%t_log.out" in script
    done, failed = (
        tmp_path / "runs/grid" / name for name in ("002-optim.lr=0.0005-seed=0", "000-optim.lr=0.001-seed=0")
    )
    for folder, reason in ((done, "done"), (failed, "failed")):
        add_job(folder)
        write_lines(folder / "restarts.jsonl", [start(1, 0), stop(2, 9, reason, text=f"it {reason}")])
    write_lines(done / "metrics.jsonl", [{"step": 9, "epoch": 1.0, "time": 2.0, "eval/knn_top1": 0.75}])
    assert main([*words, "--table"]) == 0
    heading, _, *rows = capsys.readouterr().out.splitlines()
    assert heading.split()[:4] == ["point", "optim.lr", "seed", "state"]
    assert [row.split()[:4] for row in rows[:2]] == [["002", "0.0005", "0", "done"], ["000", "0.001", "0", "failed"]]
    assert [row.split()[3:5] for row in rows[2:4]] == [["not", "submitted"]] * 2
    assert rows[4].endswith("it failed") and "runs again what is not done" in rows[5]


def test_every_mistake_of_a_sweep_is_named_once(recipe, capsys, tmp_path):
    (tmp_path / "grid.yaml").write_text("optim.lr: [1, -1]\nseed: [0, 1]\n")
    words = ["sweep", "grid.yaml", str(recipe), "--cluster", "cpu", "--dry-run"]
    found = errors(capsys, *words, "--batch-size", "0", "--cap", "0")
    assert len(found) == len(set(found))
    assert [any(part in problem for problem in found) for part in ("--cap=0", "batch_size=0", "optim.lr=-1")] == [
        True
    ] * 3


def test_what_is_submitted_is_a_path_that_is_read_without_torch():
    data = cloudpickle.dumps(TrainingJob("/shared/run/config.yaml"))
    assert len(data) < 500
    program = "import pickle, sys; job = pickle.load(sys.stdin.buffer); print(job.config, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], input=data, capture_output=True, check=True)
    assert done.stdout.decode() == "/shared/run/config.yaml False\n"
    again = pickle.loads(data).checkpoint()
    assert again.function == TrainingJob("/shared/run/config.yaml")


def test_a_link_of_a_chain_that_comes_too_late_does_nothing(tmp_path, capsys):
    for reason in ("done", "diverged"):
        write_lines(tmp_path / "restarts.jsonl", [start(1, 0), stop(2, 9, reason)])
        TrainingJob(str(tmp_path / "config.yaml"), is_link=True)()
        assert "nothing left to do" in capsys.readouterr().out
    write_lines(tmp_path / "restarts.jsonl", [start(1, 0), stop(2, 9, "stopped")])
    with pytest.raises(SystemExit) as left:  # there is no config.yaml, so it did try
        TrainingJob(str(tmp_path / "config.yaml"), is_link=True)()
    assert left.value.code == 2


def test_words_are_sorted_into_the_launchers_and_the_trainings():
    words = take_apart(
        ["a.yaml", "--nodes=2", "--dry-run", "--optim.lr", "0.1", "--cluster", "x", "--requeue", "false", "--seed"],
        switches=("dry_run",), values=("cluster",),
    )  # fmt: skip
    assert words.rest == ["a.yaml", "--optim.lr", "0.1", "--seed"]
    assert words.changes == {"nodes": 2, "requeue": False}
    assert (words.values, words.switches, words.problems) == ({"cluster": "x"}, {"dry_run"}, [])


def test_the_overview_lists_every_command_and_a_typo_is_answered(capsys):
    assert main([]) == 0
    assert capsys.readouterr().out == OVERVIEW
    assert all(f"\n  {command} " in OVERVIEW for command in COMMANDS)
    assert main(["submti"]) == 2
    assert "did you mean 'submit'?" in capsys.readouterr().err
