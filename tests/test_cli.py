"""The command line: flags, help, and exit codes."""

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from dino_ssl import __version__, cli
from dino_ssl.cli import main
from dino_ssl.config import PretrainConfig
from dino_ssl.config_flags import configure
from dino_ssl.config_help import field_texts, training_help
from dino_ssl.config_kinds import PRETRAIN
from dino_ssl.config_schema import flatten
from dino_ssl.errors import DivergedError, RunError, UsageError

DATA = ("--data", "photos")


def config_of(*words: str) -> PretrainConfig:
    return configure([*DATA, *words], PRETRAIN)[0]


def changed_knobs(*words: str) -> dict[str, object]:
    """The knobs that the words move away from their defaults."""
    before, after = flatten(PretrainConfig(data="photos")), flatten(config_of(*words))
    return {knob: after[knob] for knob in PRETRAIN.knobs if before[knob] != after[knob]}


def problems(*words: str) -> list[str]:
    with pytest.raises(UsageError) as caught:
        config_of(*words)
    return list(caught.value.problems)


def run_module(*words: str, stdout: int = subprocess.PIPE, **environment: str):
    return subprocess.run(
        [sys.executable, "-m", "dino_ssl", *words],
        env=os.environ | {"TERM": "xterm"} | environment,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )


# -- our flags -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "knobs"),
    [
        (["--epochs", "20"], {"epochs": 20}),
        (["--epochs=20"], {"epochs": 20}),
        (["--batch-size", "8"], {"batch_size": 8}),
        (["--batch_size", "8"], {"batch_size": 8}),
        (["--optim.min_lr", "1e-7"], {"optim.min_lr": 1e-7}),
        (["--optim.min-lr=1e-7"], {"optim.min_lr": 1e-7}),
        (["--output-dir", "runs/a b"], {"output_dir": Path("runs/a b")}),
        (["--steps", "7"], {"steps": 7}),
        (["--steps", "7", "--steps", "None"], {}),
        (["--knn.test", "cifar10:test"], {"knn.test": "cifar10:test"}),
        (["--crops.local-scale", "0.1", "0.3"], {"crops.local_scale": (0.1, 0.3)}),
        (["--crops.mean", "0", "0.5", "1"], {"crops.mean": (0.0, 0.5, 1.0)}),
        (["--model.compile"], {"model.compile": True}),
        (["--model.compile", "true"], {"model.compile": True}),
        (["--model.compile=1", "--model.no-compile"], {}),
        (["--head.no-norm-last-layer"], {"head.norm_last_layer": False}),
        (["--head.norm_last_layer", "false"], {"head.norm_last_layer": False}),
        (["--epochs", "30", "--epochs", "40"], {"epochs": 40}),
    ],
)
def test_a_flag_sets_its_knob(words, knobs):
    assert changed_knobs(*words) == knobs


def test_recipes_stand_anywhere_between_the_flags(tmp_path):
    for number, text in enumerate(["epochs: 40", "epochs: 50", "seed: 9"]):
        (tmp_path / f"{number}.yaml").write_text(text)
    first, second, third = (str(tmp_path / f"{number}.yaml") for number in range(3))
    words = [first, "--optim.lr", "0.1", second, "--model.compile", third]
    assert changed_knobs(*words) == {"epochs": 50, "seed": 9, "optim.lr": 0.1, "model.compile": True}


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["--optim.lrr", "3"], "unknown flag --optim.lrr; did you mean '--optim.lr'?"),
        (["--batchsize", "3"], "unknown flag --batchsize; did you mean '--batch-size'?"),
        (
            ["--teacher-temperature=1"],
            "unknown flag --teacher-temperature; did you mean '--dino.teacher-temp",
        ),
        (["--archi", "vit_tiny"], "unknown flag --archi; did you mean '--arch'?"),
        (["--prest", "digits"], "unknown flag --prest; did you mean '--preset'?"),
        (["-x", "3"], "unknown flag -x"),
        (["--optim.lr", "abc"], "--optim.lr: could not convert string to float: 'abc'"),
        (["--epochs", "1.5"], "--epochs: invalid literal for int() with base 10: '1.5'"),
        (
            ["--device", "gpu"],
            "invalid choice 'gpu' for argument '--device'. Expected one of ('auto', 'cpu',",
        ),
        (["--seed"], "Missing value for argument '--seed'."),
        (["--crops.global-scale", "1"], "Missing value for argument '--crops.global-scale'."),
        (["--model.compile", "maybe"], "--model.compile=maybe must be true or false"),
        (["--lr", "abc"], "--optim.lr: could not convert string to float: 'abc' (written as --lr)"),
        (["--use_fp16", "maybe"], "--use_fp16=maybe must be true or false"),
        (["--batch_size_per_gpu", "many"], "--batch_size_per_gpu=many must be a whole number"),
        (["--preset"], "--preset has no value; the presets are"),
        (["typo"], "typo: no such file; write the path of a YAML file"),
        (["--epochs", "5"], "optim.warmup_epochs=10 is longer than the run of epochs=5; write at most 5"),
    ],
)
def test_a_mistake_is_the_one_problem_and_says_what_to_write(words, answer):
    (only,) = problems(*words)
    assert only.startswith(answer)


def test_mistakes_in_files_flags_and_between_knobs_are_reported_at_once(tmp_path, capsys):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("epoch: 3\nmodel: {patch_size: large}\n")
    words = [str(recipe), "--optim.lrr", "1", "--seed", "x", "--device", "gpu", "--batch-size", "0", *DATA]
    assert main(["pretrain", *words]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if not line.startswith("error: ")] == [
        "nothing was started; `dino-ssl pretrain --help` lists every knob"
    ]
    starts = [
        "{recipe}:1: unknown key 'epoch'",
        '{recipe}:2: model.patch_size="large" must be a whole number',
    ]
    starts += [
        "unknown flag --optim.lrr",
        "--seed: invalid literal",
        "invalid choice 'gpu'",
        "batch_size=0 must",
    ]
    for line, start in zip(lines, starts, strict=False):
        assert line.startswith("error: " + start.format(recipe=recipe))
    assert len(lines) == len(starts) + 1


def test_tyros_explanation_loses_its_colours_on_a_terminal():
    ours, terminal = pty.openpty()
    done = run_module("pretrain", *DATA, "--epochs", "x", stdout=terminal)
    os.close(terminal)
    os.close(ours)
    assert done.stderr.splitlines()[0] == "error: --epochs: invalid literal for int() with base 10: 'x'"


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_an_explanation_reads_the_same_in_every_encoding(encoding):
    done = run_module("pretrain", *DATA, "--epochs", "x", PYTHONIOENCODING=encoding)
    assert done.stderr.splitlines()[0] == "error: --epochs: invalid literal for int() with base 10: 'x'"


# -- help and exit codes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("columns", "lines"), [(100, 145), (80, 170)])
def test_help_fits_on_two_screens(columns, lines, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(columns))
    assert main(["pretrain", "--help"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) <= lines
    assert max(map(len, printed)) <= columns


def test_help_has_every_knob_with_its_default_and_its_text(monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    text = " ".join(training_help(PRETRAIN).split())
    assert set(field_texts(PRETRAIN)) == set(PRETRAIN.knobs)
    for knob, meaning in field_texts(PRETRAIN).items():
        assert re.search(f"--{knob.replace('_', '-')} [^ ]+( [a-z0-9.]+)* {re.escape(meaning)}", text), knob
    assert "--optim.min-lr 1e-06 " in text
    assert "--optim.name adamw|sgd|lars " in text
    assert "--arch" in text


def test_the_overview_lists_the_commands(capsys):
    assert main([]) == 0
    overview = capsys.readouterr().out
    assert main(["--help"]) == 0
    assert capsys.readouterr().out == overview
    assert all(f"\n  {command} " in overview for command in cli.COMMANDS)


def test_version_is_the_packages(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"dino-ssl {__version__}\n"


def test_an_unknown_command_exits_2_with_a_suggestion(capsys):
    assert main(["pretran"]) == 2
    assert "error: unknown command 'pretran'; did you mean 'pretrain'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageError("a=1 is wrong", "b=2 is wrong"), 2),
        (RunError("the disk is full"), 1),
        (DivergedError("the loss is nan"), 3),
        (KeyboardInterrupt(), 130),
    ],
)
def test_each_kind_of_failure_has_its_exit_code_and_ends_with_a_hint(error, code, monkeypatch, capsys):
    def fail(arguments):
        raise error

    monkeypatch.setattr("dino_ssl.commands.stats.run", fail)
    assert main(["stats"]) == code
    *lines, hint = capsys.readouterr().err.splitlines()
    assert len(lines) == max(1, len(str(error).splitlines()))
    assert all(line.startswith("error: ") for line in lines)
    assert not hint.startswith("error: ")


def test_a_bug_is_not_hidden(monkeypatch):
    def fail(arguments):
        raise ZeroDivisionError

    monkeypatch.setattr("dino_ssl.commands.stats.run", fail)
    with pytest.raises(ZeroDivisionError):
        main(["stats"])


@pytest.mark.parametrize(("words", "code"), [(["--help"], 0), (["--optim.lrr", "3"], 2)])
def test_help_and_mistakes_do_not_wait_for_torch(words, code):
    program = "import sys; from dino_ssl.cli import main; code = main(sys.argv[1:]); "
    program += "sys.exit(99 if 'torch' in sys.modules else code)"
    done = subprocess.run([sys.executable, "-c", program, "pretrain", *words], capture_output=True, check=False)
    assert done.returncode == code


def test_every_command_answers_help(capsys):
    for command in cli.COMMANDS:
        assert main([command, "--help"]) == 0
        assert f"dino-ssl {command}" in capsys.readouterr().out


def test_the_package_runs_as_a_module():
    assert run_module("--version").stdout == f"dino-ssl {__version__}\n"
    assert run_module("pretrain").returncode == 2
