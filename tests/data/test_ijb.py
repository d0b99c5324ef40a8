"""IJB in its published layout, and its program against the definition."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dino_ssl.cli import answer
from dino_ssl.data.alignment import TEMPLATE, aligned
from dino_ssl.data.ijb import open_ijb
from dino_ssl.data.transfer import normalize
from dino_ssl.errors import UsageError
from dino_ssl.evaluation import results
from dino_ssl.evaluation.face_templates import templates
from dino_ssl.evaluation.features import center_pixels
from dino_ssl.models.weights import load_encoder
from eval import ijb
from tests.commands.networks import write_network


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Six images in three templates; template 8 has a video of two frames and a still."""
    rng = np.random.default_rng(0)
    root = tmp_path / "IJBC"
    (root / "loose_crop").mkdir(parents=True)
    (root / "meta").mkdir()
    points, places = [], []
    for number, (template, medium) in enumerate([(8, 1), (8, 1), (8, 2), (3, 4), (3, 5), (5, 6)]):
        pixels = rng.integers(0, 256, (130, 140, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(root / "loose_crop" / f"{number}.png")
        values = " ".join(f"{value:.3f}" for value in (TEMPLATE * 1.1 + number).ravel())
        points.append(f"{number}.png {values} {0.5 + number / 20}")
        places.append(f"{number}.png {template} {medium}")
    (root / "meta/ijbc_name_5pts_score.txt").write_text("\n".join(points))
    (root / "meta/ijbc_face_tid_mid.txt").write_text("\n".join(places))
    (root / "meta/ijbc_template_pair_label.txt").write_text("8 3 1\n8 5 0\n3 5 0\n5 5 1\n")
    return root


def test_the_lists_are_read_and_faces_aligned(tree: Path) -> None:
    data = open_ijb(tree)
    assert (data.templates.tolist(), data.media.tolist()) == ([8, 8, 8, 3, 3, 5], [1, 1, 2, 4, 5, 6])
    assert (data.first.tolist(), data.second.tolist()) == ([8, 8, 3, 5], [3, 5, 5, 5])
    assert data.is_same.tolist() == [True, False, False, True] and data.scores[2] == 0.6
    pixels = np.asarray(Image.open(tree / "loose_crop/2.png"))
    np.testing.assert_array_equal(data.images.raw(2), aligned(pixels, np.round(TEMPLATE * 1.1 + 2, 3)))


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("face_tid_mid", lambda text: text.replace("3.png", "9.png"), "must name the same images in the same order"),
        ("face_tid_mid", lambda text: text.replace(" 8 ", " 8.5 "), "must be whole"),
        ("name_5pts_score", lambda text: text.replace("0.png", "../0.png", 1), "must name the same images"),
        ("name_5pts_score", lambda text: text.replace(" 0.6", " many"), "is damaged"),
        ("name_5pts_score", lambda text: text[:-12], "is damaged"),
        ("template_pair_label", lambda text: "8 3 1\n", "must hold 1 for one person and 0 for two, and have both"),
        ("template_pair_label", lambda text: text + "8 77 0\n", "there is no image of template 77"),
        ("template_pair_label", lambda text: "", "is empty"),
    ],
)
@pytest.mark.filterwarnings("ignore:loadtxt")
def test_a_damaged_list_is_named(tree: Path, name: str, change, said: str) -> None:
    file = tree / f"meta/ijbc_{name}.txt"
    file.write_text(change(file.read_text()))
    with pytest.raises(UsageError, match=said):
        open_ijb(tree)


def test_another_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not laid out as IJB"):
        open_ijb(tmp_path)


def test_the_program_adds_up_templates_as_published(tree: Path, tmp_path: Path) -> None:
    weights = write_network(tmp_path / "weights.pth", image_size=32)
    words = ["--weights", str(weights), "--arch", "vit_micro", "--size", "32", "--data", str(tree), "--no-cache"]
    words += ["--num-workers", "0", "--device", "cpu", "--output", str(tmp_path / "out.json")]
    assert answer(partial(ijb.main, words), "eval.ijb") == 0
    (found,) = results.read(tmp_path / "out.json")
    assert (found.protocol, found.settings["templates"]) == ("ijb/1", 3)
    assert found.measurements == []  # two pairs of different people show no rate below a half
    data, encoder = open_ijb(tree), load_encoder(weights, arch="vit_micro", size=32)
    pixels = torch.stack([center_pixels(data.images.raw(index), 32, 1.0) for index in range(6)])
    images = normalize(pixels, encoder.mean, encoder.std)
    with torch.no_grad():
        features = (encoder.backbone(images) + encoder.backbone(images.flip(-1))).double().numpy()
    weighted = features * data.scores[:, None]
    by_hand = (weighted[0] + weighted[1]) / 2 + weighted[2]
    numbers, vectors = templates(features, data.templates, data.media, data.scores)
    np.testing.assert_allclose(vectors[numbers.tolist().index(8)], by_hand / np.linalg.norm(by_hand), atol=1e-9)
