"""The batched renderer against PIL, operation by operation, on the CPU: limits are those that `fused` has to meet."""

import inspect
import math

import jaxtyping
import numpy as np
import pytest
import torch
from drawing import BRIGHTNESS, CONTRAST, HEIGHT, HUE, PHOTOS, SATURATION, WIDTH, drawn, full_recipe, jittered
from PIL import Image, ImageFilter, ImageOps
from torchvision.transforms import functional as TF

from dino_ssl.data import render_device
from dino_ssl.data.render_device import as_bytes, render_batch

ADJUST = (TF.adjust_brightness, TF.adjust_contrast, TF.adjust_saturation, TF.adjust_hue)
COMPILED = ("_bicubic", "_centered", "_rounded", "_to_bytes", "_jitter", "_gray", "_blur_kernels", "_blur_rows",
            "_blur_columns_and_solarize")  # fmt: skip


def one_after_another(image, view, size):
    """The recipe in PIL's own words."""
    left, top, width, height = view["box"]
    x, y = math.floor(left), math.floor(top)
    crop = image.crop((x, y, math.ceil(left + width), math.ceil(top + height)))
    box = (left - x, top - y, left - x + width, top - y + height)
    crop = crop.resize((size, size), Image.Resampling.BICUBIC, box=box)
    crop = ImageOps.mirror(crop) if view["flip"] else crop
    for operation in view["order"][view["order"] >= 0]:
        if image.mode == "RGB" or operation in (BRIGHTNESS, CONTRAST):
            crop = ADJUST[operation](crop, view["factors"][operation].item())
    crop = ImageOps.grayscale(crop).convert(image.mode) if view["grayscale"] else crop
    crop = crop.filter(ImageFilter.GaussianBlur(view["blur_radius"].item())) if view["blur_radius"] else crop
    return np.array(ImageOps.solarize(crop) if view["solarize"] else crop)


def pil(images, views, size):
    """[v, b, c, size, size]; channels of other images than RGB one by one."""

    def rendered(pixels, view):
        if pixels.shape[2] == 3:
            return one_after_another(Image.fromarray(pixels), view, size).transpose(2, 0, 1)
        bands = [Image.fromarray(np.ascontiguousarray(band)) for band in pixels.transpose(2, 0, 1)]
        return np.stack([one_after_another(band, view, size) for band in bands])

    return np.stack([[rendered(*pair) for pair in zip(images, row, strict=True)] for row in views])


def ours(images, views, size, precision=None):
    return render_batch(torch.from_numpy(images), views, size, precision).numpy()


def levels(images, views, size, precision=None):
    """Differences in grey levels."""
    return ours(images, views, size, precision).astype(int) - pil(images, views, size)


def assert_equal_but_for_ties(ours, theirs):
    """A sum in another order may round a tie the other way, and seldom does."""
    error = np.abs(ours.astype(int) - theirs)
    assert error.max() <= 2
    assert (error > 0).mean() <= 1e-3


@pytest.mark.parametrize("precision", [torch.float32, torch.float16])
@pytest.mark.parametrize(
    ("fields", "mean", "rarely"),
    [
        pytest.param({}, 0.25, 2, id="resample"),
        pytest.param({"flip": True}, 0.25, 2, id="flip"),
        pytest.param({"grayscale": True}, 0.25, 2, id="grayscale"),
        pytest.param(jittered(BRIGHTNESS), 0.25, 2, id="brightness"),
        pytest.param(jittered(CONTRAST), 0.25, 2, id="contrast"),
        pytest.param(jittered(SATURATION), 0.25, 2, id="saturation"),
        pytest.param(jittered(HUE), 0.6, 255, id="hue"),
        pytest.param({"blur_radius": np.linspace(0.1, 2.0, 200).reshape(100, 2)}, 0.5, 255, id="blur"),
        pytest.param({"solarize": True}, 0.25, 255, id="solarize"),
    ],
)
def test_each_operation_agrees_with_pil(fields, mean, rarely, precision):
    error = np.abs(levels(PHOTOS, drawn(100, 2, **fields), 48, precision))
    assert error.mean() <= mean
    assert np.quantile(error, 0.999) <= rarely


@pytest.mark.parametrize("precision", [torch.float32, torch.float16])
def test_random_recipes_keep_pils_brightness_and_contrast(precision):
    views = full_recipe(150, 2)
    theirs, error = pil(PHOTOS, views, 48), levels(PHOTOS, views, 48, precision)
    assert np.abs(error).mean() <= 0.5
    assert abs(error.mean()) <= 0.1
    assert (theirs + error).std() == pytest.approx(theirs.std(), rel=0.005)


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_every_channel_of_an_image_that_is_not_rgb_is_a_grey_image(channels):
    images = np.concatenate([PHOTOS, 255 - PHOTOS], axis=3)[..., :channels]
    error = levels(np.ascontiguousarray(images), full_recipe(40, 2), 32)
    assert error.shape == (40, 2, channels, 32, 32)
    assert np.abs(error).mean() <= 0.5


@pytest.mark.parametrize(
    "box",
    [
        (0, 0, WIDTH, HEIGHT),
        (0, 0, 40, 30),
        (WIDTH - 40, HEIGHT - 30, 40, 30),
        (WIDTH - 1, HEIGHT - 1, 1, 1),
        (17, 5, 1, 1),
        (17, 5, 1, 90),
        (17.25, 5.5, 0.25, 0.75),
        (17.625, 5.5, 0.75, 1.25),
        (0.375, 0.5, WIDTH - 0.5, HEIGHT - 0.75),
    ],
)
@pytest.mark.parametrize("flip", [False, True])
def test_boxes_of_every_kind_are_cut_as_by_pil(box, flip):
    for size in (1, 7, 32):
        views = drawn(1, 2, box=box, flip=flip)
        assert np.abs(levels(PHOTOS, views, size)).max() <= 1


def test_images_of_several_sizes_share_a_batch_and_do_not_see_each_other():
    views = full_recipe(20, 3)
    sizes = [(HEIGHT, WIDTH), (60, 200), (100, 45)]
    images = np.random.default_rng(0).integers(0, 256, (3, HEIGHT, WIDTH, 3), np.uint8)  # what fills them up
    for i, (height, width) in enumerate(sizes):
        images[i, :height, :width] = PHOTOS[i % 2, :height, :width]
        views["box"][:, i] = views["box"][:, i] * np.tile([width / WIDTH, height / HEIGHT], 2)
    together = ours(images, views, 32)
    for i, (height, width) in enumerate(sizes):
        alone = np.ascontiguousarray(images[i : i + 1, :height, :width])
        assert_equal_but_for_ties(together[:, i : i + 1], ours(alone, views[:, i : i + 1], 32))
        for v in range(0, 20, 7):
            assert_equal_but_for_ties(together[v : v + 1, i : i + 1], ours(alone, views[v : v + 1, i : i + 1], 32))


@pytest.mark.parametrize("color", [(0, 0, 0), (255, 255, 255), (128, 128, 128), (200, 0, 0), (3, 250, 250)])
def test_constant_images_stay_constant_and_equal_pils(color):
    views = full_recipe(40, 1)
    images = np.broadcast_to(np.array(color, np.uint8), (1, HEIGHT, WIDTH, 3)).copy()
    error = levels(images, views, 16)
    assert np.abs(error).max() <= 1
    assert np.ptp(error, axis=(-2, -1)).max() == 0


def test_a_blur_has_the_variance_of_its_radius():
    """Extended boxes are made for this: each has a third of it."""
    radius = torch.linspace(0, 2.44, 50, dtype=torch.float64)
    kernels = render_device._blur_kernels(radius)
    places = torch.arange(kernels.shape[1]) - kernels.shape[1] // 2
    # The taps are whole numbers of 1/32768.
    torch.testing.assert_close(kernels.sum(1), torch.ones(50), rtol=0, atol=13 / 2**16)
    torch.testing.assert_close((kernels.double() * places**2).sum(1), radius**2, rtol=0, atol=182 / 2**16)


def test_a_blur_that_would_be_cut_off_is_refused():
    with pytest.raises(AssertionError):
        as_bytes(drawn(1, 1, blur_radius=2.5))


def test_little_memory_changes_nothing_but_the_number_of_parts(monkeypatch):
    images, views = np.concatenate([PHOTOS, PHOTOS, PHOTOS[:1]]), full_recipe(3, 5)
    at_once = ours(images, views, 32)
    for workspace in (1, 4_000_000):
        monkeypatch.setattr(render_device, "WORKSPACE", workspace)
        assert_equal_but_for_ties(ours(images, views, 32), at_once)


def test_views_may_travel_as_bytes():
    views = full_recipe(4, 4)
    expected = ours(PHOTOS, views[:, 1:3], 16)
    assert np.array_equal(render_batch(torch.from_numpy(PHOTOS), as_bytes(views)[:, 1:3], 16).numpy(), expected)


def test_nothing_waits_for_the_device():
    """A tensor without data cannot be looked at."""
    rendered = render_batch(torch.from_numpy(PHOTOS).to("meta"), full_recipe(3, 2), 32)
    assert rendered.shape == (3, 2, 3, 32, 32)


def test_each_elementwise_part_is_one_graph_and_few_graphs_serve_all_sizes(monkeypatch):
    """PyTorch refuses a ninth graph of a function."""
    torch._dynamo.reset()
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # dynamo cannot trace the checks of shapes
    for name in COMPILED:
        part = inspect.unwrap(getattr(render_device, name))
        monkeypatch.setattr(render_device, name, torch.compile(part, backend="eager", fullgraph=True))
    for num_images, height, width in [(2, 120, 100), (2, 90, 110), (1, 120, 80), (2, 77, 99)]:
        images = np.ascontiguousarray(PHOTOS[:num_images, :height, :width])
        for num_views, size in [(2, 32), (5, 16)]:
            views = full_recipe(num_views, num_images)
            views["box"] *= min(height / HEIGHT, width / WIDTH)
            assert np.abs(levels(images, views, size)).mean() <= 0.5
    torch._dynamo.reset()
