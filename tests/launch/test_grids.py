"""A grid names every combination once, and every mistake."""

import itertools
from pathlib import Path

import pytest

from dino_ssl.config_flags import configure
from dino_ssl.config_kinds import PRETRAIN
from dino_ssl.config_schema import flatten
from dino_ssl.errors import UsageError
from launch.grids import read_grid


def grid(folder: Path, text: str) -> Path:
    (folder / "grid.yaml").write_text(text)
    return folder / "grid.yaml"


def test_points_are_every_combination_in_the_order_of_nested_loops(tmp_path):
    points = read_grid(grid(tmp_path, "optim.lr: [1e-3, 5e-4]\nseed: [0, 1, 2]"))
    assert [tuple(p.values.values()) for p in points] == list(itertools.product([1e-3, 5e-4], [0, 1, 2]))
    assert [p.number for p in points] == list(range(6))
    assert points[4].name == "004-optim.lr=0.0005-seed=1"
    assert len({p.name for p in points}) == 6


@pytest.mark.parametrize(
    ("knob", "values"),
    [
        ("optim.lr", [1e-3, 0.5]),
        ("model.compile", [True, False]),
        ("steps", [None, 500]),
        ("data", ["a b", "digits"]),
        ("crops.local_scale", [[0.1, 0.2], [0.05, 0.4]]),
        ("crops.mean", [[0.5, 0.5, 0.5], [0.0, 0.25, 1.0]]),
        ("precision", ["fp32", "bf16"]),
    ],
)
def test_a_points_flags_set_its_knob_to_its_value(tmp_path, knob, values):
    def text(value):
        return {None: "null", True: "true", False: "false"}.get(value, value) if not isinstance(value, list) else value

    points = read_grid(grid(tmp_path, f"{knob}: [{', '.join(str(text(v)) for v in values)}]"))
    for point, value in zip(points, values, strict=True):
        config, _ = configure(["--data", "x", *point.flags()], PRETRAIN)
        expected = tuple(value) if isinstance(value, list) else value
        assert flatten(config)[knob] == expected
        others = {k: v for k, v in flatten(config).items() if k not in {knob, "data"}}
        assert others == {
            k: v for k, v in flatten(configure(["--data", "x"], PRETRAIN)[0]).items() if k not in {knob, "data"}
        }
    assert knob in PRETRAIN.knobs


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("optim.lrr: [1]", ":1: unknown key 'optim.lrr'; did you mean 'optim.lr'?"),
        ("seed: 3", ":1: seed=3 must be a list of values in brackets"),
        ("seed: []", ":1: seed=[] must be a list of values in brackets"),
        ("\nseed: [0, x]", ':2: seed="x" must be a whole number'),
        ("seed: [0, 1, 0]", ":1: seed has 0 twice; keep one"),
        ("output_dir: [a]", ":1: output_dir is chosen for each point"),
        ("", ": names no knob; write such as"),
    ],
)
def test_a_mistake_is_named_with_its_line(tmp_path, text, problem):
    path = grid(tmp_path, text)
    with pytest.raises(UsageError) as caught:
        read_grid(path)
    (only,) = caught.value.problems
    assert only.startswith(f"{path}{problem}")


def test_names_are_safe_as_folders(tmp_path):
    (one, two) = read_grid(grid(tmp_path, "data: ['/a b/$c', 'd/../e']"))
    for name in (one.name, two.name):
        assert "/" not in name and " " not in name and "$" not in name
