"""`dino-ssl inspect --backbone`: the numbers of the network, crop by crop, on one screen and in a file."""

import json

import pytest
import torch

from dino_ssl.cli import main
from dino_ssl.models.backbone import build_backbone
from dino_ssl.models.cost import activation_bytes, macs_of


def told(capsys, *arguments):
    code = main(["inspect", *map(str, arguments)])
    return code, capsys.readouterr()


def test_the_cost_of_a_backbone_is_that_of_its_crops_in_student_and_teacher(capsys, tmp_path):
    path = tmp_path / "cost.json"
    code, said = told(capsys, "--backbone", "cmt_micro", "--size", 64, "--batch-size", 3, "--output", path)
    cmt = build_backbone("cmt_micro", image_size=64, drop_path=0.1)
    content, macs = json.loads(path.read_text()), {size: macs_of(cmt, size) for size in (64, 32)}
    assert code == 0 and content["parameters"] == sum(p.numel() for p in cmt.parameters())
    assert (
        f"cmt_micro, {content['parameters']:,} parameters; {macs[64] / 1e9:.4g} GMACs for an image of 64 px" in said.out
    )
    passes = [(one["network"], one["num_crops"], one["size"], one["macs"]) for one in content["passes"]]
    assert passes == [
        ("student", 2, 64, 2 * macs[64]), ("student", 8, 32, 8 * macs[32]), ("teacher", 2, 64, 2 * macs[64])
    ]  # fmt: skip
    kept = [activation_bytes(cmt.train(), torch.zeros(3 * n, 3, size, size)) for n, size in ((2, 64), (8, 32))]
    assert [one["activations"] for one in content["passes"]] == pytest.approx([*kept, 0], rel=1e-3)
    assert len(said.out.splitlines()) < 12 and max(map(len, said.out.splitlines()[:7])) <= 120


def test_a_recipe_says_backbone_and_crops_and_flags_go_above_it(capsys, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("preset: small_images\ndata: digits\nmodel: {name: resnet18, small_stem: true}\n")
    code, said = told(capsys, "--recipe", recipe)
    assert code == 0 and "resnet18, 11,168,832 parameters" in said.out and "student 2 x 32 px" in said.out
    assert "8 x" not in said.out
    code, said = told(capsys, "--recipe", recipe, "--backbone", "cmt_micro")
    assert code == 0 and said.out.startswith("cmt_micro, ")
    _, ordinary = told(capsys, "--backbone", "cmt_micro", "--size", 32)
    assert said.out.splitlines()[0] != ordinary.out.splitlines()[0]


@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        ([], "RUN_OR_FILE is not given; write a run's folder"),
        (["run", "--batch-size", "3"], "--batch-size is of costs"),
        (["run", "--backbone", "cmt_tiny"], "run is about a file of weights"),
        (["--backbone", "cmt_tiny", "--arch", "x"], "--arch is about a file of weights"),
        (["--backbone", "cmt_tiny", "--size", "100"], "make the 100 a 96 or 128"),
        (["--backbone", "cmt_tinny"], "did you mean cmt_tiny"),
        (["--recipe", "nowhere.yaml"], "nowhere.yaml: no such file"),
        (["--recipe", "x.yaml", "--size", "32"], "--size=32, but x.yaml says the sizes"),
    ],
)
def test_what_makes_no_sense_is_refused_before_any_work(arguments, rule, capsys):
    code, said = told(capsys, *arguments)
    assert code == 2 and rule in said.err
