import numpy as np
import pytest
import torch
from matplotlib import colormaps

from dino_ssl.evaluation import heat


def random_maps(*shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


def test_nearest_enlarging_repeats_every_weight_in_a_square():
    maps = random_maps(2, 3, 5, 7)
    large = heat.enlarged(maps, (5 * 14, 7 * 14), "nearest")
    assert torch.equal(large, maps.repeat_interleave(14, -2).repeat_interleave(14, -1))


def test_nearest_takes_the_patch_below_the_middle_of_each_pixel_whatever_the_size():
    maps, (height, width) = random_maps(3, 4), (10, 9)
    large = heat.enlarged(maps, (height, width), "nearest")
    for row in range(height):
        for column in range(width):
            assert large[row, column] == maps[int((row + 0.5) * 3 / height), int((column + 0.5) * 4 / width)]


def test_bilinear_enlarging_keeps_the_values_at_the_middles_of_the_patches():
    maps = random_maps(4, 6)
    large = heat.enlarged(maps, (4 * 5, 6 * 5), "bilinear")
    torch.testing.assert_close(large[2::5, 2::5], maps)
    assert (large.diff(dim=0).abs() <= maps.diff(dim=0).abs().max() / 5 + 1e-6).all()


def test_values_run_from_the_smallest_weight_to_the_two_hundredth_part_of_largest():
    weights = torch.arange(1000.0).flip(0).reshape(2, 20, 25)
    values = heat.unit_range(weights)
    for weight, value in zip(weights, values, strict=True):
        low, high = weight.min(), weight.max() - 2  # three of 500 patches
        torch.testing.assert_close(value, ((weight - low) / (high - low)).clamp(0, 1))


def test_of_a_small_map_one_weight_is_the_largest_and_a_uniform_map_is_dark():
    weights = random_maps(3, 4)
    values = heat.unit_range(weights)
    torch.testing.assert_close(values, (weights - weights.min()) / (weights.max() - weights.min()))
    assert (heat.unit_range(torch.full((3, 4), 0.1)) == 0).all()


def test_colours_are_matplotlibs():
    values = torch.linspace(0, 1, 256).reshape(16, 16)
    expected = (colormaps["inferno"](np.arange(256))[:, :3] * 255).round().reshape(16, 16, 3)
    assert (heat.coloured(values) == expected).all()


def test_an_overlay_is_dark_grey_without_attention_and_brighter_with_it():
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
    none = heat.overlaid(pixels, torch.zeros(6, 8))
    assert (none == (0.6 * (pixels @ np.array([0.299, 0.587, 0.114]))[..., None]).round()).all()
    assert (heat.overlaid(pixels, torch.ones(6, 8)) >= none).all()


@pytest.mark.parametrize("line", [0, 1, 2])
def test_a_mask_shows_the_image_inside_its_line_and_dark_grey_outside(line):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    mask = np.zeros((20, 30), bool)
    mask[4:12, 0:10] = True
    picture = heat.masked(pixels, mask, line)
    inner = np.zeros_like(mask)
    inner[4 + line : 12 - line, 0 : 10 - line] = True  # no line along the image's own edge
    assert (picture[inner] == pixels[inner]).all()
    assert (picture[mask & ~inner] == heat.OUTLINE).all()
    grey = (0.3 * (pixels @ np.array([0.299, 0.587, 0.114], np.float32))).round()[..., None].repeat(3, -1)
    assert (picture[~mask] == grey[~mask]).all()
