"""`finetune classify` on a few digits: against plain PyTorch, resumed, in pieces, on two ranks, from checkpoints."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch.nn import functional as F

from dino_ssl.cli import main
from dino_ssl.config_finetune import ClassifyConfig
from dino_ssl.config_flags import configure
from dino_ssl.config_kinds import CLASSIFY
from dino_ssl.config_yaml import from_dict, load_config, write_config
from dino_ssl.errors import UsageError
from dino_ssl.finetuning.classify import classify, prepare
from dino_ssl.finetuning.layers import layer_of_parameters
from dino_ssl.finetuning.task import FinetuneRates, Finetuning
from dino_ssl.models.backbone import build_backbone
from dino_ssl.models.weights import load, load_encoder
from dino_ssl.training.journal import read_metrics
from dino_ssl.training.loop import train
from dino_ssl.training.prepare import begin
from dino_ssl.training.run import Run
from tests.training import small_runs

CPU = torch.device("cpu")
RECIPES = Path(__file__).parents[2] / "launch" / "recipes" / "classify"
LAYER_DECAY = 0.5


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Eighty digits to learn from and as many others to measure on: two SOURCEs."""
    folder = tmp_path_factory.mktemp("digits")
    return small_runs.write_digits(folder / "train"), small_runs.write_digits(folder / "test", first=80)


def a_config(folder: Path, images: tuple[str, str], **changes: Any) -> ClassifyConfig:
    """Five steps of sixteen images an epoch."""
    tree: dict[str, Any] = {
        "data": images[0],
        "output_dir": str(folder / "run"),
        "steps": 8,
        "batch_size": 16,
        "device": "cpu",
        "precision": "fp32",
        "crops": {"size": 16, "scale": [0.5, 1.0], "flip": 0.0},
        "model": {"name": "vit_micro", "patch_size": 8, "drop_path": 0.0},
        "optim": {"name": "sgd", "lr": 0.8, "warmup_epochs": 0.4, "weight_decay": 0.1, "layer_decay": LAYER_DECAY},
        "loader": {"num_workers": 0},
        "validation": {"test": images[1], "center_crop": 1.0},
        "checkpoint": {"every_steps": 1, "keep_last": 99},
        "log": {"every_steps": 1},
    }
    for name, value in changes.items():
        tree[name] = {**tree.get(name, {}), **value} if isinstance(value, dict) else value
    return from_dict(tree, CLASSIFY)


def run_here(config: ClassifyConfig) -> Run[FinetuneRates]:
    run = prepare(config, CPU)
    begin(run)
    with run.journal:
        train(run)
    return run


def weights_of(run: Run[FinetuneRates]) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in run.task.weights()["model"].items()}


def a_state(config: ClassifyConfig, step: int) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(small_runs.checkpoint_path(config, step), weights_only=True)
    del state["config"], state["saved_steps"]
    for rank in state["rng"]:
        del rank["python"]
    return state


def test_eight_steps_are_those_of_plain_pytorch(tmp_path, images):
    run = prepare(a_config(tmp_path, images), CPU)
    task = run.task
    assert isinstance(task, Finetuning)
    network = copy.deepcopy(task.network)
    batches = list(run.micro_batches(small_runs_workers()))
    layers, head = layer_of_parameters(network)
    groups = [
        {
            "params": [parameter],
            "weight_decay": 0.0 if parameter.ndim == 1 or name.endswith(".bias") else 0.1,
            "scale": LAYER_DECAY ** (head - layers[name]),
        }
        for name, parameter in network.named_parameters()
    ]
    optimizer, losses = torch.optim.SGD(groups, lr=0.1, momentum=0.9), []
    for step, batch in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = float(task.rates[step]) * group["scale"]
        pixels = (batch.views[0][0] / 255 - 0.5) * 1.0
        mean, std = (torch.tensor(values)[:, None, None] for values in (run.config.crops.mean, run.config.crops.std))
        loss = F.cross_entropy(network(((pixels + 0.5) - mean) / std), task.labels[batch.indices])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    with run.journal:
        train(run)
    assert [line["train/loss"] for line in read_metrics(run.folder) if "train/loss" in line] == pytest.approx(
        losses, abs=1e-4
    )
    torch.testing.assert_close(weights_of(run), dict(network.state_dict()), atol=1e-4, rtol=1e-4)


def small_runs_workers() -> Any:
    from dino_ssl.data.loader import Workers  # noqa: PLC0415

    return Workers(0, 0)


def test_labels_are_those_of_the_images_that_were_used(tmp_path, images):
    run = prepare(a_config(tmp_path, images), CPU)
    by_content = {}
    for epoch in range(3):
        for batch in run.micro_batches(small_runs_workers()):
            assert len(batch.indices) == batch.views[0].shape[1] == 16
            for index, label in zip(batch.indices, run.task.labels[batch.indices].tolist(), strict=True):
                assert by_content.setdefault(index, label) == int(run.source.labels[index]), epoch


# Without crops.erase: timm draws that from Python's `random`, and so do the type checks of these tests.
NOISY = {
    "crops": {"random_shift": 2},
    "model": {"drop_path": 0.2},
    "loss": {"mixup": 0.5, "cutmix": 1.0, "label_smoothing": 0.1, "dropout": 0.2},
}


def test_a_killed_run_resumes_to_the_bit_with_everything_that_draws(tmp_path, images):
    whole = a_config(tmp_path / "whole", images, **NOISY)
    run_here(whole)
    killed = a_config(tmp_path / "killed", images, **{**NOISY, "steps": 8})
    run_here(killed)
    for step in range(6, 9):
        small_runs.checkpoint_path(killed, step).unlink()
        small_runs.checkpoint_path(killed, step).with_suffix(".pth.sha256").unlink()
    newest = killed.output_dir / "checkpoints" / "checkpoint.pth"
    newest.unlink()
    newest.hardlink_to(small_runs.checkpoint_path(killed, 5))
    resumed = run_here(killed)
    assert resumed.step == 8
    small_runs.assert_bitwise_equal(a_state(whole, 8), a_state(killed, 8))


def test_the_seed_decides_everything_that_draws(tmp_path, images):
    runs = [run_here(a_config(tmp_path / str(n), images, seed=seed, **NOISY)) for n, seed in enumerate((0, 0, 1))]
    same, also, other = (weights_of(run) for run in runs)
    small_runs.assert_bitwise_equal(same, also)
    assert not torch.equal(same["head.1.weight"], other["head.1.weight"])


def test_micro_batches_add_up_to_the_whole_batch(tmp_path, images):
    whole = run_here(a_config(tmp_path / "whole", images))
    parts = run_here(a_config(tmp_path / "parts", images, micro_batch_size=4))
    assert parts.shares.accumulation == 4
    torch.testing.assert_close(weights_of(parts), weights_of(whole), atol=1e-5, rtol=1e-4)


def test_two_ranks_train_what_one_does(tmp_path, images):
    one, two = (a_config(tmp_path / name, images) for name in ("one", "two"))
    run_here(one)
    assert small_runs.on_ranks(2, _Classify(two)) == [_score(one)] * 2
    torch.testing.assert_close(a_state(two, 8)["model"], a_state(one, 8)["model"], atol=1e-5, rtol=1e-4)


class _Classify:
    """Picklable: trains on whatever ranks there are; the last measured accuracy."""

    def __init__(self, config: ClassifyConfig) -> None:
        self.config = config

    def __call__(self) -> float:
        return float(run_here(self.config).journal.latest["eval/top1"])


def _score(config: ClassifyConfig) -> float:
    return float([line["eval/top1"] for line in read_metrics(config.output_dir) if "eval/top1" in line][-1])


def test_last_and_best_are_told_apart(tmp_path, images):
    config = a_config(tmp_path, images, steps=None, epochs=4, checkpoint={"every_steps": None, "keep_last": 1})
    report = classify(config)
    scores = {line["step"]: line["eval/top1"] for line in read_metrics(config.output_dir) if "eval/top1" in line}
    assert list(scores) == [5, 10, 15, 20]
    best = max(scores, key=lambda step: (scores[step], -step))
    assert report.scores == {"last": scores[20], "best": scores[best]}
    folder = config.output_dir / "checkpoints"
    for name, step in (("checkpoint.pth", 20), ("best.pth", best)):
        assert torch.load(folder / name, weights_only=True)["step"] == step
        loaded = load(folder / name)
        assert loaded.family == "dino-ssl" and loaded.encoder.name == "vit_micro/8" and loaded.encoder.size == 16
    assert "best checkpoint, after epoch" in report.text and (config.output_dir / "curve.png").is_file()


def test_a_run_starts_from_the_teacher_of_a_pretraining(tmp_path, images):
    pretrained = small_runs.a_config(tmp_path / "pretrained", steps=3)
    small_runs.run_here(pretrained)
    teacher = load_encoder(pretrained.output_dir)
    model = {"name": "", "patch_size": 16, "weights": str(pretrained.output_dir)}
    config = a_config(tmp_path, images, model=model, crops={"mean": [], "std": []})
    run = prepare(config, CPU)
    begin(run)
    started = run.task.network.backbone
    assert all(parameter.requires_grad for parameter in started.parameters()) and started.training
    torch.testing.assert_close(dict(started.state_dict()), dict(teacher.backbone.state_dict()), atol=0, rtol=0)
    written = load_config(config.output_dir / "config.yaml", CLASSIFY)
    assert (written.model.name, written.model.patch_size) == ("vit_micro", 8)
    assert written.crops.mean == teacher.mean and written.crops.std == teacher.std
    with run.journal:
        train(run)
    again = load_encoder(config.output_dir)
    ones, trained = torch.ones(1, 3, 16, 16), run.task.network.eval().backbone
    torch.testing.assert_close(again.backbone(ones), trained(ones))
    assert prepare(config, CPU).config == run.config, "the same command resumes"
    write_config(config, config.output_dir / "config.yaml")  # as a launcher leaves it in the queue
    assert prepare(config, CPU).config == run.config
    with pytest.raises(UsageError, match=r"crops\.mean: "):
        prepare(replace(config, crops=replace(config.crops, mean=(0.5,) * 3, std=(0.5,) * 3)), CPU)


@pytest.mark.parametrize("kind", ["free", "relative"])
def test_a_cmt_that_was_made_for_another_size_is_fine_tuned_and_read_again(tmp_path, images, kind):
    torch.manual_seed(0)
    bare = build_backbone("cmt_micro", image_size=64, position_bias=kind)
    torch.save(bare.state_dict(), tmp_path / "bare.pth")
    model = {"name": "", "weights": str(tmp_path / "bare.pth")}
    config = a_config(tmp_path, images, model=model, crops={"size": 32, "mean": [], "std": []}, steps=2)
    run = prepare(config, CPU)
    begin(run)
    with run.journal:
        train(run)
    assert (run.config.model.name, run.config.model.position_bias) == ("cmt_micro", kind)
    again = load_encoder(config.output_dir)
    assert again.size == 32 and again.backbone.image_size == 64
    ones, trained = torch.ones(1, 3, 32, 32), run.task.network.eval().backbone
    torch.testing.assert_close(again.backbone(ones), trained(ones))


def test_a_resnet_with_the_stem_for_small_images_is_fine_tuned_and_read_again(tmp_path, images):
    torch.manual_seed(0)
    torch.save(build_backbone("resnet18", image_size=16, small_stem=True).state_dict(), tmp_path / "bare.pth")
    run = run_here(a_config(tmp_path, images, model={"name": "", "weights": str(tmp_path / "bare.pth")}, steps=2))
    assert run.config.model.small_stem
    again = load_encoder(run.folder)
    ones, trained = torch.ones(1, 3, 16, 16), run.task.network.eval().backbone
    torch.testing.assert_close(again.backbone(ones), trained(ones))


def test_what_is_missing_or_contradicts_is_named(tmp_path, images):
    def problem(**changes: Any) -> str:
        with pytest.raises(UsageError) as caught:
            prepare(a_config(tmp_path, images, **changes), CPU)
        return caught.value.problems[0]

    unlabelled = tmp_path / "unlabelled"
    unlabelled.mkdir()
    from PIL import Image  # noqa: PLC0415

    for number in range(20):
        Image.new("RGB", (16, 16), (number, 0, 0)).save(unlabelled / f"{number}.png")
    assert "has no labels" in problem(data=str(unlabelled), validation={"test": None})
    assert "does not exist" in problem(model={"weights": str(tmp_path / "nowhere.pth")})
    assert "optim.warmup_epochs=9 is longer than the run of 8 steps" in problem(optim={"warmup_epochs": 9.0})
    trained = tmp_path / "trained.pth"
    torch.save(build_backbone("cmt_micro", image_size=32).state_dict(), trained)
    assert "model.position_bias=relative, but of model.weights" in problem(
        model={"name": "", "weights": str(trained), "position_bias": "relative"}, crops={"size": 32}
    )
    assert "crops.channels=1, but model.weights" in problem(
        model={"name": "", "weights": str(trained)}, crops={"size": 32, "channels": 1}
    )
    gray = a_config(tmp_path, images, crops={"channels": 1})
    assert "crops.mean is not set, and ImageNet's has 3 numbers" in CLASSIFY.check(gray)[0]
    few = small_runs.write_digits(tmp_path / "few")
    assert few  # as many classes as the others
    assert not (tmp_path / "run").exists()


def test_the_command_says_what_it_wants(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["finetune", "classify", "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80 and any("--loss.mixup" in line for line in lines)
    assert main(["finetune"]) == 0
    assert "classify" in capsys.readouterr().out
    assert main(["finetune", "clasify"]) == 2
    said = capsys.readouterr().err
    assert "did you mean 'classify'?" in said and "`dino-ssl finetune --help`" in said
    assert main(["finetune", "classify", "--data", "digits", "--crops.sizes", "8", "--optim.schedule", "steps"]) == 2
    said = capsys.readouterr().err
    for part in ("--crops.size", "model.name is not set", "optim.decay_epochs", "`dino-ssl finetune classify --help`"):
        assert part in said
    assert list(tmp_path.iterdir()) == []


def test_the_recipes_are_sound():
    for recipe in sorted(RECIPES.glob("*.yaml")):
        config, _ = configure([str(recipe), "--model.name", "resnet18"], CLASSIFY)
        assert config.data, recipe


def test_every_knob_of_the_written_configuration_is_read_again(tmp_path, images):
    config = a_config(tmp_path, images, **NOISY)
    begin(prepare(config, CPU))
    written = yaml.safe_load((config.output_dir / "config.yaml").read_text())
    assert written["loss"]["mixup"] == 0.5 and written["model"]["drop_path"] == 0.2
    assert load_config(config.output_dir / "config.yaml", CLASSIFY).loss == config.loss
