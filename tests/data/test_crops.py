import numpy as np
import pytest
import torch
from torchvision import transforms

from dino_ssl.data.crops import OPERATIONS, VIEW, MultiCrop, dino_recipe, draw_boxes

PAPER = {
    "global_size": 224, "global_scale": (0.4, 1.0), "num_local_crops": 8, "local_size": 96,
    "local_scale": (0.05, 0.4),
}  # fmt: skip
DRAWS = 4000


def boxes(scale, width, height, num, seed=0):
    chances = np.random.default_rng(seed).random((num, 40))
    return draw_boxes(chances, np.tile(scale, (num, 1)).astype(float), width, height)


def drawn(num=DRAWS, width=300, height=200, **changes):
    """[num, views] draws of the recipe."""
    crops = MultiCrop(dino_recipe(**PAPER | changes))
    rng = np.random.default_rng(0)
    return np.stack([crops.draw(rng, width, height) for _ in range(num)])


def test_recipe_is_the_originals():
    first, second, *local = dino_recipe(**PAPER)
    assert [(v.size, v.scale, v.blur, v.solarize) for v in (first, second)] == [
        (224, (0.4, 1.0), 1.0, 0.0),
        (224, (0.4, 1.0), 0.1, 0.2),
    ]
    assert {(v.size, v.scale, v.blur, v.solarize) for v in local} == {(96, (0.05, 0.4), 0.5, 0.0)}
    assert len(local) == 8
    assert {(v.flip, v.color_jitter, v.grayscale) for v in (first, second, *local)} == {(0.5, 1.0, 0.2)}


@pytest.mark.parametrize(
    ("changes", "groups"),
    [
        ({}, [(slice(0, 2), 224), (slice(2, 10), 96)]),
        ({"num_local_crops": 0}, [(slice(0, 2), 224)]),
        ({"local_size": 224, "num_local_crops": 1}, [(slice(0, 2), 224), (slice(2, 3), 224)]),
    ],
)
def test_global_and_local_views_form_the_groups(changes, groups):
    assert MultiCrop(dino_recipe(**PAPER | changes)).groups == groups


def test_enough_pixels_leave_the_smallest_local_crop_its_own():
    assert MultiCrop(dino_recipe(**PAPER)).enough_pixels == pytest.approx(96**2 / 0.05)
    assert MultiCrop(dino_recipe(**PAPER | {"num_local_crops": 0})).enough_pixels == pytest.approx(224**2 / 0.4)


def test_boxes_are_distributed_as_torchvisions():
    """Mean area and aspect ratio of 4,000 boxes each; their standard error is about 0.003."""
    ours = boxes((0.05, 0.4), 500, 375, DRAWS)
    torch.manual_seed(0)
    image = torch.empty(3, 375, 500)
    params = transforms.RandomResizedCrop.get_params
    theirs = np.array([params(image, [0.05, 0.4], [3 / 4, 4 / 3])[::-1] for _ in range(DRAWS)])
    area, their_area = ours[:, 2] * ours[:, 3] / 187500, theirs[:, 0] * theirs[:, 1] / 187500
    assert area.mean() == pytest.approx(their_area.mean(), abs=0.01)
    assert area.std() == pytest.approx(their_area.std(), abs=0.01)
    ratio, their_ratio = np.log(ours[:, 2] / ours[:, 3]), np.log(theirs[:, 0] / theirs[:, 1])
    assert ratio.mean() == pytest.approx(their_ratio.mean(), abs=0.02)
    assert ratio.std() == pytest.approx(their_ratio.std(), abs=0.01)


def test_boxes_lie_anywhere_that_they_fit():
    """Left and top are uniform over the whole pixels that are left: mean 1/2, variance 1/12."""
    left, top, width, height = boxes((0.1, 0.2), 500, 375, DRAWS).T
    for place in (left / (500 - width), top / (375 - height)):
        assert place.min() >= 0 and place.max() <= 1
        assert place.mean() == pytest.approx(0.5, abs=0.02)
        assert place.var() == pytest.approx(1 / 12, abs=0.005)


@pytest.mark.parametrize(("width", "height"), [(1, 1), (8, 8), (500, 20), (20, 500), (31, 47)])
def test_boxes_lie_inside_the_image(width, height):
    left, top, box_width, box_height = boxes((0.05, 1.0), width, height, 1000).T
    assert np.all((left >= 0) & (left + box_width <= width) & (box_width > 0))
    assert np.all((top >= 0) & (top + box_height <= height) & (box_height > 0))


@pytest.mark.parametrize(("width", "height"), [(1000, 10), (10, 1000), (12, 12)])
def test_a_box_that_cannot_fit_is_torchvisions_central_one(width, height):
    # A share above 1 never fits; torchvision's names are top, left, height, width.
    top, left, box_height, box_width = transforms.RandomResizedCrop.get_params(
        torch.empty(3, height, width), [50.0, 60.0], [3 / 4, 4 / 3]
    )
    assert boxes((50.0, 60.0), width, height, 1).tolist() == [[left, top, box_width, box_height]]


def test_draws_happen_as_often_as_the_recipe_says():
    views = drawn()
    expected_blur = np.array([1.0, 0.1] + [0.5] * 8)
    expected_solarize = np.array([0.0, 0.2] + [0.0] * 8)
    # Five standard errors of a share of 4,000 draws are at most 0.04.
    for name, expected in (("flip", 0.5), ("grayscale", 0.2), ("solarize", expected_solarize)):
        np.testing.assert_allclose(views[name].mean(0), np.broadcast_to(expected, 10), atol=0.04)
    np.testing.assert_allclose((views["blur_radius"] > 0).mean(0), expected_blur, atol=0.04)
    np.testing.assert_allclose((views["order"][..., 0] >= 0).mean(0), 0.8, atol=0.04)


def test_blur_radii_are_uniform_in_their_range():
    radii = drawn(num=1000)["blur_radius"]
    radii = radii[radii > 0]
    assert 0.1 <= radii.min() < 0.11 and 1.99 < radii.max() <= 2.0
    assert radii.mean() == pytest.approx(1.05, abs=0.04)
    assert radii.var() == pytest.approx(1.9**2 / 12, abs=0.02)


def test_jitter_draws_every_operation_once_in_random_order_within_its_range():
    views = drawn(num=400).reshape(-1)
    views = views[views["order"][:, 0] >= 0]
    orders, counts = np.unique(views["order"], axis=0, return_counts=True)
    assert len(orders) == 24 and all(sorted(order) == [0, 1, 2, 3] for order in orders.tolist())
    # About 3,200 draws over 24 orders: 133 each, standard deviation 11.
    assert counts.min() > 80 and counts.max() < 190
    ranges = dict(zip(OPERATIONS, ((0.6, 1.4), (0.6, 1.4), (0.8, 1.2), (-0.1, 0.1)), strict=True))
    for factors, (low, high) in zip(views["factors"].T, ranges.values(), strict=True):
        edge = 0.01 * (high - low)
        assert low <= factors.min() < low + edge and high - edge < factors.max() <= high
        assert factors.mean() == pytest.approx((low + high) / 2, abs=0.02 * (high - low))


@pytest.mark.parametrize(("strength", "low", "high"), [(5.0, 0.0, 3.0), (0.5, 0.8, 1.2)])
def test_the_strength_of_jitter_widens_its_ranges(strength, low, high):
    views = drawn(num=200, color_jitter=strength)
    factors = views["factors"][views["order"][..., 0] >= 0]
    assert low <= factors[:, 0].min() and factors[:, 0].max() <= high
    assert abs(factors[:, 3]).max() <= 0.1 * strength


def test_switched_off_operations_never_happen():
    views = drawn(num=20, flip=0.0, color_jitter=0.0, grayscale=0.0, blur=(0.0, 0.0, 0.0), solarize=0.0)
    for name in ("flip", "grayscale", "solarize", "blur_radius"):
        assert not views[name].any()
    assert np.all(views["order"] == -1)


def test_blur_probabilities_are_those_of_first_second_and_local_views():
    views = drawn(num=50, blur=(0.0, 1.0, 0.0))
    assert (views["blur_radius"] > 0).all(0).tolist() == [False, True] + [False] * 8
    assert (views["blur_radius"] > 0).any(0).tolist() == [False, True] + [False] * 8


def test_the_same_stream_gives_the_same_views():
    crops = MultiCrop(dino_recipe(**PAPER))
    ours, again, other = (crops.draw(np.random.default_rng(seed), 300, 200) for seed in (7, 7, 8))
    assert ours.dtype == VIEW and ours.tobytes() == again.tobytes() != other.tobytes()


def test_a_box_is_a_function_of_its_own_numbers():
    """Neighbours change no bit of it, so that it does not matter how many views are drawn together."""
    chances = np.random.default_rng(0).random((200, 40))
    scale = np.tile((0.05, 0.4), (200, 1))
    together = draw_boxes(chances, scale, 500, 375)
    alone = [draw_boxes(chances[[row]], scale[[row]], 500, 375)[0] for row in range(200)]
    assert together.tobytes() == np.stack(alone).tobytes()
