import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from dino_ssl.data.copydays import open_copydays
from dino_ssl.data.pixels import Pixels
from dino_ssl.errors import UsageError
from dino_ssl.evaluation.copy_detection import Whitening, class_and_gem, evaluate
from dino_ssl.evaluation.whole_images import WholeImages
from dino_ssl.models.backbone import build_backbone
from dino_ssl.models.block_features import BlockFeatures
from dino_ssl.models.encoder import Encoder


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_features_are_the_class_token_and_the_fourth_root_of_the_mean_fourth_power():
    pooled, patches = noise(2, 3), noise(2, 3, 4, 5, seed=1)

    class Known(nn.Module):
        def last_blocks(self, images, n):
            assert n == 1
            return [BlockFeatures(pooled, patches)]

    features = class_and_gem(Known(), torch.zeros(2, 3, 8, 8))
    for image in range(2):
        assert torch.equal(features[image, :3], pooled[image])
        for channel in range(3):
            values = [max(v, 1e-6) for v in patches[image, channel].flatten().tolist()]
            expected = (sum(v**4 for v in values) / 20) ** 0.25
            assert features[image, 3 + channel].item() == pytest.approx(expected, rel=1e-5)


def test_whitened_features_have_unit_second_moments_about_the_mean_of_the_others():
    features = noise(500, 6) @ noise(6, 6, seed=1) + 3
    whiten = Whitening.of(features)
    shifted = whiten(features) + features.mean(0) @ whiten.axes  # without the mean that is taken off
    torch.testing.assert_close(shifted.T @ shifted / 500, torch.eye(6), rtol=0, atol=1e-3)
    torch.testing.assert_close(whiten(features).mean(0), torch.zeros(6), rtol=0, atol=1e-3)


def test_whitening_needs_as_many_images_as_dimensions():
    with pytest.raises(UsageError, match="whitening needs 6 images, as many as dimensions; these are 5"):
        Whitening.of(noise(5, 6))


@pytest.fixture
def data(tmp_path):
    """Three originals; of the first a copy that is nearly the same, of the second one that is not its at all."""
    rng = np.random.default_rng(0)
    originals = rng.integers(0, 256, (3, 6, 8, 3), np.uint8)
    for folder in ("original", "strong"):
        (tmp_path / folder).mkdir()

    def save(folder, name, pixels):
        Image.fromarray(pixels).resize((80, 60), Image.Resampling.NEAREST).save(tmp_path / folder / f"{name}.png")

    for number, pixels in enumerate(originals):
        save("original", f"200{number}00", pixels)
    save("strong", "200001", np.clip(originals[0].astype(int) + 4, 0, 255).astype(np.uint8))
    save("strong", "200101", originals[2])
    return open_copydays(tmp_path)


@pytest.fixture
def extraction():
    torch.manual_seed(0)
    backbone = build_backbone("vit_micro", image_size=32, patch_size=8).eval()
    encoder = Encoder(backbone, "vit_micro/8", "made up", "0" * 64, "", 32, 1.0, (0.5,) * 3, (0.25,) * 3)
    return WholeImages(encoder, torch.device("cpu"), batch_size=2)


def distractors(number):
    return Pixels(np.random.default_rng(1).integers(0, 256, (number, 32, 32, 3), np.uint8), None, (), "distractors")


def test_the_mean_average_precision_is_worked_by_hand(data, extraction):
    found = evaluate(extraction, data, side=32)
    (strong,) = found.measurements
    # The first copy finds its original first. The second finds the third original first and its own second or third:
    # one positive at rank r has (0 + 1 / (r + 1)) / 2.
    assert strong.settings == {"block": "strong"}
    assert 2 * strong.value - 1 in (pytest.approx(1 / 4), pytest.approx(1 / 6))
    assert {role: about["num_images"] for role, about in found.data.items()} == {"originals": 3, "strong": 2}


def test_distractors_push_the_original_back_and_beyond_the_top_it_counts_as_lost(data, extraction):
    alone = evaluate(extraction, data, side=32).measurements[0].value
    among = evaluate(extraction, data, side=32, distractors=distractors(200))
    assert among.measurements[0].value <= alone
    assert among.data["distractors"]["num_images"] == 200


def test_whitening_changes_what_is_near_and_is_written_down(data, extraction):
    found = evaluate(extraction, data, side=32, whitening=distractors(300))
    assert found.data["whitening"]["num_images"] == 300
    assert 0.5 <= found.measurements[0].value <= 0.75


def test_the_side_is_a_multiple_of_the_patch_size(data, extraction):
    assert evaluate(extraction, data, side=35).settings["side"] == 32
