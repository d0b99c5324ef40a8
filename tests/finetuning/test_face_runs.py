"""`finetune arcface` and `askd` on a few digits: their loss in plain PyTorch, resumed, on two ranks, loaded again."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch.nn import functional as F

from dino_ssl.cli import main
from dino_ssl.config_kinds import ARCFACE, ASKD
from dino_ssl.config_yaml import from_dict, load_config, to_dict
from dino_ssl.data.degradation import degraded
from dino_ssl.data.sources import open_source
from dino_ssl.data.transfer import normalize
from dino_ssl.dino.schedules import scaled_learning_rate
from dino_ssl.errors import UsageError
from dino_ssl.evaluation import verification
from dino_ssl.evaluation.features import Extractor
from dino_ssl.finetuning import arcface, askd
from dino_ssl.finetuning.margins import Margin
from dino_ssl.finetuning.schedule import rates_by_step
from dino_ssl.finetuning.subcenters import cleaned
from dino_ssl.models.necks import EmbeddingNetwork
from dino_ssl.models.weights import load_encoder
from dino_ssl.training.journal import read_metrics
from dino_ssl.training.loop import train
from dino_ssl.training.prepare import begin
from eval import clean_identities, where_to_look
from tests.training import small_runs

CPU = torch.device("cpu")
RECIPES = Path(__file__).parents[2] / "launch" / "recipes" / "faces"
KINDS = {"arcface": (ARCFACE, arcface), "askd": (ASKD, askd)}


@pytest.fixture(scope="module", autouse=True)
def narrow():
    """Face ResNets of a thousandth of their parameters: every step here writes a checkpoint."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dino_ssl.models.iresnet.DIMS", (16, 16, 32, 32))
        yield


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Eighty digits to learn from and two hundred others for pairs: two SOURCEs."""
    folder = tmp_path_factory.mktemp("digits")
    small_runs.write_digits(folder / "test", first=80)
    return small_runs.write_digits(folder / "train"), _pairs(folder / "pairs")


def _pairs(folder: Path) -> str:
    """Twenty made-up people with ten images each, since ten folds want two people each."""
    rng = np.random.default_rng(0)
    people = rng.integers(0, 255, (20, 1, 8, 8))
    folder.mkdir()
    noisy = (people + rng.integers(-40, 40, (20, 10, 8, 8))).clip(0, 255)
    np.save(folder / "x_train.npy", noisy.reshape(-1, 8, 8).astype(np.uint8))
    np.save(folder / "y_train.npy", np.arange(20).repeat(10))
    return str(folder)


def a_config(folder: Path, images: tuple[str, str], name: str = "arcface", **changes: Any) -> Any:
    """Five steps of sixteen images an epoch."""
    tree: dict[str, Any] = {
        "data": images[0],
        "output_dir": str(folder / "run"),
        "steps": 5,
        "batch_size": 16,
        "device": "cpu",
        "precision": "fp32",
        "crops": {"size": 32, "flip": 0.0},
        "model": {"name": "vit_micro", "patch_size": 16, "drop_path": 0.0},
        "embedding": {"dim": 16},
        "margin": {"scale": 16.0},
        "optim": {"name": "sgd", "lr": 0.8, "warmup_epochs": 0.0},
        "loader": {"num_workers": 0},
        "validation": {"test": images[1], "num_pairs": 200},
        "checkpoint": {"every_steps": 1, "keep_last": 99},
        "log": {"every_steps": 1},
    }
    for key, value in changes.items():
        tree[key] = {**tree.get(key, {}), **value} if isinstance(value, dict) else value
    return from_dict(tree, KINDS[name][0])


def run_here(config: Any, name: str = "arcface") -> Any:
    run = KINDS[name][1].prepare(config, CPU)
    begin(run)
    with run.journal:
        train(run)
    return run


def a_batch(run):
    from dino_ssl.data.loader import Workers  # noqa: PLC0415

    batch = next(iter(run.micro_batches(Workers(0, 0))))
    crops = run.config.crops
    return batch, normalize(batch.views[0][0], crops.mean, crops.std), run.task.labels[batch.indices]


def plain_margin_loss(embeddings, centres, labels, margin, scale=16.0):
    cosines = F.normalize(embeddings, dim=1) @ F.normalize(centres[:, 0], dim=1).T
    own = margin(cosines.gather(1, labels[:, None]).squeeze(1))
    return F.cross_entropy(scale * cosines.scatter(1, labels[:, None], own[:, None]), labels)


@pytest.mark.parametrize(
    ("model", "margin", "expected"),
    [
        ("vit_micro", {}, Margin(1.0, 0.0, 0.4, gradient="straight_through")),
        ("resnet8x4", {}, Margin(1.0, 0.5, 0.0)),
        ("vit_micro", {"m": [0.9, 0.4, 0.15], "gradient": "exact"}, Margin(0.9, 0.4, 0.15)),
        ("vit_micro", {"m": [1, 0.5, 0], "is_hard": True, "gradient": "exact"}, Margin(continuation="linear")),
    ],
)
def test_the_loss_of_a_batch_is_that_of_its_margin_in_plain_pytorch(tmp_path, images, model, margin, expected):
    run = arcface.prepare(a_config(tmp_path, images, model={"name": model}, margin=margin), CPU)
    batch, pixels, labels = a_batch(run)
    network = run.task.network
    assert network.classes.margin == expected and network.classes.centres.shape == (10, 1, 16)
    found = run.task.loss(batch, run.task.begin_step(0))
    torch.testing.assert_close(found, plain_margin_loss(network(pixels), network.classes.centres, labels, expected))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory, images, narrow):
    """A trained network with gates, and the folder of its run."""
    config = a_config(tmp_path_factory.mktemp("teacher"), images, model={"name": "iresnet18_cbam"}, steps=2)
    run_here(config)
    return config.output_dir


def askd_config(folder, images, teacher, look=None, **changes):
    model = {"name": "iresnet18_cbam"} | changes.pop("model", {})
    return a_config(
        folder, images, "askd", model=model, low_resolution={"sides": [8]}, steps=2,
        look={"teacher": str(teacher)} | (look or {}), **changes,
    )  # fmt: skip


def test_the_loss_of_a_student_is_every_term_of_it_in_plain_pytorch(tmp_path, images, teacher):
    look = {"weight": 3.0, "feature_weight": 2.0, "logit_weight": 0.5, "logit_temperature": 2.0}
    run = askd.prepare(askd_config(tmp_path, images, teacher, look), CPU)
    batch, pixels, labels = a_batch(run)
    student, master = run.task.network, load_encoder(teacher).backbone
    # Train-mode batch norm: the same batch statistics whoever computes them.
    low = degraded(pixels, 8)
    features, ours = student.backbone.features_and_gates(low)
    embedding, (_, theirs) = student.head(features), master.backbone.features_and_gates(pixels)
    expected = plain_margin_loss(embedding, student.classes.centres, labels, Margin())
    for s, t in zip(ours, theirs, strict=True):
        for kind in ("channel", "spatial"):
            cosines = F.cosine_similarity(getattr(s, kind).flatten(1), getattr(t, kind).flatten(1))
            expected = expected + 3.0 * (1 - cosines.mean())
    assert len(ours) == 8 == student.backbone.num_gates
    target = master(pixels)
    expected = expected + 2.0 * (1 - F.cosine_similarity(embedding, target).mean())
    known = torch.load(teacher / "checkpoints" / "checkpoint.pth", weights_only=True)["model"]["classes.centres"]
    logits, targets = (
        16.0 * F.normalize(e, dim=1) @ F.normalize(c[:, 0], dim=1).T / 2.0
        for e, c in ((embedding, student.classes.centres), (target, known))
    )
    divergence = (targets.softmax(1) * (targets.log_softmax(1) - logits.log_softmax(1))).sum(1).mean()
    expected = expected + 0.5 * 4.0 * divergence
    torch.testing.assert_close(run.task.loss(batch, run.task.begin_step(0)), expected)


def test_a_student_looks_more_and_more_like_its_teacher_and_tells_so(tmp_path, images, teacher):
    look = {"weight": 80.0, "reduction": "mean"}
    config = from_dict({**to_dict(askd_config(tmp_path, images, teacher, look)), "steps": 15}, ASKD)
    run_here(config, "askd")
    lines = read_metrics(config.output_dir)
    similar = [line["eval/look_similarity"] for line in lines if "eval/look_similarity" in line]
    assert len(similar) == 3 and similar[-1] > similar[0] > -1


@pytest.mark.parametrize("name", ["vit_micro", "cmt_micro"])
def test_transformers_learn_from_attention(tmp_path, images, name):
    model = {"name": name}
    first = a_config(tmp_path / "teacher", images, model=model, steps=1, validation={"test": None})
    run_here(first)
    look = {"blocks": 2, "rows": "all", "measure": "centred"}
    config = askd_config(tmp_path, images, first.output_dir, look, model=model, validation={"test": None})
    run = askd.prepare(config, CPU)
    batch, pixels, labels = a_batch(run)
    student, master = run.task.network.eval(), load_encoder(first.output_dir).backbone
    expected = plain_margin_loss(student(degraded(pixels, 8)), student.classes.centres, labels, Margin(1.0, 0.0, 0.4))
    for block in (-2, -1):
        ours, theirs = student.attention(degraded(pixels, 8), block), master.attention(pixels, block)
        rows = [a.logits(slice(None)) - a.logits(slice(None)).mean(-1, keepdim=True) for a in (ours, theirs)]
        expected = expected + 5.0 * (1 - F.cosine_similarity(*rows, dim=-1).mean())
    torch.testing.assert_close(run.task.loss(batch, run.task.begin_step(0)), expected)


@pytest.mark.parametrize("name", ["arcface", "askd"])
def test_a_killed_run_resumes_to_the_bit_with_all_that_draws(tmp_path, images, teacher, name):
    def config(folder, steps):
        changes: dict[str, Any] = {"crops": {"random_shift": 2}, "margin": {"sampling": 0.5, "centres": 2}}
        if name == "arcface":
            return a_config(folder, images, model={"drop_path": 0.2}, embedding={"dropout": 0.3}, steps=4, **changes)
        low = {"sides": [8, 16], "mode": "random_kernel"}
        made = askd_config(folder, images, teacher, **changes)
        return from_dict({**to_dict(made), "low_resolution": low, "steps": steps}, ASKD)

    whole, killed = config(tmp_path / "whole", 4), config(tmp_path / "killed", 4)
    for each in (whole, killed):
        run_here(each, name)
    for step in (3, 4):
        small_runs.checkpoint_path(killed, step).unlink()
        small_runs.checkpoint_path(killed, step).with_suffix(".pth.sha256").unlink()
    newest = killed.output_dir / "checkpoints" / "checkpoint.pth"
    newest.unlink()
    newest.hardlink_to(small_runs.checkpoint_path(killed, 2))
    run_here(killed, name)
    states = []
    for each in (whole, killed):
        states.append(torch.load(small_runs.checkpoint_path(each, 4), weights_only=True))
        states[-1] = {key: states[-1][key] for key in ("model", "optimizer", "step", "best")}
    small_runs.assert_bitwise_equal(*states)


class _Train:
    """Picklable: trains on whatever ranks there are."""

    def __init__(self, config: Any, name: str = "arcface", number: str = "eval/verification") -> None:
        self.config, self.name, self.number = config, name, number

    def __call__(self) -> float:
        return float(run_here(self.config, self.name).journal.latest[self.number])


def test_two_ranks_train_what_one_does_and_one_goes_on_where_two_stopped(tmp_path, images):
    one, two = (a_config(tmp_path / name, images, optim={"clip_grad": 1.0}) for name in ("one", "two"))
    score = _Train(one)()
    assert small_runs.on_ranks(2, _Train(two)) == pytest.approx([score] * 2, abs=0.02)

    def state(config):
        found = torch.load(small_runs.checkpoint_path(config, 5), weights_only=True)
        return {key: found[key] for key in ("model", "optimizer")}

    torch.testing.assert_close(state(two), state(one), atol=2e-5, rtol=1e-4)
    for step in (4, 5):
        small_runs.checkpoint_path(two, step).unlink()
        small_runs.checkpoint_path(two, step).with_suffix(".pth.sha256").unlink()
    newest = two.output_dir / "checkpoints" / "checkpoint.pth"
    newest.unlink()
    newest.hardlink_to(small_runs.checkpoint_path(two, 3))
    _Train(two)()
    torch.testing.assert_close(state(two), state(one), atol=2e-5, rtol=1e-4)


def test_two_ranks_teach_a_student_as_one_does(tmp_path, images):
    model = {"name": "vit_micro"}
    first = a_config(tmp_path / "teacher", images, model=model, steps=1, validation={"test": None})
    run_here(first)
    configs = [
        from_dict({**to_dict(askd_config(tmp_path / name, images, first.output_dir, model=model)), "steps": 5}, ASKD)
        for name in ("one", "two")
    ]
    similarity = _Train(configs[0], "askd", "eval/look_similarity")()
    found = small_runs.on_ranks(2, _Train(configs[1], "askd", "eval/look_similarity"))
    assert found == pytest.approx([similarity] * 2, abs=1e-4)
    one, two = (torch.load(small_runs.checkpoint_path(c, 5), weights_only=True)["model"] for c in configs)
    torch.testing.assert_close(one, two, atol=2e-5, rtol=1e-4)


def test_the_file_of_a_run_is_an_encoder_whose_features_are_the_embedding_and_scores_alike(tmp_path, images):
    config = a_config(tmp_path, images, embedding={"neck": "cls+gap"})
    run = run_here(config)
    encoder = load_encoder(config.output_dir)
    assert isinstance(encoder.backbone, EmbeddingNetwork) and encoder.backbone.embed_dim == 16
    assert "ignored classes.*" in encoder.report
    pixels = torch.rand(3, 3, 32, 32)
    torch.testing.assert_close(encoder.backbone(pixels), run.task.network.eval()(pixels))
    pairs = run.task.validator.pairs
    arrays = torch.from_numpy(np.load(Path(images[1]) / "x_train.npy"))[:, None].repeat(1, 3, 1, 1)
    from torchvision.transforms import functional as TF  # noqa: PLC0415

    faces = torch.stack([TF.pil_to_tensor(TF.resize(TF.to_pil_image(a), [32], TF.InterpolationMode.BICUBIC))
                         for a in arrays])  # fmt: skip
    seen = normalize(faces, encoder.mean, encoder.std)
    features = torch.stack([encoder.backbone(seen), encoder.backbone(seen.flip(-1))], 1).double().numpy()
    folds = verification.insightface(features, verification.Pairs(pairs.left, pairs.right, pairs.is_same))
    assert run.journal.latest["eval/verification"] == pytest.approx(folds.mean, abs=0.011)


def test_a_run_may_start_from_another_run_of_faces_without_its_neck(tmp_path, images):
    first = a_config(tmp_path / "first", images, steps=1)
    run_here(first)
    second = arcface.prepare(a_config(tmp_path / "second", images, model={"name": "", "weights": str(first.output_dir)},
                                      embedding={"neck": "gap", "dim": 8}), CPU)  # fmt: skip
    ours, theirs = second.task.network.backbone.state_dict(), load_encoder(first.output_dir).backbone.backbone
    torch.testing.assert_close(dict(ours), dict(theirs.state_dict()))


def test_low_rank_adaptation_trains_beside_a_frozen_backbone_and_loads_as_the_sum(tmp_path, images):
    first = a_config(tmp_path / "first", images, steps=1, validation={"test": None})
    run_here(first)
    model = {"name": "", "weights": str(first.output_dir)}
    config = a_config(tmp_path / "low", images, model=model, embedding={"lora_rank": 3}, validation={"test": None})
    run = run_here(config)
    backbone, before = run.task.network.backbone.eval(), load_encoder(first.output_dir).backbone.backbone
    moved = {name for name, p in backbone.named_parameters() if p.requires_grad}
    assert moved == {f"blocks.{block}.attn.{layer}.parametrizations.weight.0.{part}" for block in range(4)
                     for layer in ("qkv", "proj") for part in ("down", "up")}  # fmt: skip
    same = {name: value for name, value in backbone.state_dict().items() if name in before.state_dict()}
    torch.testing.assert_close(same, {name: before.state_dict()[name] for name in same}, atol=0, rtol=0)
    encoder, pixels = load_encoder(config.output_dir), torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(encoder.backbone(pixels), run.task.network.eval()(pixels))
    assert not torch.equal(encoder.backbone.backbone(pixels), before(pixels))
    assert not [name for name in encoder.backbone.state_dict() if "parametrizations" in name]


def test_what_is_missing_or_contradicts_is_named(tmp_path, images, teacher):
    def problem(config):
        with pytest.raises(UsageError) as caught:
            KINDS["askd" if hasattr(config, "look") else "arcface"][1].prepare(config, CPU)
        return str(caught.value)

    assert "the images that are trained on" in problem(a_config(tmp_path, images, validation={"test": images[0]}))
    for look, text in (
        ({"weight": 1.0}, "does not look at images as look.teacher="),
        ({"weight": 0.0, "teacher": images[0]}, images[0]),
    ):
        assert text in problem(askd_config(tmp_path, images, teacher, look, model={"name": "vit_micro"}))
    assert "no gates; take a ViT, a CMT or an iresnet with _cbam" in problem(
        askd_config(tmp_path, images, teacher, model={"name": "resnet8x4"})
    )
    assert "write --crops.size 32" in problem(askd_config(tmp_path, images, teacher, crops={"size": 64}))
    other = small_runs.write_digits(tmp_path / "others", first=200)
    look = {"logit_weight": 1.0}
    assert "was trained on other data than" in problem(askd_config(tmp_path, (other, images[1]), teacher, look))


@pytest.mark.parametrize(
    ("name", "tree", "text"),
    [
        ("arcface", {"margin": {"m": [1.0, 0.5]}}, "margin.m=[1.0, 0.5] must be three numbers"),
        ("arcface", {"margin": {"is_hard": True}}, "write --margin.m 1 0.5 0 with it"),
        ("arcface", {"margin": {"sampling": 0.0}}, "margin.sampling=0.0 must be above 0"),
        ("arcface", {"embedding": {"lora_rank": 4}}, "embedding.lora_rank adapts a pretrained network"),
        ("arcface", {"crops": {"erase": 0.2}}, "crops.erase=0.2 is for classification"),
        ("askd", {}, "look.teacher is not set; write --look.teacher"),
        ("askd", {"low_resolution": {"sides": [64]}}, "low_resolution.sides=64 is above crops.size=32"),
    ],
)
def test_mistakes_show_before_the_data_is_looked_at(tmp_path, images, name, tree, text):
    config = a_config(tmp_path, images, name, **tree)
    assert text in " ".join(KINDS[name][0].check(config))


def test_the_commands_train_and_say_what_was_reached(tmp_path, images, capsys):
    words = ["--data", images[0], "--output-dir", str(tmp_path / "run"), "--steps", "5", "--batch-size", "16",
             "--device", "cpu", "--crops.size", "32", "--model.name", "vit_micro", "--optim.warmup-epochs", "0",
             "--validation.test", images[1], "--validation.num-pairs", "100", "--loader.num-workers", "0"]  # fmt: skip
    assert main(["finetune", "arcface", *words]) == 0
    said = capsys.readouterr().out
    assert "verification on images that were not trained on" in said and "curve.png" in said
    assert main(["inspect", str(tmp_path / "run")]) == 0
    assert re.search(r"verification +\d+\.\d% at step 5", capsys.readouterr().out)
    for name in ("arcface", "askd"):
        assert main(["finetune", name, "--help"]) == 0
    assert "--look.teacher" in capsys.readouterr().out


def test_the_recipes_are_sound_and_askds_learning_rates_are_those_of_its_code():
    recipes = {path.stem: yaml.safe_load(path.read_text()) for path in RECIPES.glob("*.yaml")}
    assert set(recipes) == {"casia_iresnet50", "vit_small_from_dino", "askd_4x"}
    for name, tree in recipes.items():
        tree["data"] = "faces"
        kind = ASKD if name == "askd_4x" else ARCFACE
        if name == "askd_4x":
            tree["look"]["teacher"] = "RUN"
        if name == "vit_small_from_dino":
            tree["model"]["weights"] = "RUN"
        assert kind.check(from_dict(tree, kind)) == []
    optim, batch = recipes["askd_4x"]["optim"], recipes["askd_4x"]["batch_size"]
    steps = rates_by_step(
        optim["schedule"], scaled_learning_rate(optim["lr"], batch), 0.0, steps=2 * 20, warmup_steps=0,
        decay_steps=[2 * epoch for epoch in optim["decay_epochs"]],
    )  # fmt: skip
    expected = [0.1] * 5 + [1e-2] * 5 + [1e-3] * 4 + [1e-4] * 2 + [1e-5] * 4
    assert np.allclose(steps.reshape(20, 2), np.array(expected)[:, None], rtol=1e-12)


def test_the_table_has_every_method_at_every_side_with_the_likeness_of_looks(tmp_path, images, teacher, capsys):
    flags = ["--data", images[0], "--output-dir", str(tmp_path / "table"), "--steps", "5", "--batch-size", "16",
             "--device", "cpu", "--crops.size", "32", "--model.name", "iresnet18_cbam", "--model.drop-path", "0",
             "--embedding.dim", "16", "--optim.warmup-epochs", "0", "--validation.test", images[1],
             "--validation.num-pairs", "100", "--loader.num-workers", "0", "--look.teacher", str(teacher)]  # fmt: skip
    where_to_look.main([*flags, "--sides", "8", "--seeds", "2"])
    rows = json.loads((tmp_path / "table" / "where_to_look.json").read_text())
    assert [(row["side"], row["method"]) for row in rows] == [(8, name) for name in ("base", "KD", "F-SKD", "A-SKD")]
    for row in rows:
        for number in ("verification", "look_similarity"):
            values = row[number]["seeds"]
            assert len(values) == 2 and row[number]["mean"] == pytest.approx(sum(values) / 2)
            assert row[number]["deviation"] == pytest.approx(abs(values[0] - values[1]) / 2**0.5)
    assert len(capsys.readouterr().out.splitlines()) >= 4
    run = load_config(tmp_path / "table" / "8px_F-SKD" / "seed_1" / "config.yaml", ASKD)
    assert (run.seed, run.low_resolution.sides) == (1, (8,))
    assert (run.look.weight, run.look.feature_weight, run.look.logit_weight) == (0, 1, 0)


def test_cleaning_writes_a_list_of_the_images_near_their_dominant_centre(tmp_path, images, capsys):
    for k in range(2):
        folder = tmp_path / "faces" / f"person{k}"
        folder.mkdir(parents=True)
        for i in range(16):
            pixels = np.random.default_rng(100 * k + i).integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{i:02d}.png")
    config = a_config(
        tmp_path, (str(tmp_path / "faces"), ""), steps=1, margin={"centres": 2}, validation={"test": None}
    )
    run = run_here(config)
    clean_identities.main(["--weights", str(config.output_dir), "--degrees", "85", "--output", str(tmp_path / "c.csv")])
    encoder, centres = load_encoder(config.output_dir), run.task.network.classes.centres.detach()
    source = run.source
    features = Extractor(encoder.backbone, 32, 1.0, encoder.mean, encoder.std, CPU).features(source).values
    expected = cleaned(features, torch.from_numpy(source.labels).long(), centres, most_degrees=85.0)
    clean = open_source(str(tmp_path / "c.csv"), tmp_path)
    assert 0 < len(clean) == len(expected.kept) < 32
    assert [Path(clean.describe(i)).name for i in range(len(clean))] == [
        Path(source.describe(i)).name for i in expected.kept.tolist()
    ]
    assert f"kept {len(clean)} of 32 images" in capsys.readouterr().out
