"""Checkpoints of real runs, a few steps long, as evaluations and people meet them: read, inspected, exported."""

import hashlib
import json
import shutil
from argparse import Namespace

import numpy as np
import pytest
import torch
from small_runs import a_config, checkpoint_path, run_here

from dino_ssl.cli import main
from dino_ssl.config_yaml import to_dict
from dino_ssl.errors import UsageError
from dino_ssl.evaluation.features import evaluating
from dino_ssl.models.weights import load, load_encoder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    config = a_config(
        tmp_path_factory.mktemp("weights"), steps=3,
        crops={"mean": [0.3, 0.4, 0.5], "std": [0.2, 0.2, 0.1]}, knn={"center_crop": 1.0},
    )  # fmt: skip
    return run_here(config)


def test_a_runs_folder_gives_the_network_at_its_newest_step_with_the_runs_own_transform(run):
    images = torch.randn(4, 3, 16, 16)
    for key, network in (("teacher", run.task.method.teacher), ("student", run.task.method.student)):
        encoder = load_encoder(run.folder, key=key)
        with evaluating(network), torch.no_grad():
            assert torch.equal(encoder.backbone(images), network.backbone(images))
        assert encoder.origin == f"{run.folder}/checkpoints/checkpoint.pth, {key}, step 3"
    assert (encoder.name, encoder.size, encoder.center_crop) == ("vit_micro/8", 16, 1.0)
    assert (encoder.mean, encoder.std) == ((0.3, 0.4, 0.5), (0.2, 0.2, 0.1))
    assert encoder.report == "matched 54/54, ignored head.*"


def test_an_earlier_step_is_another_network_with_another_digest(run):
    earlier = load(checkpoint_path(run.config, 1))
    assert earlier.encoder.digest != load_encoder(run.folder).digest and earlier.family == "dino-ssl"
    assert earlier.encoder.origin.endswith("step 1")


def test_a_damaged_newest_checkpoint_is_refused_and_no_earlier_one_is_taken(run, tmp_path):
    path = tmp_path / "run" / "checkpoints" / "checkpoint.pth"
    path.parent.mkdir(parents=True)
    path.write_bytes((run.folder / "checkpoints" / "checkpoint.pth").read_bytes()[:-5000])
    (path.parent / "checkpoint_000000001.pth").write_bytes(checkpoint_path(run.config, 1).read_bytes())
    with pytest.raises(UsageError, match=r"checkpoint\.pth is damaged"):
        load_encoder(tmp_path / "run")


def test_a_name_that_is_not_the_runs_is_refused(run):
    with pytest.raises(UsageError, match=r"arch=vit_small, but .* holds vit_micro; leave --arch out"):
        load_encoder(run.folder, arch="vit_small")


def shown_by_inspect(capsys, *arguments):
    code = main(["inspect", *map(str, arguments)])
    lines = capsys.readouterr().out.splitlines()
    return code, lines, dict(line.split("  ", 1) for line in lines)


def test_inspect_says_on_one_screen_what_a_run_is_and_how_far_it_went(run, capsys):
    path = run.folder / "checkpoints" / "checkpoint.pth"
    code, lines, told = shown_by_inspect(capsys, run.folder)
    told = {name: text.strip() for name, text in told.items()}
    assert code == 0 and len(lines) <= 24
    assert told["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert told["architecture"].startswith("vit_micro/8, ") and "stored as float32" in told["architecture"]
    assert told["features"] == "128 of 4 blocks, at places 8 px apart"
    assert told["digest"] == load_encoder(run.folder).digest
    assert told["training"] == "step 3, epoch 0 of 3 steps"
    newest = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()][-1]
    assert told["loss"] == f"{newest['train/loss']:.4f} at step 3"
    assert f"fingerprint {run.source.fingerprint()}" in told["data"] and "80 images" in told["data"]
    assert told["command"].startswith("dino-ssl ") and told["made with"].startswith(f"torch {torch.__version__}")


def test_inspect_of_an_earlier_step_does_not_show_the_loss_of_a_later_one(run, capsys):
    _, _, told = shown_by_inspect(capsys, checkpoint_path(run.config, 2))
    assert told["loss"].endswith("at step 2")


def test_inspect_of_weights_alone_says_that_there_is_no_training_state(run, capsys, tmp_path):
    assert main(["export", str(run.folder), "--format", "torch", "--output", str(tmp_path / "x.pth")]) == 0
    said = capsys.readouterr().out
    assert "matched 54/54" in said and "wrote" in said and "read it with" in said
    code, _, told = shown_by_inspect(capsys, tmp_path / "x.pth", "--arch", "vit_micro")
    assert code == 0 and told["training"].strip() == "weights only, the file keeps no state"
    assert told["digest"].strip() == load_encoder(run.folder).digest


def test_inspect_shows_no_letter_of_a_file_that_a_terminal_would_obey(run, capsys, tmp_path):
    content = torch.load(run.folder / "checkpoints" / "checkpoint.pth", weights_only=True)
    content["config"] = {**to_dict(run.config), "data": "x\x1b[2Jy"}
    torch.save(content, tmp_path / "x.pth")
    _, _, told = shown_by_inspect(capsys, tmp_path / "x.pth")
    assert told["data"].strip().startswith("x?[2Jy, 80 images")


def test_inspect_shows_the_flags_of_a_training_of_the_original(run, capsys, tmp_path):
    teacher = run.task.method.teacher.state_dict()
    flags = Namespace(arch="vit_small", patch_size=8, output_dir="/x", lr=0.0005)
    torch.save({"teacher": teacher, "epoch": np.int64(7), "args": flags}, tmp_path / "checkpoint.pth")
    code, _, told = shown_by_inspect(capsys, tmp_path / "checkpoint.pth")
    assert code == 0 and told["family"].strip() == "dino, the teacher"
    assert told["flags"].strip() == "--arch vit_small --patch_size 8 --output_dir /x --lr 0.0005"
    assert told["training"].strip() == "epoch 7"


def test_export_of_a_run_for_timm_keeps_its_transform(run, capsys, tmp_path):
    assert main(["export", str(run.folder), "--format", "timm", "--output", str(tmp_path / "mine")]) == 0
    assert "mean (0.3, 0.4, 0.5)" in capsys.readouterr().out
    again, ours = load_encoder(tmp_path / "mine"), load_encoder(run.folder)
    assert (again.mean, again.size, again.center_crop) == (ours.mean, 16, 1.0)
    images = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(again.backbone(images), ours.backbone(images), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["inspect"], "error: RUN_OR_FILE is not given"),
        (["inspect", "nowhere"], "error: nowhere does not exist"),
        (["export", "nowhere", "--format", "tf", "--output", "x"], "error: --format: invalid choice: 'tf'"),
        (["export", "nowhere", "--format", "timm"], "required: --output"),
        (
            ["export", "x", "--format", "timm", "--output", "y", "--ke", "student"],
            "unknown flag --ke; did you mean",
        ),
    ],
)
def test_mistakes_in_the_words_are_usage_errors(words, message, capsys):
    assert main(words) == 2
    assert message in capsys.readouterr().err


def test_inspect_is_not_misled_by_what_jobs_found_of_earlier_steps(run, tmp_path, capsys):
    copy = tmp_path / "run"
    shutil.copytree(run.folder, copy)
    with (copy / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 1, "epoch": 1, "eval/of_step": 1, "eval/knn_top1@20": 0.5}) + "\n")
    code, _, rows = shown_by_inspect(capsys, copy)
    assert code == 0 and not any(name.startswith("k-NN") for name in rows)


def test_a_misspelt_flag_is_named_though_the_right_one_is_missing(capsys):
    assert main(["knn", "--wieghts", "x.pth", "--train", "digits"]) == 2
    assert "error: unknown flag --wieghts; did you mean '--weights'?" in capsys.readouterr().err
