import dataclasses
import os

import numpy as np
import pytest
import torch
from PIL import Image
from shares import on_ranks

from dino_ssl.data.pixels import Pixels
from dino_ssl.data.sources import open_source
from dino_ssl.errors import DivergedError
from dino_ssl.evaluation import feature_store
from dino_ssl.evaluation.feature_store import Extraction, Share, features_of
from dino_ssl.evaluation.features import Extractor, center_pixels
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
    return Extractor(encoder.backbone, 16, 0.875, encoder.mean, encoder.std, CPU, readout).features(source)


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


def test_what_goes_wrong_on_one_rank_goes_wrong_on_all_so_that_none_waits_for_it():
    def work(share):
        assert share.each(lambda: share.rank) == [0, 1, 2]

    on_ranks(3, work)

    def work_that_fails(share):
        share.each(lambda: share.rank if share.rank != 1 else diverge())

    with pytest.raises(DivergedError, match="of rank 1"):
        on_ranks(3, work_that_fails)  # rank 0 comes first


def diverge():
    raise DivergedError("of rank 1")


def test_work_that_was_cut_off_is_gone_on_with(encoder, tmp_path):
    source, done = Noise(10), []

    class Killed(Exception):  # noqa: N818
        pass

    def killed_in_the_third_part(count):
        done.append(count)
        if sum(done) > 8:
            raise Killed

    extraction = Extraction(encoder, source, CPU, batch_size=1)
    with pytest.raises(Killed):
        features_of(extraction, tmp_path, advance=killed_in_the_third_part)
    read = []
    extraction = dataclasses.replace(extraction, source=Counted(10, reads=read))
    assert_same(features_of(extraction, tmp_path), at_once(encoder, source))
    assert read[-2:] == [8, 9] and sorted(read[:-2]) == list(range(10))  # a glance at each of so few for the key


@dataclasses.dataclass(frozen=True)
class Counted(Noise):
    reads: list[int] = dataclasses.field(default_factory=list)

    def raw(self, index):
        self.reads.append(index)
        return super().raw(index)


def test_a_file_that_has_changed_is_read_again(encoder, tmp_path):
    (tmp_path / "images").mkdir()
    for number in range(6):
        Image.fromarray(Noise().raw(number)).save(tmp_path / "images" / f"{number}.png")
    extraction = Extraction(encoder, open_source(str(tmp_path / "images"), tmp_path), CPU)
    before = features_of(extraction, tmp_path / "cache").values
    Image.fromarray(Noise().raw(9)).save(tmp_path / "images" / "4.png")
    after = features_of(extraction, tmp_path / "cache").values
    assert torch.equal(before[:4], after[:4]) and torch.equal(before[5], after[5])
    assert not torch.allclose(before[4], after[4])


def test_two_folders_whose_files_have_the_same_names_sizes_and_times_keep_apart(encoder, tmp_path):
    found = []
    for name in ("train", "val"):
        for number in range(6):
            path = tmp_path / name / f"{number}.bmp"
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(Noise().raw(3 * number + (name == "val") * 21)).save(path)
            os.utime(path, (10**9, 10**9))
        extraction = Extraction(encoder, open_source(str(tmp_path / name), tmp_path), CPU)
        found.append((extraction.source.fingerprint(), features_of(extraction, tmp_path / "cache").values))
    assert found[0][0] == found[1][0]
    assert not torch.allclose(found[0][1], found[1][1])


@pytest.mark.parametrize("number", [0, 1, 7, 512, 1000, 10_000])
@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
@pytest.mark.parametrize("unit", [1, 512])
def test_shares_are_whole_units_that_cover_everything_once(number, world_size, unit):
    parts = [Share(rank, world_size).of(number, unit=unit) for rank in range(world_size)]
    assert [i for part in parts for i in range(number)[part]] == list(range(number))
    assert all(part.start % unit == 0 or part.start == number for part in parts)
    assert max(part.stop - part.start for part in parts) <= unit * -(-number // (unit * world_size))


@pytest.mark.parametrize("damage", ["cut", "flipped", "an index", "empty", "gone"])
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
        case "an index":
            data[data.index((4).to_bytes(8, "little"), 8)] = 5
        case "empty":
            data = data[:0]
    part.unlink() if damage == "gone" else part.write_bytes(data)
    assert_same(features_of(extraction, tmp_path), first)


def test_features_of_other_weights_data_or_pixels_have_another_place(encoder):
    first = Extraction(encoder, Noise(10), CPU)
    others = [
        dataclasses.replace(first, encoder=dataclasses.replace(encoder, **change))
        for change in (
            {"digest": "cd" * 32},
            {"name": "of 5 heads"},
            {"size": 24},
            {"center_crop": 1.0},
            {"mean": (0.4,) * 3},
        )
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
