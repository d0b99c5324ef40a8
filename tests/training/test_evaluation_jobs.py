import json
import logging
import shlex
from pathlib import Path

from dino_ssl.cli import main
from dino_ssl.evaluation import results
from dino_ssl.evaluation.results import Evaluation, Measurement
from dino_ssl.training import evaluation_jobs
from dino_ssl.training.evaluation_jobs import DONE, FAILED, SCRIPT, SENT
from dino_ssl.training.journal import EVALUATED_STEP, append_metrics, read_metrics
from dino_ssl.training.pretraining import pretrain
from tests.training.small_runs import a_config


def found(*values: tuple[str, float, dict[str, object]]) -> list[Evaluation]:
    measurements = [Measurement(metric, value, None, settings) for metric, value, settings in values]
    return [Evaluation("knn/1", {"name": "vit"}, {}, measurements, 1.0)]


def a_job(run: Path, step: int, *, files: dict[str, list[Evaluation]], failed: str = "") -> Path:
    """The folder of a job that is done, as its script leaves it."""
    folder = run / "eval" / f"step_{step:09d}"
    folder.mkdir(parents=True)
    (folder / "checkpoint.pth").write_bytes(b"weights")
    for name, evaluations in files.items():
        results.write(folder / name, evaluations)
    if failed:
        (folder / FAILED).write_text(failed)
    (folder / DONE).touch()
    return folder


def a_run(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    append_metrics(folder, step=10, epoch=2.0, values={"train/loss": 3.0})
    return folder


def collected(run: Path) -> list[dict[str, object]]:
    return [
        {name: value for name, value in line.items() if name != "time"}
        for line in read_metrics(run)
        if EVALUATED_STEP in line
    ]


def test_results_go_into_the_journal_once_under_its_names(tmp_path):
    run = a_run(tmp_path / "run")
    folder = a_job(
        run,
        5,
        files={
            "knn.json": found(("knn/top1", 0.5, {"k": 10}), ("knn/top1", 0.6, {"k": 20})),
            "linear.json": found(("linear/top1", 0.7, {})),
        },
    )
    line = {
        "step": 10,
        "epoch": 2.0,
        EVALUATED_STEP: 5,
        "eval/knn_top1@10": 0.5,
        "eval/knn_top1@20": 0.6,
        "eval/linear_top1": 0.7,
    }
    assert evaluation_jobs.collect_afterwards(run) == 1
    assert collected(run) == [line]
    assert not (folder / "checkpoint.pth").exists()
    assert evaluation_jobs.collect_afterwards(run) == 0
    assert collected(run) == [line]


def test_a_job_that_is_not_done_is_left_alone(tmp_path):
    run = a_run(tmp_path / "run")
    folder = a_job(run, 5, files={"knn.json": found(("knn/top1", 0.5, {"k": 20}))})
    (folder / DONE).unlink()
    assert evaluation_jobs.collect_afterwards(run) == 0
    assert (folder / "checkpoint.pth").exists()


def test_what_failed_is_named_and_its_checkpoint_stays_for_another_try(tmp_path, caplog):
    run = a_run(tmp_path / "run")
    folder = a_job(run, 5, files={"knn.json": found(("knn/top1", 0.5, {"k": 20}))}, failed="linear\n")
    (folder / "other.json").write_text("{")
    assert evaluation_jobs.collect_afterwards(run) == 1
    assert "linear failed; see" in caplog.text and "other.json is no results file" in caplog.text
    assert (folder / "checkpoint.pth").exists()
    assert collected(run)[0]["eval/knn_top1@20"] == 0.5
    assert evaluation_jobs.collect_afterwards(run) == 0
    (folder / "other.json").unlink()  # run again by hand
    (folder / FAILED).unlink()
    results.write(folder / "linear.json", found(("linear/top1", 0.7, {})))
    assert evaluation_jobs.collect_afterwards(run) == 1
    assert collected(run)[1]["eval/linear_top1"] == 0.7 and not (folder / "checkpoint.pth").exists()
    assert evaluation_jobs.collect_afterwards(run) == 0


def config_of(tmp_path: Path, submit: str):
    return a_config(
        tmp_path,
        steps=10,
        evaluate={"every_epochs": 1, "methods": ["knn"], "submit": submit},
        checkpoint={"keep_last": 1},
    )


def test_a_scheduler_that_refuses_is_named_and_the_training_ends_well(tmp_path, caplog):
    config = config_of(tmp_path, "sh -c 'echo queue is closed >&2; exit 1' x")
    with caplog.at_level(logging.WARNING, "dino_ssl"):
        pretrain(config)
    folders = sorted((config.output_dir / "eval").glob("step_*"))
    assert [folder.name for folder in folders] == ["step_000000005", "step_000000010"]
    assert not any((folder / SENT).exists() for folder in folders)
    assert "the evaluation of step 5 was not submitted: queue is closed" in caplog.text


def test_the_job_gets_its_script_alone_and_nothing_of_the_job_that_sends_it(tmp_path, monkeypatch):
    for name in ("SLURM_JOB_ID", "SLURM_CONF", "SUBMITIT_EXECUTOR", "PMIX_RANK", "SBATCH_TIMELIMIT", "OTHER"):
        monkeypatch.setenv(name, "7")
    spy = tmp_path / "spy.sh"
    spy.write_text(
        f'echo "$#" "$1" >> {shlex.quote(str(tmp_path))}/calls; env > {shlex.quote(str(tmp_path))}/env; echo 12\n'
    )
    config = config_of(tmp_path, f"bash {shlex.quote(str(spy))}")
    checkpoint = tmp_path / "checkpoint.pth"
    checkpoint.write_bytes(b"weights")
    for _ in range(2):
        evaluation_jobs.send(config, checkpoint, 5)
    folder = (config.output_dir / "eval" / "step_000000005").absolute()
    assert (tmp_path / "calls").read_text() == f"1 {folder / SCRIPT}\n"
    assert (folder / SENT).read_text() == "12\n"
    names = {line.partition("=")[0] for line in (tmp_path / "env").read_text().splitlines()}
    assert {"SLURM_CONF", "OTHER"} <= names
    assert not names & {"SLURM_JOB_ID", "SUBMITIT_EXECUTOR", "PMIX_RANK", "SBATCH_TIMELIMIT"}


def test_the_checkpoint_of_a_job_outlives_its_deletion_by_the_run(tmp_path):
    config = config_of(tmp_path, "true")
    pretrain(config)
    assert not list((config.output_dir / "checkpoints").glob("checkpoint_000000005.pth"))
    assert (config.output_dir / "eval" / "step_000000005" / "checkpoint.pth").stat().st_size > 0


def test_a_run_takes_its_evaluations_into_its_journal(tmp_path):
    odd = tmp_path / "a folder with 'quotes'"
    odd.mkdir()
    config = config_of(odd, "bash")
    pretrain(config)
    lines = collected(config.output_dir)
    assert [line[EVALUATED_STEP] for line in lines] == [5, 10]
    for line in lines:
        folder = config.output_dir / "eval" / f"step_{line[EVALUATED_STEP]:09d}"
        (evaluation,) = results.read(folder / "knn.json")
        values = {f"{m.metric} {m.settings['k']}": m.value for m in evaluation.measurements}
        assert line["eval/knn_top1@20"] == values["knn/top1 20"]
        assert not (folder / FAILED).exists(), (folder / "log.txt").read_text()
        assert not (folder / "features").exists()


def test_the_command_waits_for_the_end_of_the_run(tmp_path, capsys):
    run = a_run(tmp_path / "run")
    a_job(run, 5, files={"knn.json": found(("knn/top1", 0.5, {"k": 20}))})
    (run / "restarts.jsonl").write_text(json.dumps({"event": "start"}) + "\n")
    assert main(["collect", str(run)]) == 0
    assert "the run goes on" in capsys.readouterr().out and not collected(run)
    (run / "restarts.jsonl").write_text(json.dumps({"event": "stop"}) + "\n")
    assert main(["collect", str(run)]) == 0
    assert "taken in: 1" in capsys.readouterr().out and len(collected(run)) == 1


def test_a_folder_that_is_no_run_is_refused(tmp_path, capsys):
    assert main(["collect", str(tmp_path)]) == 2
    assert "is no run's folder: it has no metrics.jsonl" in capsys.readouterr().err
