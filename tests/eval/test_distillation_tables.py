"""The two tables of knowledge review, on digits and networks that take no time."""

import json
from functools import partial

import numpy as np
import torch
from PIL import Image

from dino_ssl.cli import answer
from dino_ssl.config_kinds import DISTILL
from dino_ssl.config_yaml import load_config
from dino_ssl.models.backbone import VIT_SIZES
from dino_ssl.models.cifar_resnet import CIFAR_SIZES, CifarResNet, CifarSize
from eval import cross_stage, review_ablation
from tests.training.small_runs import write_digits


def words(folder):
    """Flags of a run of two steps."""
    data, test = write_digits(folder / "images"), write_digits(folder / "test", first=100)
    torch.manual_seed(0)
    np.savez(folder / "teacher.npz", **{k: v.numpy() for k, v in CifarResNet("resnet8x4").state_dict().items()})
    return [
        "--data", data, "--validation.test", test, "--teacher.weights", str(folder / "teacher.npz"),
        "--output-dir", str(folder / "out"), "--model.name", "odd", "--model.drop-path", "0", "--steps", "2",
        "--batch-size", "16", "--device", "cpu", "--precision", "fp32", "--crops.size", "8", "--crops.scale", "1", "1",
        "--optim.warmup-epochs", "0", "--validation.center-crop", "1", "--loader.num-workers", "0",
        "--distill.review", "1",
    ]  # fmt: skip


def read(path):
    return json.loads(path.read_text())


def test_every_pair_of_levels_is_a_run_and_a_cell_of_the_picture(tmp_path, capsys, monkeypatch):
    """A ViT of one block has one stage, so two levels."""
    monkeypatch.setitem(VIT_SIZES, "odd", (8, 1, 1))
    assert answer(partial(cross_stage.main, [*words(tmp_path), "--model.patch-size", "4"]), "eval.cross_stage") == 0
    out = tmp_path / "out"
    found = read(out / "cross_stage.json")
    assert len(found) == 1 + 2 * 2 and all(0 <= top1 <= 1 for top1 in found.values())
    for i in range(2):
        for j in range(2):
            config = load_config(out / f"student_{i}_teacher_{j}" / "config.yaml", DISTILL)
            assert (config.review.design, config.review.pair, config.review.hierarchical) == ("same", (i, j), False)
    printed = capsys.readouterr().out
    assert "student 1, teacher 0" in printed and str(out / "cross_stage.png") in printed
    with Image.open(out / "cross_stage.png") as picture:
        assert min(picture.size) > 300 and len(picture.convert("RGB").getcolors(10**6)) > 20


def test_the_ablation_has_a_run_for_each_part(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(CIFAR_SIZES, "odd", CifarSize(1, 4, 4))
    assert answer(partial(review_ablation.main, words(tmp_path)), "eval.review_ablation") == 0
    found = read(tmp_path / "out" / "review_ablation.json")
    assert list(found) == ["no teacher", *review_ablation.ROWS]
    parts = {}
    for name in review_ablation.ROWS:
        path = tmp_path / "out" / review_ablation.folder_of(name) / "checkpoints" / "checkpoint.pth"
        state = torch.load(path, weights_only=True)["model"]
        parts[name] = (any(".weigh." in key for key in state), sum(key.endswith("project.0.weight") for key in state))
    assert parts == {
        "same levels": (False, 4), "review": (False, 10), "+ residual": (False, 0), "+ residual + ABF": (True, 0),
        "+ residual + HCL": (False, 0), "+ residual + ABF + HCL": (True, 0),
    }  # fmt: skip
    assert (tmp_path / "out" / "review_ablation.png").stat().st_size > 5000
    assert "+ residual + ABF + HCL" in capsys.readouterr().out


def test_help_says_what_is_trained(capsys):
    assert answer(partial(cross_stage.main, ["--help"]), "eval.cross_stage") == 0
    assert "--teacher.weights" in capsys.readouterr().out


def test_tables_that_would_say_nothing_are_refused_before_the_first_run(tmp_path, capsys):
    given = words(tmp_path)
    arguments = [*given[:2], *given[4:-2], "--distill.kd", "1"]
    for main in (cross_stage.main, review_ablation.main):
        assert answer(partial(main, arguments), "program") == 2
        said = capsys.readouterr().err
        assert "distill.review=0 compares no levels" in said and "write --validation.test SOURCE" in said
    assert not (tmp_path / "out").exists()
