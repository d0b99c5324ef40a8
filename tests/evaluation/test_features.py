import subprocess
import sys
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision import transforms

from dino_ssl.data.decoding import BrokenImage
from dino_ssl.data.sources import Source
from dino_ssl.data.transfer import normalize
from dino_ssl.errors import DivergedError, RunError
from dino_ssl.evaluation.features import Extractor, center_pixels, pixel_features

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Noise:
    """Images of several sizes; some cannot be read."""

    num_images: int = 7
    broken: tuple[int, ...] = ()
    name: str = "noise"
    labels: None = None
    classes: tuple[str, ...] = ()
    sizes: tuple[tuple[int, int], ...] = field(default=((40, 50, 3), (64, 41, 3), (16, 16, 3)))

    def __len__(self):
        return self.num_images

    @property
    def shard_sizes(self):
        return None

    def raw(self, index):
        if index in self.broken:
            raise BrokenImage(self.describe(index), "truncated")
        rng = np.random.default_rng(index)
        return rng.integers(0, 256, self.sizes[index % len(self.sizes)], np.uint8)

    def describe(self, index):
        return f"noise[{index}]"

    def fingerprint(self):
        return "noise"


def extract(encoder, source, indices=None, **options):
    settings = {"size": 16, "center_crop": 0.875, "mean": MEAN, "std": STD, "device": torch.device("cpu")}
    return Extractor(encoder, **(settings | options)).features(source, indices)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Dropout(0.5), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def test_the_test_source_is_a_source():
    assert isinstance(Noise(), Source)


@pytest.mark.parametrize(("size", "center_crop", "resized"), [(224, 0.875, 256), (16, 0.875, 18), (32, 1.0, 32)])
@pytest.mark.parametrize("shape", [(40, 50, 3), (300, 260, 3), (16, 16, 3), (500, 37, 3)])
def test_center_crops_are_those_of_torchvision(size, center_crop, resized, shape):
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    oracle = transforms.Compose([
        transforms.Resize(resized, transforms.InterpolationMode.BICUBIC),
        transforms.CenterCrop(size),
        transforms.ToTensor(),
        transforms.Normalize(MEAN, STD),
    ])  # fmt: skip
    torch.testing.assert_close(
        normalize(center_pixels(pixels, size, center_crop)[None], MEAN, STD)[0],
        oracle(Image.fromarray(pixels)),
        rtol=0,
        atol=1e-6,
    )


def test_an_image_of_the_right_size_is_not_resampled():
    pixels = Noise().raw(2)
    assert torch.equal(center_pixels(pixels, 16, 1.0).permute(1, 2, 0), torch.from_numpy(pixels))


def test_channels_that_are_no_colours_are_each_resized_as_a_grey_image():
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 5), np.uint8)
    ours = center_pixels(pixels, 16, 0.875)
    for channel in range(5):
        grey = Image.fromarray(pixels[..., channel])
        resized = transforms.Resize(18, transforms.InterpolationMode.BICUBIC)(grey)
        assert np.array_equal(ours[channel], transforms.CenterCrop(16)(resized))


def test_features_are_those_of_one_image_at_a_time():
    encoder, source = network().eval(), Noise()
    with torch.no_grad():
        expected = [encoder(normalize(center_pixels(source.raw(i), 16, 0.875)[None], MEAN, STD)) for i in range(7)]
    features = extract(encoder, source, batch_size=3)
    torch.testing.assert_close(features.values, torch.cat(expected))
    assert features.indices.tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert features.values.dtype == torch.float32 and not features.values.requires_grad


@pytest.mark.parametrize(("num_images", "batches"), [(5, [[0, 4], [1, 6], [3]]), (99, [[0, 3, 6], [1, 4], [2, 5]])])
def test_some_images_are_spread_over_the_source_and_so_is_each_batch(num_images, batches):
    source, one = Noise(broken=(1,)), torch.device("cpu")
    extractor = Extractor(network(), 16, 0.875, MEAN, STD, one, batch_size=2 if num_images == 5 else 3)
    expected = [[normalize(center_pixels(source.raw(i), 16, 0.875)[None], MEAN, STD) for i in batch if i != 1]
                for batch in batches]  # fmt: skip
    found = list(extractor.some_images(source, num_images))
    assert [len(images) for images in found] == [len(batch) for batch in expected]
    torch.testing.assert_close(found, [torch.cat(batch) for batch in expected])


def test_features_of_chosen_images_come_in_the_order_asked_for():
    every = extract(network(), Noise()).values
    features = extract(network(), Noise(), indices=[5, 0, 3])
    assert features.indices.tolist() == [5, 0, 3]
    torch.testing.assert_close(features.values, every[[5, 0, 3]])


@pytest.mark.parametrize("readers", [{"num_workers": 2}, {"num_threads": 3}, {"num_workers": 1, "num_threads": 2}])
def test_worker_processes_and_threads_change_nothing(readers):
    alone = extract(network(), Noise(broken=(4,)), batch_size=2)
    workers = extract(network(), Noise(broken=(4,)), batch_size=2, **readers)
    assert torch.equal(alone.values, workers.values)
    assert alone.broken == workers.broken


@pytest.mark.parametrize("num_workers", [0, 2])
def test_parts_are_what_each_would_be_alone(num_workers):
    lists = [range(3), [5, 4, 6], [], [1]]
    encoder, source, done = network().train(), Noise(broken=(1,)), []
    extractor = Extractor(encoder, 16, 0.875, MEAN, STD, torch.device("cpu"), batch_size=2, num_workers=num_workers)
    found = []
    for part in extractor.parts(source, lists, done.append):
        assert encoder.training and torch.is_grad_enabled()  # not of this loop's concern
        found.append(part)
    assert [part.indices.tolist() for part in found] == [[0, 2], [5, 4, 6], [], []]
    assert [part.num_broken for part in found] == [1, 0, 0, 1]
    assert torch.equal(found[0].values, extract(encoder, source, range(3), batch_size=2).values)
    assert torch.equal(found[1].values, extract(encoder, source, lists[1], batch_size=2).values)
    assert done == [2, 1, 2, 1, 1]


def test_broken_images_are_left_out_and_listed():
    every = extract(network(), Noise()).values
    features = extract(network(), Noise(broken=(1, 2, 3, 6)), batch_size=2)
    assert features.indices.tolist() == [0, 4, 5]
    assert features.num_broken == 4
    assert features.broken[0] == ("noise[1]", "truncated")
    torch.testing.assert_close(features.values, every[[0, 4, 5]])


def test_nothing_but_broken_images_is_an_error_that_names_the_first():
    with pytest.raises(RunError, match=r"noise: none of the 7 images can be read; the first is noise\[0\]"):
        extract(network(), Noise(broken=tuple(range(7))))


def test_features_that_are_not_finite_name_their_image():
    class Diverged(nn.Module):
        def forward(self, images):
            return images.flatten(1) / (images.flatten(1).sum(1, keepdim=True) != marked)

    flat = extract(nn.Flatten(), Noise()).values
    marked = flat[3].sum()
    with pytest.raises(DivergedError, match=r"of 1 of 7 images are not finite, the first of noise\[3\]"):
        extract(Diverged(), Noise(), batch_size=1)


SCRIPT = """
import random, numpy as np, torch
from dino_ssl.data.pixels import Pixels
from dino_ssl.evaluation.features import Extractor

encoder = torch.nn.Sequential(torch.nn.Dropout(0.5), torch.nn.Flatten())
source = Pixels(np.zeros((5, 8, 8, 3), np.uint8), None, (), "zeros")
before = torch.get_rng_state(), repr(np.random.get_state()), random.getstate()
for num_workers in (0, 1):
    Extractor(encoder, size=8, center_crop=0.875, mean=(0.0,) * 3, std=(1.0,) * 3,
              device=torch.device("cpu"), num_workers=num_workers).features(source)
assert torch.equal(torch.get_rng_state(), before[0])
assert repr(np.random.get_state()) == before[1]
assert random.getstate() == before[2]
"""


def test_the_global_random_states_stay_as_they_were():
    # In a process of its own: here, the checks of the annotations draw from `random` themselves.
    subprocess.run([sys.executable, "-W", "error", "-c", SCRIPT], check=True, timeout=120)


def test_modes_and_buffers_of_the_encoder_stay_as_they_were():
    encoder = network().train()
    encoder[1].eval()
    statistics = encoder[1].running_mean.clone()
    extract(encoder, Noise())
    assert [module.training for module in encoder.modules()] == [True, True, False, True, True, True]
    assert torch.equal(encoder[1].running_mean, statistics)


def test_modes_come_back_after_an_error():
    encoder = network().train()
    with pytest.raises(RunError):
        extract(encoder, Noise(broken=tuple(range(7))))
    assert all(module.training for module in encoder.modules())


def test_features_can_be_trained_on():
    features = extract(network(), Noise()).values
    probe = nn.Linear(8, 2)
    probe(features).sum().backward()
    torch.testing.assert_close(probe.weight.grad[0], features.sum(0))


@pytest.mark.parametrize("around", [False, True])
def test_precision_is_what_was_asked_for_whatever_is_around(around):
    seen = []

    class Spy(nn.Linear):
        def forward(self, images):
            features = super().forward(images.flatten(1))
            seen.append(features.dtype)
            return features

    with torch.autocast("cpu", torch.bfloat16, enabled=around):
        exact = extract(Spy(768, 4), Noise())
        extract(Spy(768, 4), Noise(), precision=torch.bfloat16)
    assert seen == [torch.float32, torch.bfloat16]
    assert exact.values.dtype == torch.float32


def test_pixel_features_are_those_of_the_flattening_encoder():
    images = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), np.uint8)

    class InMemory(Noise):
        def raw(self, index):
            return images[index]

    features = extract(nn.Flatten(), InMemory(5), center_crop=1.0, mean=(0.0,) * 3, std=(1.0,) * 3)
    assert torch.equal(pixel_features(images), features.values)
