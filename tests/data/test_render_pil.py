"""The oracle itself, against the calls that the original makes."""

import numpy as np
import pytest
from PIL import Image, ImageFilter, ImageOps
from torchvision import transforms
from torchvision.transforms import functional as TF

from dino_ssl.data.crops import OPERATIONS, VIEW
from dino_ssl.data.render_pil import render


@pytest.fixture(scope="module")
def photo():
    """Smooth colours with an edge, 160 x 120."""
    y, x = np.mgrid[0:120, 0:160]
    pixels = np.stack([x * 1.5, y * 2, (x + y) % 256], axis=-1)
    pixels[40:80, 60:100] = (230, 30, 60)
    return pixels.astype(np.uint8)


def view_of(*, box=(10, 20, 100, 80), jitter=(), **changes):
    """A view with nothing but what is said; jitter as (operation, factor) in the order of application."""
    view = np.zeros(1, VIEW)
    view["box"], view["order"] = box, -1
    for place, (name, factor) in enumerate(jitter):
        view["order"][0, place] = OPERATIONS.index(name)
        view["factors"][0, OPERATIONS.index(name)] = factor
    for name, value in changes.items():
        view[name] = value
    return view


def rendered(pixels, view, size=48):
    out = np.zeros((1, pixels.shape[2], size, size), np.uint8)
    render(pixels, view, out)
    return out[0].transpose(1, 2, 0)


def original_crop(pixels):
    image = Image.fromarray(pixels)
    return TF.resized_crop(image, 20, 10, 80, 100, [48, 48], transforms.InterpolationMode.BICUBIC)


@pytest.mark.parametrize(
    ("changes", "operation"),
    [
        ({}, lambda crop: crop),
        ({"flip": True}, lambda crop: crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)),
        ({"jitter": [("brightness", 1.3)]}, lambda crop: TF.adjust_brightness(crop, 1.3)),
        ({"jitter": [("contrast", 0.7)]}, lambda crop: TF.adjust_contrast(crop, 0.7)),
        ({"jitter": [("saturation", 1.2)]}, lambda crop: TF.adjust_saturation(crop, 1.2)),
        ({"jitter": [("hue", -0.07)]}, lambda crop: TF.adjust_hue(crop, -0.07)),
        ({"grayscale": True}, lambda crop: TF.rgb_to_grayscale(crop, num_output_channels=3)),
        ({"blur_radius": 1.7}, lambda crop: crop.filter(ImageFilter.GaussianBlur(1.7))),
        ({"solarize": True}, ImageOps.solarize),
    ],
)
def test_each_operation_is_the_one_of_the_original_pipeline(photo, changes, operation):
    expected = np.asarray(operation(original_crop(photo)))
    np.testing.assert_array_equal(rendered(photo, view_of(**changes)), expected)


def test_operations_follow_the_originals_order(photo):
    jitter = (("hue", 0.05), ("brightness", 0.8), ("saturation", 1.1), ("contrast", 1.3))
    view = view_of(flip=True, jitter=jitter, grayscale=True, blur_radius=1.0, solarize=True)
    crop = TF.adjust_brightness(TF.adjust_hue(TF.hflip(original_crop(photo)), 0.05), 0.8)
    crop = TF.adjust_contrast(TF.adjust_saturation(crop, 1.1), 1.3)
    crop = TF.rgb_to_grayscale(crop, 3).filter(ImageFilter.GaussianBlur(1.0))
    np.testing.assert_array_equal(rendered(photo, view), np.asarray(ImageOps.solarize(crop, 128)))


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_images_that_are_not_rgb_are_rendered_channel_by_channel_as_grey_ones(photo, channels):
    pixels = np.stack([np.roll(photo[..., 0], 7 * channel, axis=1) for channel in range(channels)], axis=-1)
    jitter = (("hue", 0.05), ("brightness", 0.8), ("saturation", 1.1), ("contrast", 1.3))
    view = view_of(flip=True, jitter=jitter, grayscale=True, blur_radius=1.0, solarize=True)
    ours = rendered(pixels, view)
    for channel in range(channels):
        crop = TF.adjust_brightness(TF.hflip(original_crop(pixels[..., channel])), 0.8)
        crop = TF.adjust_contrast(crop, 1.3).filter(ImageFilter.GaussianBlur(1.0))
        np.testing.assert_array_equal(ours[..., channel], np.asarray(ImageOps.solarize(crop, 128)))


def test_a_fractional_box_is_pils_box_and_sees_no_pixel_outside_its_hull(photo):
    box = (10.5, 20.25, 60.0, 40.5)
    hull = Image.fromarray(photo).crop((10, 20, 71, 61))
    expected = hull.resize((48, 48), Image.Resampling.BICUBIC, box=(0.5, 0.25, 60.5, 40.75))
    ours = rendered(photo, view_of(box=box))
    np.testing.assert_array_equal(ours, np.asarray(expected))
    other = photo.copy()
    other[:20], other[61:], other[:, :10], other[:, 71:] = 0, 255, 0, 255
    np.testing.assert_array_equal(rendered(other, view_of(box=box)), ours)
