import dataclasses

import numpy as np
import pytest
import torch
from shares import on_ranks

from dino_ssl.data.pixels import Pixels
from dino_ssl.evaluation import feature_store
from dino_ssl.evaluation.feature_store import Extraction, features_of
from dino_ssl.evaluation.features import center_pixels, extract_features, joined
from dino_ssl.evaluation.readouts import POOLED, blocks
from dino_ssl.models.backbone import build_backbone
from dino_ssl.models.encoder import Encoder
from tests.evaluation.test_features import Noise

CPU = torch.device("cpu")


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    backbone = build_backbone("vit_micro", image_size=16, patch_size=8).eval().requires_grad_(False)
    return Encoder(backbone, "vit_micro/8", "made here", "ab" * 32, "", 16, 0.875, (0.5,) * 3, (0.25,) * 3)


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(feature_store, "PART_IMAGES", 4)


def at_once(encoder, source, readout=POOLED):
    """All images in one batch: what every way of cutting them must give."""
    found = extract_features(
        encoder.backbone, source, size=16, center_crop=0.875, mean=encoder.mean, std=encoder.std, device=CPU,
        readout=readout,
    )  # fmt: skip
    return joined([found], source)


def assert_same(one, other):
    torch.testing.assert_close(one.values, other.values)
    assert one.indices.tolist() == other.indices.tolist() and one.broken == other.broken


@pytest.mark.parametrize("broken", [(), (0, 5), (4, 5, 6, 7)])
@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
@pytest.mark.parametrize("is_cached", [True, False])
def test_any_number_of_ranks_gets_every_image_once_and_in_order(encoder, tmp_path, broken, world_size, is_cached):
    source = Noise(10, broken)
    extraction = Extraction(encoder, source, CPU, batch_size=3)
    cache = tmp_path if is_cached else None
    for found in on_ranks(world_size, lambda share: features_of(extraction, cache, share)):
        assert_same(found, at_once(encoder, source))


def test_a_second_extraction_computes_nothing(encoder, tmp_path):
    extraction = Extraction(encoder, Noise(10, (3,)), CPU)
    first = features_of(extraction, tmp_path)
    extraction.encoder.backbone.forward = None  # would fail if it was asked
    done = []
    assert_same(features_of(extraction, tmp_path, advance=done.append), first)
    assert sum(done) == 10


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "gone"])
def test_a_part_that_is_not_what_was_written_is_computed_again(encoder, tmp_path, damage):
    extraction = Extraction(encoder, Noise(10), CPU)
    first = features_of(extraction, tmp_path)
    (part,) = tmp_path.glob("*/part_00001.safetensors")
    data = bytearray(part.read_bytes())
    match damage:
        case "cut":
            data = data[:-5]
        case "flipped":
            data[-3] ^= 1
        case "empty":
            data = data[:0]
    part.unlink() if damage == "gone" else part.write_bytes(data)
    assert_same(features_of(extraction, tmp_path), first)


def test_features_of_other_weights_data_or_pixels_have_another_place(encoder):
    first = Extraction(encoder, Noise(10), CPU)
    others = [
        dataclasses.replace(first, encoder=dataclasses.replace(encoder, **change))
        for change in ({"digest": "cd" * 32}, {"size": 24}, {"center_crop": 1.0}, {"mean": (0.4,) * 3})
    ]
    others += [dataclasses.replace(first, **change) for change in (
        {"source": Noise(11)}, {"source": Pixels(np.zeros((10, 4, 4, 3), np.uint8), None, (), "noise")},
        {"precision": torch.bfloat16}, {"readout": blocks(2)},
    )]  # fmt: skip
    assert len({first.key(), *(other.key() for other in others)}) == 1 + len(others)
    same = dataclasses.replace(first, batch_size=2, num_workers=3, encoder=dataclasses.replace(encoder, origin="moved"))
    assert same.key() == first.key()


def test_blocks_are_the_pooled_and_the_mean_patch_features_of_the_last_ones(encoder, tmp_path):
    source = Noise(5)
    features = features_of(Extraction(encoder, source, CPU, blocks(3)), tmp_path)
    images = torch.stack([at_once_pixels(source, index) for index in range(5)])
    expected = encoder.backbone.last_blocks(images, 3)
    assert features.values.shape == (5, 3, 2, 128)
    for place, block in enumerate(expected):
        torch.testing.assert_close(features.values[:, place, 0], block.pooled)
        torch.testing.assert_close(features.values[:, place, 1], block.patches.flatten(2).mean(2))


def at_once_pixels(source, index):
    return (center_pixels(source.raw(index), 16, 0.875).float() / 255 - 0.5) / 0.25


def test_bf16_is_near_fp32_and_not_it(encoder):
    source = Noise(6)
    near = features_of(Extraction(encoder, source, CPU, precision=torch.bfloat16)).values
    exact = features_of(Extraction(encoder, source, CPU)).values
    assert near.dtype == torch.float32 and not torch.equal(near, exact)
    torch.testing.assert_close(near, exact, atol=0.1, rtol=0.05)
