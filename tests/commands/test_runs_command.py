"""`dino-ssl runs` on folders as runs leave them."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dino_ssl.cli import main
from dino_ssl.config_kinds import PRETRAIN
from dino_ssl.config_yaml import from_dict, write_config

BEGAN, KNN = 1_700_000_000.0, "eval/knn_top1"
ACCURACY = ["knn", "top1", "50.0", "%", "(best", "60.0)"]


def write_lines(path: Path, records: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def a_run(
    folder: Path, *, lr: float = 0.0005, commit: str = "1a2b3c4d5e6f7a8b", top1: float = 0.5, **ending: Any
) -> Path:
    """Of an hour, with a restart after the first half."""
    folder.mkdir(parents=True)
    write_config(from_dict({"data": "cifar10", "optim": {"lr": lr}}, PRETRAIN), folder / "config.yaml")
    who = {"host": "n1", "pid": 1, "job": "12", "restart": 0}
    shape = {"ranks": 4, "nodes": 1, "launcher": "submitit"}
    stop = {"event": "stop", "exit_code": 75, "reason": "requeued", "text": "SIGUSR2", "kwh": 0.25, **who}
    events = [
        {"event": "start", "time": BEGAN, "step": 0, **who, **shape},
        {"time": BEGAN + 1800, "step": 50, **stop},
        {"event": "start", "time": BEGAN + 9000, "step": 50, **who, **shape},
        {"time": BEGAN + 10800, "step": 100, **stop, "exit_code": 0, "reason": "done", "text": "done", **ending},
    ]
    write_lines(folder / "restarts.jsonl", events)
    lines = [
        {
            "step": step,
            "epoch": step / 10,
            "time": BEGAN + 36 * step,
            "train/loss": 5 - step / 50,
            "eval/knn_top1": value,
        }
        for step, value in ((10, 0.2), (60, top1 + 0.1), (100, top1))
    ]
    write_lines(folder / "metrics.jsonl", lines)
    beat = {"state": "stopped", "host": "n1", "time": BEGAN + 10800, "step": 100, "total_steps": 100, "epoch": 10.0}
    (folder / "heartbeat.json").write_text(json.dumps({**beat, "stop": "done", "job": "12"}))
    told = {
        "dino_ssl": "0.1.0", "python": "3.11.7", "command": ["x", "pretrain", "--optim.lr", str(lr)], "ranks": 4,
        "device": "H100", "hosts": ["n1"], "seed": 0, "started": "2023-11-14T22:13:20+0000",
        "code": {"commit": commit, "changed": [" M a.py"], "diff": "+x\n"}, "packages": {"torch": "2.6.0"},
        "data": {"name": "cifar10:train", "num_images": 50000, "fingerprint": "00ff"},
    }  # fmt: skip
    (folder / "run.json").write_text(json.dumps(told))
    return folder


def said(capsys: pytest.CaptureFixture[str], *words: object) -> list[str]:
    assert main(["runs", *map(str, words)]) == 0
    return capsys.readouterr().out.splitlines()


def test_ls_has_a_line_for_each_run_below(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a_run(tmp_path / "a")
    a_run(tmp_path / "sweep" / "b", reason="failed", exit_code=1, text="RunError: disk", kwh=None)
    head, *rows = said(capsys, "ls", tmp_path)
    assert head.split() == ["run", "state", "step", "loss", "accuracy", "hours", "restarts", "kWh"]
    assert [row.split() for row in rows] == [
        [str(tmp_path / "a"), "done", "100/100", "3.0000", *ACCURACY, "1.00", "1", "0.50"],
        [str(tmp_path / "sweep/b"), "failed", "100/100", "3.0000", *ACCURACY, "1.00", "1",
         "0.25"],
    ]  # fmt: skip


def test_show_says_everything_that_made_a_run_and_why_it_stopped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "\n".join(said(capsys, "show", a_run(tmp_path / "a", lr=0.001)))
    for part in (
        "dino-ssl pretrain --optim.lr 0.001", "optim.lr: 0.001", "commit 1a2b3c4d5e6f, 1 files changed", " M a.py",
        "torch 2.6.0", "cifar10:train, 50,000 images, fingerprint 00ff", "n1: 4 x H100", "0.50 kWh",
        "step 50: requeued (exit code 75): SIGUSR2", "step 50: started on n1, job 12, 4 ranks",
    ):  # fmt: skip
        assert part in text
    assert "batch_size" not in text  # at its default


def test_compare_has_the_outcome_and_only_what_differs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, other = a_run(tmp_path / "a"), a_run(tmp_path / "b", lr=0.01, commit="ffff", top1=0.7)
    rows = [line.split() for line in said(capsys, "compare", one, other)]
    assert ["optim.lr", "0.0005", "0.01"] in rows
    assert [
        "accuracy",
        "knn",
        "top1",
        "50.0",
        "%",
        "(best",
        "60.0)",
        "knn",
        "top1",
        "70.0",
        "%",
        "(best",
        "80.0)",
    ] in rows
    assert any(row[:2] == ["code", "commit"] for row in rows)
    named = {row[0] for row in rows if row}
    assert not {"torch", "data", "batch_size", "output_dir"} & named


def test_plot_draws_the_runs_in_one_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a_run(tmp_path / "runs" / "a")
    a_run(tmp_path / "runs" / "b<script>", top1=0.9)
    said(capsys, "plot", tmp_path / "runs", "--output", tmp_path / "p.png")
    with Image.open(tmp_path / "p.png") as picture:
        assert picture.size == (1000, 700) and len(picture.convert("RGB").getcolors(10**6) or []) > 50


def test_a_run_that_was_killed_counts_until_its_last_sign_of_life(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = a_run(tmp_path / "a")
    write_lines(run / "restarts.jsonl", [json.loads((run / "restarts.jsonl").read_text().splitlines()[0])])
    (run / "heartbeat.json").unlink()
    cells = said(capsys, "ls", run)[1].split()
    assert cells[1:3] == ["lost", "100"] and cells[-3:] == ["1.00", "0", "-"]


def test_a_run_at_work_is_running(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = a_run(tmp_path / "a")
    beat = json.loads((run / "heartbeat.json").read_text())
    (run / "heartbeat.json").write_text(json.dumps({**beat, "state": "training", "time": time.time()}))
    assert said(capsys, "ls", run)[1].split()[1] == "running"


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["ls", "nowhere"], "no run in nowhere; write the output_dir of a run, or a folder of runs"),
        (["compare", "a"], "only a is given; compare takes two or more runs"),
        (["show", "a", "b"], "show takes one run, and here are 2, such as a; write its folder"),
        (["ls", "a", "--output", "x.png"], "--output=x.png goes with plot, not with ls; leave it out"),
        (["plot", "a", "--output", "x.svg"], "--output=x.svg must end in .png"),
        (["lst", "a"], "invalid choice: 'lst'"),
    ],
)
def test_a_mistake_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], problem: str
) -> None:
    monkeypatch.chdir(tmp_path)
    a_run(Path("a"))
    a_run(Path("b"))
    assert main(["runs", *words]) == 2
    assert problem in capsys.readouterr().err
