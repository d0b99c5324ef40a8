import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter, ImageOps
from torchvision import transforms
from torchvision.transforms import functional as TF

from dino_ssl.data.crops import View, dino_recipe, draw_box, draw_view, multi_crop, render_view

PAPER = {
    "global_size": 224,
    "global_scale": (0.4, 1.0),
    "num_local_crops": 8,
    "local_size": 96,
    "local_scale": (0.05, 0.4),
}


@pytest.fixture
def photo():
    """Smooth colours with an edge: every operation changes it."""
    y, x = np.mgrid[0:120, 0:160]
    pixels = np.stack([x * 1.5, y * 2, (x + y) % 256], axis=-1)
    pixels[40:80, 60:100] = (230, 30, 60)
    return Image.fromarray(pixels.astype(np.uint8))


def as_tensor(image):
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def view_of(**changes):
    plain = {
        "box": (10, 20, 100, 80), "size": 48, "flip": False, "jitter": (), "grayscale": False,
        "blur_radius": 0.0, "solarize": False,
    }  # fmt: skip
    return View(**(plain | changes))


def test_recipe_is_the_originals():
    first, second, *local = dino_recipe(**PAPER)
    assert [(v.size, v.scale, v.blur, v.solarize) for v in (first, second)] == [
        (224, (0.4, 1.0), 1.0, 0.0),
        (224, (0.4, 1.0), 0.1, 0.2),
    ]
    assert {(v.size, v.scale, v.blur, v.solarize) for v in local} == {(96, (0.05, 0.4), 0.5, 0.0)}
    assert len(local) == 8
    assert {(v.flip, v.color_jitter, v.grayscale) for v in (first, second, *local)} == {(0.5, 1.0, 0.2)}


def test_no_local_crops_leaves_two_views():
    assert len(dino_recipe(**PAPER | {"num_local_crops": 0})) == 2


@pytest.mark.parametrize(
    ("changes", "operation"),
    [
        ({}, lambda crop: crop),
        ({"flip": True}, lambda crop: crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)),
        ({"jitter": (("brightness", 1.3),)}, lambda crop: TF.adjust_brightness(crop, 1.3)),
        ({"jitter": (("contrast", 0.7),)}, lambda crop: TF.adjust_contrast(crop, 0.7)),
        ({"jitter": (("saturation", 1.2),)}, lambda crop: TF.adjust_saturation(crop, 1.2)),
        ({"jitter": (("hue", -0.07),)}, lambda crop: TF.adjust_hue(crop, -0.07)),
        ({"grayscale": True}, lambda crop: TF.rgb_to_grayscale(crop, num_output_channels=3)),
        ({"blur_radius": 1.7}, lambda crop: crop.filter(ImageFilter.GaussianBlur(1.7))),
        ({"solarize": True}, ImageOps.solarize),
    ],
)
def test_each_operation_is_the_one_of_the_original_pipeline(photo, changes, operation):
    box = TF.resized_crop(photo, 20, 10, 80, 100, [48, 48], transforms.InterpolationMode.BICUBIC)
    assert torch.equal(render_view(photo, view_of(**changes)), as_tensor(operation(box)))


def test_operations_follow_the_originals_order(photo):
    jitter = (("hue", 0.05), ("brightness", 0.8), ("saturation", 1.1), ("contrast", 1.3))
    view = view_of(flip=True, jitter=jitter, grayscale=True, blur_radius=1.0, solarize=True)
    crop = TF.resized_crop(photo, 20, 10, 80, 100, [48, 48], transforms.InterpolationMode.BICUBIC)
    crop = TF.adjust_brightness(TF.adjust_hue(TF.hflip(crop), 0.05), 0.8)
    crop = TF.adjust_contrast(TF.adjust_saturation(crop, 1.1), 1.3)
    crop = TF.rgb_to_grayscale(crop, 3).filter(ImageFilter.GaussianBlur(1.0))
    assert torch.equal(render_view(photo, view), as_tensor(ImageOps.solarize(crop, 128)))


def test_boxes_are_distributed_as_torchvisions():
    """Mean area and aspect ratio of 4,000 boxes each; their standard error is about 0.003."""
    rng = np.random.default_rng(0)
    ours = np.array([draw_box(rng, (0.05, 0.4), 500, 375) for _ in range(4000)])
    torch.manual_seed(0)
    image = torch.empty(3, 375, 500)
    params = transforms.RandomResizedCrop.get_params
    theirs = np.array([params(image, [0.05, 0.4], [3 / 4, 4 / 3])[::-1] for _ in range(4000)])
    area, their_area = ours[:, 2] * ours[:, 3] / 187500, theirs[:, 0] * theirs[:, 1] / 187500
    assert area.mean() == pytest.approx(their_area.mean(), abs=0.01)
    assert area.std() == pytest.approx(their_area.std(), abs=0.01)
    ratio, their_ratio = np.log(ours[:, 2] / ours[:, 3]), np.log(theirs[:, 0] / theirs[:, 1])
    assert ratio.mean() == pytest.approx(their_ratio.mean(), abs=0.02)
    assert ratio.std() == pytest.approx(their_ratio.std(), abs=0.01)


def test_boxes_lie_inside_the_image():
    rng = np.random.default_rng(0)
    for width, height in [(1, 1), (8, 8), (500, 20), (20, 500), (31, 47)]:
        for _ in range(200):
            left, top, box_width, box_height = draw_box(rng, (0.05, 1.0), width, height)
            assert 0 <= left <= left + box_width <= width and box_width > 0
            assert 0 <= top <= top + box_height <= height and box_height > 0


@pytest.mark.parametrize(("width", "height"), [(1000, 10), (10, 1000), (12, 12)])
def test_a_box_that_cannot_fit_is_torchvisions_central_one(width, height):
    rng = np.random.default_rng(0)
    # A share above 1 never fits; torchvision's names are top, left, height, width.
    top, left, box_height, box_width = transforms.RandomResizedCrop.get_params(
        torch.empty(3, height, width), [50.0, 60.0], [3 / 4, 4 / 3]
    )
    assert draw_box(rng, (50.0, 60.0), width, height) == (left, top, box_width, box_height)


def test_draws_happen_as_often_as_the_recipe_says():
    first, second, local, *_ = dino_recipe(**PAPER)
    rng = np.random.default_rng(0)
    num = 4000
    shares = {}
    for name, recipe in (("first", first), ("second", second), ("local", local)):
        views = [draw_view(rng, recipe, 300, 200) for _ in range(num)]
        shares[name] = {
            "flip": sum(v.flip for v in views) / num,
            "jitter": sum(bool(v.jitter) for v in views) / num,
            "grayscale": sum(v.grayscale for v in views) / num,
            "blur": sum(v.blur_radius > 0 for v in views) / num,
            "solarize": sum(v.solarize for v in views) / num,
        }
        assert all(0.1 <= v.blur_radius <= 2.0 for v in views if v.blur_radius)
    for name, blur, solarize in (("first", 1.0, 0.0), ("second", 0.1, 0.2), ("local", 0.5, 0.0)):
        expected = {"flip": 0.5, "jitter": 0.8, "grayscale": 0.2, "blur": blur, "solarize": solarize}
        # Four standard errors of a share of 4,000 draws are at most 0.032.
        assert shares[name] == pytest.approx(expected, abs=0.032)


def test_jitter_draws_every_operation_once_in_random_order_within_its_range():
    recipe = dino_recipe(**PAPER)[0]
    rng = np.random.default_rng(0)
    drawn = [v.jitter for v in (draw_view(rng, recipe, 64, 64) for _ in range(500)) if v.jitter]
    assert len({tuple(name for name, _ in jitter) for jitter in drawn}) == 24
    widths = {"brightness": (1, 0.4), "contrast": (1, 0.4), "saturation": (1, 0.2), "hue": (0, 0.1)}
    for name, (middle, width) in widths.items():
        factors = np.array([dict(jitter)[name] for jitter in drawn])
        assert middle - width <= factors.min() < middle - 0.9 * width
        assert middle + 0.9 * width < factors.max() <= middle + width


def test_switched_off_operations_never_happen():
    recipes = dino_recipe(**PAPER, flip=0.0, color_jitter=0.0, grayscale=0.0, blur=0.0, solarize=0.0)
    rng = np.random.default_rng(0)
    for recipe in recipes * 20:
        view = draw_view(rng, recipe, 64, 64)
        assert view == View(view.box, recipe.size, False, (), False, 0.0, False)


def test_the_same_stream_gives_the_same_pixels(photo):
    recipes = dino_recipe(**PAPER | {"num_local_crops": 2})
    ours, again = (multi_crop(photo, recipes, np.random.default_rng(7)) for _ in range(2))
    other = multi_crop(photo, recipes, np.random.default_rng(8))
    assert [tuple(view.shape) for view in ours] == [(3, 224, 224)] * 2 + [(3, 96, 96)] * 2
    assert all(torch.equal(a, b) for a, b in zip(ours, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(ours, other, strict=True))
