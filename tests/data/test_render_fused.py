"""The compiled kernel, at every instruction set that the machine has, and the way without a compiler, against PIL."""

import importlib.util

import numpy as np
import pytest
from drawing import BRIGHTNESS, CONTRAST, HEIGHT, HUE, PHOTOS, SATURATION, WIDTH, drawn, full_recipe, jittered

from dino_ssl.data import render_fused, render_pil
from dino_ssl.data.crops import VIEW
from dino_ssl.data.render_fused import AVX2, BASIC, BEST, render_compiled

compiled = pytest.mark.skipif(render_fused.IMPLEMENTATION != "compiled", reason="the kernel was not compiled")
needs_opencv = pytest.mark.skipif(importlib.util.find_spec("cv2") is None, reason="needs the extra opencv")


def with_opencv(pixels, views, out):
    from dino_ssl.data.render_opencv import render  # noqa: PLC0415  (an extra)

    render(pixels, views, out)


def at_level(level):
    return lambda pixels, views, out: render_compiled(pixels, views, out, level=level)


RENDERERS = [
    pytest.param(at_level(BASIC), marks=compiled, id="basic"),
    pytest.param(at_level(AVX2), marks=compiled, id="avx2"),
    pytest.param(at_level(BEST), marks=compiled, id="best"),
    pytest.param(with_opencv, marks=needs_opencv, id="opencv"),
]
KERNELS = RENDERERS[:3]


def rendered(render, pixels, views, size):
    out = np.full((len(views), pixels.shape[2], size, size), 77, np.uint8)
    render(pixels, views, out)
    return out


def levels(render, views, size=96):
    """Differences to PIL in grey levels over both photographs."""
    pairs = [
        (rendered(render, p, v, size), rendered(render_pil.render, p, v, size))
        for p, v in zip(PHOTOS, views.T, strict=True)
    ]
    return np.concatenate([ours.astype(int) - theirs for ours, theirs in pairs])


@pytest.mark.parametrize("render", RENDERERS)
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
def test_each_operation_is_pils_within_the_stated_levels(render, fields, mean, rarely):
    error = np.abs(levels(render, drawn(100, 2, **fields)))
    assert error.mean() <= mean
    assert np.quantile(error, 0.999) <= rarely


@pytest.mark.parametrize("render", RENDERERS)
def test_the_full_recipe_keeps_brightness_and_contrast_of_the_views(render):
    views = full_recipe(100, 2)
    if render is with_opencv:  # it rounds boxes to whole pixels
        views["box"] = np.floor(views["box"])
    theirs = np.concatenate([rendered(render_pil.render, p, v, 64) for p, v in zip(PHOTOS, views.T, strict=True)])
    ours = np.concatenate([rendered(render, p, v, 64) for p, v in zip(PHOTOS, views.T, strict=True)])
    assert abs(ours.mean() - theirs.mean()) <= 0.1
    assert ours.std() == pytest.approx(theirs.std(), rel=0.005)
    assert np.abs(ours.astype(int) - theirs).mean() <= 0.6


@pytest.mark.parametrize("render", KERNELS)
def test_fractional_boxes_are_pils(render):
    views = drawn(100, 2)
    views["box"] += np.random.default_rng(3).uniform(0, 0.5, views["box"].shape) - (0, 0, 1, 1)
    error = np.abs(levels(render, views))
    assert error.mean() <= 0.25 and np.quantile(error, 0.999) <= 2


@pytest.mark.parametrize("render", RENDERERS)
@pytest.mark.parametrize("channels", [1, 2, 5])
def test_channels_that_are_no_colours_are_rendered_each_as_a_grey_image(render, channels):
    pixels = np.ascontiguousarray(np.concatenate([PHOTOS[0], PHOTOS[1]], axis=2)[..., :channels])
    views = full_recipe(40, 1)[:, 0]
    views["box"] = np.floor(views["box"])
    error = np.abs(rendered(render, pixels, views, 48).astype(int) - rendered(render_pil.render, pixels, views, 48))
    assert error.mean() <= 0.5


@pytest.mark.parametrize("render", KERNELS)
@pytest.mark.parametrize("size", [1, 3, 16, 33, 96, 224])
def test_any_size_comes_from_any_box_down_to_one_pixel_at_the_edge(render, size):
    boxes = [(0, 0, WIDTH, HEIGHT), (0, 0, 1, 1), (WIDTH - 1, HEIGHT - 1, 1, 1), (WIDTH - 3, 0, 3, HEIGHT),
             (0, HEIGHT - 2, WIDTH, 2), (5, 7, 31, 29)]  # fmt: skip
    views = drawn(len(boxes), 1, box=np.array(boxes, float)[:, None], blur_radius=1.3)[:, 0]
    error = np.abs(
        rendered(render, PHOTOS[0], views, size).astype(int) - rendered(render_pil.render, PHOTOS[0], views, size)
    )
    assert error.mean() <= 1


@pytest.mark.parametrize("render", RENDERERS)
@pytest.mark.parametrize("value", [0, 1, 128, 255])
def test_a_constant_image_stays_constant(render, value):
    pixels = np.full((40, 50, 3), value, np.uint8)
    views = drawn(4, 1, box=(3, 4, 30, 20), blur_radius=[[0], [0.5], [1.1], [2.0]])[:, 0]
    assert np.array_equal(rendered(render, pixels, views, 24), np.full((4, 3, 24, 24), value))


@pytest.mark.parametrize("render", RENDERERS)
def test_views_may_lie_apart_in_a_batch_and_nothing_else_is_written(render):
    batch = np.full((3, 5, 3, 32, 32), 77, np.uint8)
    views = full_recipe(3, 1)[:, 0]
    render(PHOTOS[0], views, batch[:, 2])
    assert np.array_equal(batch[:, 2], rendered(render, PHOTOS[0], views, 32))
    assert (np.delete(batch, 2, axis=1) == 77).all()


@compiled
def test_every_instruction_set_computes_the_same_picture():
    views = full_recipe(60, 1)[:, 0]
    basic, avx2, best = (rendered(at_level(level), PHOTOS[0], views, 64).astype(int) for level in (BASIC, AVX2, BEST))
    for other in (avx2, best):
        # A sum in another order may round a tie the other way, and seldom does.
        assert np.abs(basic - other).max() <= 3 and (basic != other).mean() <= 1e-3


@compiled
@pytest.mark.parametrize(
    "fields",
    [
        {"box": (-1, 0, 10, 10)},
        {"box": (WIDTH - 5, 0, 6, 10)},
        {"box": (0, 0, 10, HEIGHT + 1)},
        {"box": (0, 0, 0, 10)},
        {"box": (float("nan"), 0, 10, 10)},
        {"box": (0, 0, float("inf"), 10)},
        {"blur_radius": -1.0},
        {"blur_radius": float("nan")},
        {"order": (4, -1, -1, -1)},
    ],
)
def test_a_view_that_cannot_be_is_refused_by_number(fields):
    views = drawn(3, 1)[:, 0]
    for name, value in fields.items():
        views[name][1] = value
    with pytest.raises(ValueError, match=r"views\[1\]"):
        rendered(render_compiled, PHOTOS[0], views, 16)


def test_the_public_renderer_is_the_best_that_is_here():
    views = full_recipe(5, 1)[:, 0]
    views["box"] = np.floor(views["box"])
    best = {"compiled": render_compiled, "opencv": with_opencv, "pil": render_pil.render}[render_fused.IMPLEMENTATION]
    assert np.array_equal(rendered(render_fused.render, PHOTOS[0], views, 32), rendered(best, PHOTOS[0], views, 32))


def test_the_kernel_reads_views_as_numpy_lays_them_out():
    offsets = {name: VIEW.fields[name][1] for name in VIEW.names}
    assert offsets == {
        "box": 0,
        "factors": 32,
        "blur_radius": 64,
        "order": 72,
        "flip": 76,
        "grayscale": 77,
        "solarize": 78,
    }
    assert VIEW.itemsize == 80
