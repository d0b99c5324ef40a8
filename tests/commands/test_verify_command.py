"""`dino-ssl verify` and `eval.faces` on small sets equal what is computed by hand from the same weights."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dino_ssl.cli import answer
from dino_ssl.commands import verify
from dino_ssl.commands.verify_sheet import draw as draw_sheet
from dino_ssl.data.face_pairs import drawn_pairs
from dino_ssl.data.sources import load, open_source
from dino_ssl.data.transfer import normalize
from dino_ssl.errors import UsageError
from dino_ssl.evaluation import results, verification
from dino_ssl.evaluation.face_protocols import Views
from dino_ssl.evaluation.protocols import TINYFACE, VERIFICATION_ASKD, VERIFICATION_INSIGHTFACE
from dino_ssl.models.backbone import build_backbone
from dino_ssl.models.encoder import Encoder
from dino_ssl.models.weights import load_encoder
from eval import faces
from tests.commands.networks import write_network


def draw(root: Path, names: list[str], seed: int = 0) -> Path:
    """Noise around a pattern of each person, who is the folder, or the name up to the underscore."""
    rng = np.random.default_rng(seed)
    patterns: dict[str, np.ndarray] = {}
    for name in names:
        who = name.rpartition("/")[0] if not name.startswith(("Probe", "Gallery")) else name.split("/")[1].split("_")[0]
        pattern = patterns.setdefault(who, rng.integers(0, 200, (32, 32, 3)))
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        noisy = pattern + rng.integers(0, 56, (32, 32, 3))
        Image.fromarray(noisy.astype(np.uint8)).save(root / name)
    return root


@pytest.fixture
def people(tmp_path: Path) -> Path:
    return draw(tmp_path / "people", [f"{who:02d}/{number}.png" for who in range(22) for number in range(3)])


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    return write_network(tmp_path / "weights.pth", image_size=32)


SETTINGS = ("--arch", "vit_micro", "--size", "32", "--num-workers", "0", "--device", "cpu", "--no-cache")


def measure(weights: Path, output: Path, *words: object) -> list[results.Evaluation]:
    verify.run([str(word) for word in ("--weights", weights, *SETTINGS, "--output", output, *words)])
    return results.read(output)


def by_hand(weights: Path, folder: Path, change=lambda images: images) -> tuple[np.ndarray, verification.Pairs]:
    source = open_source(str(folder), Path())
    encoder = load_encoder(weights, arch="vit_micro", size=32)
    pixels = torch.stack([
        torch.from_numpy(load(source, index).pixels.copy()).permute(2, 0, 1) for index in range(len(source))
    ])  # fmt: skip
    images = change(normalize(pixels, encoder.mean, encoder.std))
    with torch.no_grad():
        values = torch.stack([encoder.backbone(images), encoder.backbone(images.flip(-1))], 1).double().numpy()
    pairs = drawn_pairs(source)
    return values, verification.Pairs(pairs.left, pairs.right, pairs.is_same)


@pytest.mark.parametrize("batch_size", [7, 1000])
def test_both_protocols_are_measured_on_whole_images_and_kept_apart(weights, people, tmp_path, batch_size, capsys):
    words = ("--pairs", people, "--batch-size", batch_size, "--far", 0.1, 0.0001)
    one, other = measure(weights, tmp_path / "out.json", *words)
    assert (one.protocol, other.protocol) == (VERIFICATION_INSIGHTFACE, VERIFICATION_ASKD)
    assert [m.metric for m in (*one.measurements, *other.measurements)] == [
        "insightface/accuracy", "insightface/tar", "askd/accuracy",
    ]  # fmt: skip
    values, pairs = by_hand(weights, people)
    assert one.measurements[0].value == pytest.approx(verification.insightface(values, pairs).mean, abs=1e-9)
    assert other.measurements[0].value == pytest.approx(verification.askd(values, pairs).mean, abs=1e-9)
    rate = verification.rate_at(verification.squared_distances(values, pairs), pairs.is_same, 0.1).tar
    assert one.measurements[1].value == pytest.approx(rate, abs=1e-9)
    said = capsys.readouterr().out
    assert f"are resolved to {2 / len(pairs):.2g}; 0.0001 left out" in said and "verification_askd/1: " in said


def test_lower_resolutions_are_what_is_left_of_the_images(weights, people, tmp_path):
    one, other = measure(weights, tmp_path / "out.json", "--pairs", people, "--lower", 4, "--far", 0.1)
    values, pairs = by_hand(
        weights,
        people,
        lambda images: torch.nn.functional.interpolate(
            torch.nn.functional.interpolate(images, (8, 8), mode="bicubic", antialias=True), (32, 32), mode="bicubic"
        ),
    )
    found = {(m.metric, m.settings["resolution"]): m.value for m in (*one.measurements, *other.measurements)}
    assert found["insightface/accuracy", "4x"] == pytest.approx(verification.insightface(values, pairs).mean, abs=1e-9)
    assert found["askd/accuracy", "4x"] == pytest.approx(verification.askd(values, pairs).mean, abs=1e-9)
    assert one.settings["degradation"] == "bicubic" and set(one.details["folds"]) == {"1x", "4x"}


def test_pairs_with_an_image_that_cannot_be_read_are_left_out_and_counted(weights, people, tmp_path, capsys):
    lines = [f"{who:02d}/0.png {who + same:02d}/1.png {1 - same}" for who in range(20) for same in (0, 1)]
    (tmp_path / "list.txt").write_text("\n".join(lines))
    (people / "03" / "0.png").write_bytes(b"no image")
    one, _ = measure(weights, tmp_path / "out.json", "--pairs", tmp_path / "list.txt", "--images", people)
    assert one.settings["pairs"] == 38
    assert "2 pairs left out, as an image of them cannot be read" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--pairs", "nowhere"), "data source 'nowhere' does not exist"),
        (("--pairs", "PEOPLE", "--images", "PEOPLE"), "--images goes with a list of pairs"),
        (("--pairs", "PEOPLE", "--lower", "64"), "resolution 64x of images of 32 pixels: write 1 to 32"),
    ],
)
def test_mistakes_are_named(weights, people, words, said):
    with pytest.raises(UsageError, match=said):
        verify.run(["--weights", str(weights), *SETTINGS, *(str(people) if w == "PEOPLE" else w for w in words)])


def test_the_program_measures_every_resolution_and_tinyface(weights, people, tmp_path, capsys):
    names = [f"Probe/{who}_1.png" for who in range(6)] + [f"Gallery_Match/{who}_2.png" for who in range(6)]
    tiny = draw(tmp_path / "tiny", [*names, *(f"Gallery_Distractor/{who}_9.png" for who in range(100, 110))], seed=1)
    words = ["--weights", str(weights), *SETTINGS, "--pairs", str(people), "--tinyface", str(tiny)]
    output = tmp_path / "out.json"
    assert answer(partial(faces.main, [*words, "--far", "0.1", "--output", str(output)]), "eval.faces") == 0
    *_, found = results.read(output)
    assert found.protocol == TINYFACE
    assert {m.settings["k"]: m.value for m in found.measurements} == {1: 1.0, 5: 1.0, 10: 1.0, 20: 1.0}
    assert found.data["probes"]["num_images"] == 6 and found.data["gallery"]["num_images"] == 16
    table = capsys.readouterr().out.splitlines()
    head = next(line for line in table if line.split() == ["1x", "2x", "4x", "8x"])
    row = table[table.index(head) + 1]
    assert row.count("%") == 4 and json.loads(output.read_text())["schema"] == 1
    assert answer(partial(faces.main, ["--weights", str(weights)]), "eval.faces") == 2


def test_the_sheet_shows_teacher_and_student_at_every_resolution(weights, people, tmp_path, capsys):
    words = ("--pairs", people, "--lower", 2, 4, "--teacher", weights, "--sheet", tmp_path / "maps" / "sheet.png")
    measure(weights, tmp_path / "out.json", *words)
    assert "sheet.png" in capsys.readouterr().out
    with Image.open(tmp_path / "maps" / "sheet.png") as sheet:
        assert sheet.height > 2 * 3 * 112 and sheet.width > 4 * 112
    with pytest.raises(UsageError, match="--teacher and --sheet go together"):
        measure(weights, tmp_path / "out.json", "--pairs", people, "--teacher", weights)


def test_gates_of_networks_with_cbam_are_drawn_too(people, tmp_path):
    torch.manual_seed(0)
    network = build_backbone("iresnet18_cbam", image_size=32)
    about = ("here", "-", "-", 32, 1.0, (0.5,) * 3, (0.5,) * 3)
    encoder = Encoder(network, "iresnet18_cbam", *about)
    source = open_source(str(people), Path())
    draw_sheet(tmp_path / "sheet.png", encoder, encoder, source, Views((1, 8)))
    plain = Encoder(
        build_backbone("resnet18", image_size=32), "resnet18", "here", "-", "-", 32, 1.0, (0.5,) * 3, (0.5,) * 3
    )
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 8 * 112
    with pytest.raises(UsageError, match="no gates"):
        draw_sheet(tmp_path / "sheet.png", plain, plain, source, Views())
