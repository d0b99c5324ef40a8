import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torchvision.transforms import functional as TF

from dino_ssl.data.revisited import Truth, open_revisited
from dino_ssl.errors import RunError
from dino_ssl.evaluation.retrieval import Ranking
from dino_ssl.evaluation.revisited_protocol import Landmarks, evaluate, measurements
from dino_ssl.evaluation.whole_images import WholeImages, multi_scale, thumbnail
from dino_ssl.models.attention_map import NoAttention
from dino_ssl.models.block_features import only_block
from dino_ssl.models.encoder import Encoder


class Colours(nn.Module):
    """The mean colour and its square: says nothing of where things are."""

    embed_dim, num_blocks, num_attention_blocks, patch_size, stage_dims = 6, 1, 0, 4, ()

    def forward(self, images):
        assert not images.shape[-1] % 4 and not images.shape[-2] % 4
        return torch.cat((images.mean((2, 3)), images.square().mean((2, 3))), 1)

    def patch_features(self, images):
        return F.avg_pool2d(images, 4).repeat(1, 2, 1, 1)

    def last_blocks(self, images, n):
        return only_block("colours", n, self.patch_features(images))

    def attention(self, images, block=-1):
        raise NoAttention("colours have none")

    def set_grad_checkpointing(self, enable=True):
        raise NotImplementedError

    def stage_features(self, images):
        raise NotImplementedError

    pooled_and_stages = pooled_and_preactivations = stage_features


BOX = (0.0, 0.0, 1.0, 1.0)


def extraction(**options):
    encoder = Encoder(Colours(), "colours", "made up", "0" * 64, "", 32, 1.0, (0.5,) * 3, (0.25,) * 3)
    return WholeImages(encoder, torch.device("cpu"), **options)


def places(*numbers):
    return np.array(numbers, np.int64)


def test_levels_are_worked_by_hand():
    # One ranking, 3 1 0 2 4, of five images: 1 easy, 2 hard, 3 junk.
    truth = Truth(places(1), places(2), places(3), BOX)
    ranking = Ranking(places(3, 1, 0, 2, 4), np.linspace(1, 0, 5, dtype=np.float32))
    values = {(m.metric, m.settings["level"]): m.value for m in measurements([ranking], [truth])}
    # Easy, without 2 and 3: 1 is first.
    assert values["retrieval/map", "easy"] == 1
    # Medium, without 3: ranks 0 and 2, as (1 + 1) / 4 + (1/2 + 2/3) / 4.
    assert values["retrieval/map", "medium"] == pytest.approx(19 / 24)
    assert values["retrieval/mp@5", "medium"] == pytest.approx(2 / 3)
    # Hard, without 1 and 3: rank 1 of one positive, as (0 + 1/2) / 2.
    assert values["retrieval/map", "hard"] == pytest.approx(1 / 4)
    assert values["retrieval/mp@1", "hard"] == 0


def test_queries_without_positives_at_a_level_are_left_out_of_its_mean():
    order = Ranking(places(0, 1), np.array([1, 0], np.float32))
    easy = Truth(places(0), places(), places(), BOX)
    hard = Truth(places(), places(1), places(), BOX)
    values = {(m.metric, m.settings["level"]): m.value for m in measurements([order, order], [easy, hard])}
    assert values["retrieval/map", "easy"] == 1
    assert values["retrieval/map", "hard"] == pytest.approx(1 / 4)
    assert values["retrieval/map", "medium"] == pytest.approx((1 + 1 / 4) / 2)
    assert not [m for m in measurements([order], [easy]) if m.settings["level"] == "hard"]


def a_data_set(root):
    """Three red galleries of which one is junk, two blue ones; a query whose box alone is red."""
    (root / "roxford5k" / "jpg").mkdir(parents=True)
    colours = {
        "red1": (200, 20, 20),
        "red2": (220, 30, 10),
        "red3": (210, 25, 15),
        "blue1": (10, 20, 220),
        "blue2": (30, 10, 200),
    }
    for name, colour in colours.items():
        Image.new("RGB", (60, 44), colour).save(root / "roxford5k" / "jpg" / f"{name}.jpg", quality=95)
    query = Image.new("RGB", (60, 44), (20, 20, 210))
    query.paste((205, 25, 15), (40, 20, 52, 32))
    query.save(root / "roxford5k" / "jpg" / "query.jpg", quality=95)
    truth = {"easy": [0], "hard": np.array([1]), "junk": [2], "bbx": [40.0, 20.0, 52.0, 32.0]}
    content = {"imlist": list(colours), "qimlist": ["query"], "gnd": [truth]}
    (root / "roxford5k" / "gnd_roxford5k.pkl").write_bytes(pickle.dumps(content, protocol=2))
    return open_revisited(root, "roxford5k")


@pytest.mark.parametrize("num_workers", [0, 1])
def test_the_box_of_a_query_finds_what_the_whole_query_does_not(tmp_path, num_workers):
    data, ours = a_data_set(tmp_path), extraction(num_workers=num_workers)
    counted = []
    found = {
        crop: {
            (m.metric, m.settings["level"]): m.value
            for m in evaluate(ours, data, settings, counted.append).measurements
        }
        for crop in (False, True)
        for settings in [Landmarks(32, crop_queries=crop)]
    }
    assert found[True]["retrieval/map", "medium"] == 1
    assert found[False]["retrieval/map", "medium"] < 0.6
    assert sum(counted) == 2 * 6


def test_what_is_written_down_names_the_sets_and_the_settings(tmp_path):
    evaluation = evaluate(extraction(), a_data_set(tmp_path), Landmarks(32, multiscale=True))
    assert evaluation.protocol == "revisited/1"
    assert evaluation.settings == {"side": 32, "multiscale": True, "crop_queries": False}
    assert [(role, about["num_images"]) for role, about in evaluation.data.items()] == [("queries", 1), ("gallery", 5)]


def test_a_damaged_image_ends_the_ranking_with_its_name(tmp_path):
    data = a_data_set(tmp_path)
    (tmp_path / "roxford5k/jpg/blue1.jpg").write_bytes(b"no image")
    for workers in (0, 1):
        with pytest.raises(RunError, match=r"an image cannot be read.*blue1.jpg"):
            evaluate(extraction(num_workers=workers), data, Landmarks(32))


@pytest.mark.parametrize("shape", [(60, 90, 3), (90, 61, 3), (20, 30, 3), (300, 7, 3)])
def test_thumbnails_are_those_of_pillow(shape):
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    expected = Image.fromarray(pixels)
    expected.thumbnail((32, 32), Image.Resampling.LANCZOS)
    assert torch.equal(thumbnail(pixels, 32), TF.pil_to_tensor(expected))


def test_scales_are_averaged_and_each_image_has_norm_1():
    images = torch.randn(2, 3, 30, 41, generator=torch.Generator().manual_seed(0))
    network = Colours()
    sizes = {1.0: (28, 40), 2**-0.5: (20, 28), 0.5: (12, 20)}  # 30 x 41 scaled, whole patches of 4
    expected = []
    for image in images:
        total = torch.zeros(6)
        for scale, (height, width) in sizes.items():
            small = F.interpolate(image[None], scale_factor=scale, mode="bilinear") if scale < 1 else image[None]
            total += network(small[..., :height, :width])[0] / 3
        expected.append(total / total.norm())
    torch.testing.assert_close(multi_scale(network, images, (1.0, 2**-0.5, 0.5)), torch.stack(expected))


def test_an_image_narrower_than_a_patch_is_an_error():
    with pytest.raises(RunError, match=r"an image of 50 x 3 pixels is narrower than a patch of 4"):
        multi_scale(Colours(), torch.zeros(1, 3, 3, 50), (1.0,))
