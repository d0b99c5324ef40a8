"""Recipes, presets, precedence, and configurations going out and coming back."""

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from dino_ssl import config_yaml
from dino_ssl.config import Checkpoint, Crops, Knn, Model, Optim, PretrainConfig
from dino_ssl.config_flags import configure
from dino_ssl.config_kinds import PRETRAIN
from dino_ssl.config_schema import flatten
from dino_ssl.config_yaml import (
    differences,
    from_dict,
    load_config,
    preset_names,
    read_config,
    read_layer,
    to_dict,
    write_config,
)
from dino_ssl.errors import UsageError

SOUND = PretrainConfig(data="photos")


RECIPES = sorted((Path(__file__).parents[1] / "launch" / "recipes").glob("*.yaml"))


@pytest.fixture
def recipe(tmp_path):
    """Write a recipe and return its path."""

    def write(text: str, name: str = "recipe.yaml") -> Path:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write


@pytest.fixture
def presets(tmp_path, monkeypatch):
    """A folder of presets in place of the packaged one."""
    folder = tmp_path / "presets"
    folder.mkdir()
    monkeypatch.setattr(config_yaml, "PRESETS", folder)
    (folder / "digits.yaml").write_text("data: digits\nepochs: 30\nseed: 3\noptim: {lr: 3e-3}\n")
    (folder / "cifar10.yaml").write_text("data: cifar10\n")
    return folder


def problems(*files: Path) -> list[str]:
    with pytest.raises(UsageError) as caught:
        read_config(files)
    return list(caught.value.problems)


def problem(text: str, recipe) -> str:
    """The one problem of a recipe with `text`, without the folder in front of the file's name."""
    path = recipe("data: photos\n" + text)
    (only,) = problems(path)
    return only.replace(f"{path.parent}/", "")


def test_later_wins_from_defaults_over_preset_and_recipes_to_flags(presets, recipe):
    first = recipe("batch_size: 64\nseed: 4\nepochs: 40\n", "first.yaml")
    second = recipe("epochs: 50\nseed: 5\n", "second.yaml")
    config, _ = configure([str(first), str(second), "--preset", "digits", "--seed", "6"], PRETRAIN)
    assert config == replace(PretrainConfig(), data="digits", optim=Optim(lr=3e-3), batch_size=64, epochs=50, seed=6)


def test_a_recipe_names_a_preset_and_the_flag_overrules_it(presets, recipe):
    path = recipe("preset: digits\nepochs: 12\n")
    assert read_config([path]).data == "digits"
    assert read_config([path]).epochs == 12
    assert configure([str(path), "--preset=cifar10"], PRETRAIN)[0].data == "cifar10"


def test_an_unknown_preset_is_answered_with_the_valid_ones(presets, recipe):
    answer = "preset=digit is unknown; did you mean 'digits'? the presets are cifar10, digits"
    assert problems(recipe("preset: digit\n")) == [answer]
    with pytest.raises(UsageError, match="the presets are cifar10, digits"):
        configure(["--preset", "digit"], PRETRAIN)


def test_a_preset_does_not_name_a_preset(presets, recipe):
    (presets / "loop.yaml").write_text("preset: digits\ndata: digits\n")
    assert problems(recipe("preset: loop\n")) == ["preset=loop names another preset, digits; a preset stands alone"]


@pytest.mark.parametrize("name", preset_names())
def test_every_packaged_preset_is_sound(name, recipe):
    assert read_config([recipe("data: photos\n")], preset=name).data == "photos"


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_is_sound(path, recipe):
    layers = [recipe("data: photos\n"), path]  # a recipe for own images leaves data to the flags
    assert read_config(layers).output_dir.name in {path.stem, "digits"}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *[("5e-4", 5e-4), ("1e-6", 1e-6), ("1E+2", 100.0), ("5.e-4", 5e-4), (".5", 0.5)],
        *[("1_000.5", 1000.5), ("3", 3.0), ("1_000", 1000.0), ("+2.5e3", 2500.0)],
    ],
)
def test_numbers_as_people_write_them_are_floats(text, value, recipe):
    lr = read_layer(recipe(f"optim:\n  lr: {text}\n"), PRETRAIN).values["optim.lr"]
    assert isinstance(lr, float)
    assert lr == value


@pytest.mark.parametrize("text", ["on", "off", "yes", "no", "1:30", "2024-01-31", "1.2.3", "e5", "010"])
def test_yaml_surprises_stay_text(text, recipe):
    assert read_layer(recipe(f"data: {text}\n"), PRETRAIN).values == {"data": text}


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("optim:\n  lrr: 1", "recipe.yaml:3: unknown key 'optim.lrr'; did you mean 'optim.lr'?"),
        ("optmi: {lr: 1}", "recipe.yaml:2: unknown key 'optmi'; did you mean 'optim'?"),
        ("lr: 1", "recipe.yaml:2: unknown key 'lr'; did you mean 'optim.lr'?"),
        ("out_dim: 10", "recipe.yaml:2: unknown key 'out_dim'; did you mean 'head.prototypes'?"),
        (
            "every_steps: 3",
            "recipe.yaml:2: unknown key 'every_steps'; did you mean 'checkpoint.every_steps' or 'log.every_steps'?",
        ),
        ("zzz: 1", "recipe.yaml:2: unknown key 'zzz'"),
        ("epochs: 1.5", "recipe.yaml:2: epochs=1.5 must be a whole number"),
        ("epochs: 1e2", "recipe.yaml:2: epochs=100.0 must be a whole number; write 100"),
        ("epochs: true", "recipe.yaml:2: epochs=true must be a whole number"),
        ("epochs: ten", 'recipe.yaml:2: epochs="ten" must be a whole number'),
        ("epochs: {a: 1}", 'recipe.yaml:2: epochs={"a": 1} must be a whole number'),
        ("epochs:", "recipe.yaml:2: epochs=null must have a value; leave the line out for the default"),
        ("steps: 0.5", "recipe.yaml:2: steps=0.5 must be a whole number"),
        ("optim: {lr: fast}", 'recipe.yaml:2: optim.lr="fast" must be a number'),
        ("optim: {lr: '5e-4'}", 'recipe.yaml:2: optim.lr="5e-4" must be a number'),
        ("optim: {lr: false}", "recipe.yaml:2: optim.lr=false must be a number"),
        ("model: {compile: yes}", 'recipe.yaml:2: model.compile="yes" must be true or false'),
        ("model: {compile: 1}", "recipe.yaml:2: model.compile=1 must be true or false"),
        ("model: {name: 18}", "recipe.yaml:2: model.name=18 must be text; write '18' in quotes"),
        ("model: {name: true}", "recipe.yaml:2: model.name=true must be text; write 'true' in quotes"),
        ("data_root: [a]", 'recipe.yaml:2: data_root=["a"] must be text'),
        (
            "optim: {name: adam}",
            "recipe.yaml:2: optim.name=\"adam\" must be one of adamw, sgd, lars; did you mean 'adamw'?",
        ),
        ("device: 3", "recipe.yaml:2: device=3 must be one of auto, cpu, cuda"),
        (
            "crops: {global_scale: [0.3]}",
            "recipe.yaml:2: crops.global_scale=[0.3] must be a list of 2 numbers in brackets",
        ),
        (
            "crops: {mean: [0, 0, a]}",
            'recipe.yaml:2: crops.mean=[0, 0, "a"] must be a list of numbers in brackets',
        ),
        ("crops: {mean: 0.5}", "recipe.yaml:2: crops.mean=0.5 must be a list of numbers in brackets"),
        (
            "optim: 0.1",
            "recipe.yaml:2: optim=0.1 must be a section: write its knobs below it, such as name, two spaces further in",
        ),
        ("epochs: 30\nepochs: 40", "recipe.yaml:3: 'epochs' stands on line 2 already; keep one of the two"),
        (
            "optim: {lr: 1}\noptim: {lr: 2}",
            "recipe.yaml:3: 'optim' stands on line 2 already; keep one of the two",
        ),
        ("preset: 3", "recipe.yaml:2: preset=3 must be a name: "),
    ],
)
def test_each_mistake_is_answered_with_file_line_key_value_and_rule(text, answer, recipe):
    assert problem(text, recipe).startswith(answer)


def test_files_that_are_no_recipes_are_named(tmp_path, recipe):
    missing, binary = tmp_path / "missing.yaml", tmp_path / "image.png"
    binary.write_bytes(b"\x89PNG\r\n\xff\xfe")
    assert problems(missing) == [f"{missing}: no such file; write the path of a YAML file"]
    assert problems(tmp_path) == [f"{tmp_path}: cannot be read (Is a directory); write the path of a YAML file"]
    assert problems(binary)[0].startswith(f"{binary}: not a YAML text file: ")
    broken = recipe("epochs: 3\noptim: {lr: 1\n")
    assert problems(broken)[0].startswith(f"{broken}:3: not valid YAML: ")
    listed = recipe("- epochs\n- 3\n")
    assert problems(listed) == [f"{listed}:1: must be lines of `key: value`"]
    unsafe = recipe("data: !!python/object/apply:os.getcwd []\n")
    assert problems(unsafe)[0].startswith(f"{unsafe}:1: not valid YAML: could not determine a constructor")


def test_an_empty_file_and_an_empty_section_change_nothing(recipe):
    assert read_layer(recipe(""), PRETRAIN).values == {}
    assert read_layer(recipe("# nothing yet\noptim:\n  # lr: 1\n"), PRETRAIN).problems == []


def test_a_dotted_key_is_the_knob_and_stands_only_once_too(recipe):
    assert read_layer(recipe("optim.lr: 0.1\n"), PRETRAIN).values == {"optim.lr": 0.1}
    assert problem("optim.lr: 0.1\noptim: {lr: 0.2}", recipe).startswith(
        "recipe.yaml:3: 'optim.lr' stands on line 2 already"
    )


def test_five_mistakes_in_one_file_are_reported_at_once(recipe):
    text = """\
data: photos
epoch: 3
batch_size: many
optim:
  lr: -1e-3
  name: adam
crops: {local_size: 90}
"""
    path = recipe(text)
    found = problems(path)
    assert [line.replace(str(path), "recipe.yaml") for line in found] == [
        "recipe.yaml:2: unknown key 'epoch'; did you mean 'epochs'?",
        'recipe.yaml:3: batch_size="many" must be a whole number',
        "recipe.yaml:6: optim.name=\"adam\" must be one of adamw, sgd, lars; did you mean 'adamw'?",
        "optim.lr=-0.001 must be above 0; the default is 0.0005",
        "crops.local_size=90 does not divide into patches of model.patch_size=16; try 96",
    ]


def test_a_knob_with_a_bad_value_is_complained_about_once(recipe):
    (only,) = problems(recipe("data: [a, b]\n"))
    assert "data=" in only
    (only,) = problems(recipe("dat: photos\n"))
    assert "unknown key 'dat'" in only


def test_a_later_value_is_checked_even_where_an_earlier_file_had_a_mistake(recipe):
    first = recipe("data: photos\nepochs: ten\n", "first.yaml")
    assert len(problems(first, recipe("epochs: -5\noptim: {warmup_epochs: 0}\n"))) > 1


# -- what goes out comes back --------------------------------------------------------------------------------

ODD = PretrainConfig(
    data="1e3",
    data_root=Path("/data sets/ä"),
    output_dir=Path("off"),
    steps=7,
    micro_batch_size=2,
    crops=Crops(global_scale=(0.25, 1.0), mean=(0.0, 1e-06, 1.0)),
    model=Model(name="no", small_stem=True),
    optim=Optim(min_lr=1e-06, lr=123456789.0, weight_decay=1e22),
    knn=Knn(train="null", test="0x10"),
    checkpoint=Checkpoint(every_steps=None),
)


@pytest.mark.parametrize("config", [PretrainConfig(), ODD], ids=["defaults", "odd"])
def test_what_is_written_reads_back_equal(config, tmp_path):
    write_config(config, tmp_path / "config.yaml")
    layer = read_layer(tmp_path / "config.yaml", PRETRAIN)
    assert layer.problems == []
    assert layer.values == flatten(config)
    assert load_config(tmp_path / "config.yaml", PRETRAIN) == config
    assert from_dict(to_dict(config), PRETRAIN) == config
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


def test_the_written_file_is_plain_yaml_for_any_reader(tmp_path):
    write_config(ODD, tmp_path / "config.yaml")
    text = (tmp_path / "config.yaml").read_text(encoding="utf-8")
    assert "!!" not in text
    tree = yaml.safe_load(text)
    assert tree == to_dict(ODD)
    assert tree["optim"]["min_lr"] == 1e-06
    assert tree["model"]["name"] == "no"


def test_a_dictionary_of_plain_types_holds_every_knob():
    def leaves(value):
        if isinstance(value, dict | list):
            items = value.values() if isinstance(value, dict) else value
            return {kind for item in items for kind in leaves(item)}
        return {type(value)}

    assert leaves(to_dict(ODD)) == {str, int, float, bool, type(None)}
    assert from_dict({}, PRETRAIN) == PretrainConfig()
    with pytest.raises(UsageError) as caught:
        from_dict({"epohcs": 3, "optim": {"lr": "x"}}, PRETRAIN)
    assert len(caught.value.problems) == 2


def test_a_file_of_another_version_is_refused_with_the_key_that_changed(tmp_path):
    (tmp_path / "config.yaml").write_text("dino:\n  koleo: 0.1\n")
    with pytest.raises(UsageError, match=r"config\.yaml:2: unknown key 'dino\.koleo'"):
        load_config(tmp_path / "config.yaml", PRETRAIN)


def test_differences_are_one_line_each():
    other = replace(SOUND, epochs=3, steps=5, optim=Optim(lr=0.001))
    assert differences(SOUND, other) == ["epochs: 100 -> 3", "steps: null -> 5", "optim.lr: 0.0005 -> 0.001"]
    assert differences(ODD, ODD) == []
