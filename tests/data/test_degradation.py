"""Low-resolution images against PIL, the kernel of A-SKD's released code, and kernel by kernel."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from dino_ssl.data.degradation import KERNELS, degraded, randomly_degraded
from dino_ssl.errors import UsageError

MODES = ["bicubic", "askd_release", "random_kernel"]
COLUMN = torch.tensor([0.1525, 0.2218, 0.2514, 0.2218, 0.1525])


@pytest.fixture
def images():
    torch.manual_seed(0)
    return torch.rand(6, 3, 32, 32)


@pytest.mark.parametrize("side", [16, 8, 4, 24])
def test_bicubic_is_what_pil_makes_of_an_image(side):
    """PIL's bicubic is antialiased downwards; of one kernel, a = -0.5, down, and of PyTorch's, a = -0.75, up."""
    image = np.random.default_rng(0).random((32, 32), dtype=np.float32)
    small = torch.from_numpy(np.array(Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC)))
    expected = F.interpolate(small[None, None], size=(32, 32), mode="bicubic")
    found = degraded(torch.from_numpy(image)[None, None], side)
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=0)


def test_the_released_mode_repeats_nearest_pixels_and_blurs_from_above_to_below_alone():
    point = torch.zeros(1, 1, 16, 16)
    point[0, 0, 8, 8] = 1
    found = degraded(point, 8, "askd_release")
    expected = F.conv2d(F.pad(point[..., ::2, ::2].repeat_interleave(2, 2).repeat_interleave(2, 3), (0, 0, 2, 2)),
                        COLUMN.view(1, 1, 5, 1))  # fmt: skip
    torch.testing.assert_close(found, expected, atol=5e-5, rtol=0)


def test_a_random_kernel_is_drawn_for_each_image_and_direction(images):
    possible = {
        (down, up): F.interpolate(F.interpolate(images, size=8, mode=down), size=32, mode=up)
        for down in KERNELS
        for up in KERNELS
    }
    used = set()
    for _ in range(20):
        found = degraded(images, 8, "random_kernel")
        for index in range(len(images)):
            used |= {pair for pair, expected in possible.items() if torch.equal(found[index], expected[index])}
            assert any(torch.equal(found[index], expected[index]) for expected in possible.values())
    assert len(used) == len(KERNELS) ** 2


@pytest.mark.parametrize("mode", MODES)
def test_an_image_of_its_own_side_stays_as_it_is(images, mode):
    assert torch.equal(degraded(images, 32, mode), images)
    assert torch.equal(randomly_degraded(images, [32], mode), images)


@pytest.mark.parametrize("mode", MODES)
def test_a_grey_image_stays_grey(mode):
    grey = torch.full((2, 1, 32, 32), 0.25)
    torch.testing.assert_close(degraded(grey, 5, mode), grey)


def test_each_image_gets_a_side_of_its_own_and_all_are_drawn_alike(images):
    many, sides = images[:1].repeat(400, 1, 1, 1), [16, 8, 32]
    found = randomly_degraded(many, sides)
    expected = torch.stack([degraded(images[:1], side)[0] for side in sides])
    distance = (found[:, None] - expected).flatten(2).abs().amax(2)
    assert distance.amin(1).max() < 1e-6
    shares = distance.argmin(1).bincount(minlength=3) / 400
    assert torch.all((shares - 1 / 3).abs() < 0.08), shares  # more than three standard deviations


@pytest.mark.parametrize("side", [0, 33])
def test_a_side_that_an_image_cannot_have_is_refused(images, side):
    with pytest.raises(UsageError, match=f"32 pixels cannot be degraded to {side}; write 1 to 32"):
        degraded(images, side)
