import math

import numpy as np
import pytest
import torch

from dino_ssl.evaluation.video_metrics import (
    contour,
    contour_accuracy,
    dilated,
    mean_scores,
    region_similarity,
    scores,
)


def masks_of(*boxes, size=(20, 30)):
    """A frame for each box of rows and columns, ends excluded; None is an empty frame."""
    frames = torch.zeros(len(boxes), *size, dtype=torch.bool)
    for frame, box in zip(frames, boxes, strict=True):
        if box is not None:
            frame[box[0] : box[1], box[2] : box[3]] = True
    return frames


def blobs(seed, size=(41, 57), number=6):
    """Random frames of blobs, some of which touch the border."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[: size[0], : size[1]]
    frames = []
    for _ in range(number):
        y, x, r = rng.uniform(0, size[0]), rng.uniform(0, size[1]), rng.uniform(0, 15)
        frames.append(((rows - y) ** 2 + (columns - x) ** 2 < r**2) ^ (rng.random(size) < 0.01))
    return torch.from_numpy(np.stack(frames))


def naive_contour(mask):
    """Pixel by pixel, in words: some of right, below, below right exists and differs."""
    height, width = mask.shape
    return {
        (y, x)
        for y in range(height)
        for x in range(width)
        if any(
            mask[y, x] != mask[v, u] for v, u in ((y, x + 1), (y + 1, x), (y + 1, x + 1)) if v < height and u < width
        )
    }


def share_near(ours, theirs, reach):
    near = [any((y - v) ** 2 + (x - u) ** 2 <= reach**2 for v, u in theirs) for y, x in ours]
    return sum(near) / len(near)


def naive_f(found, truth):
    """All pairs of contour pixels by their distance."""
    reach = math.ceil(0.008 * math.sqrt(found.shape[0] ** 2 + found.shape[1] ** 2))
    one, other = naive_contour(found), naive_contour(truth)
    if not one and not other:
        return 1.0
    if not one or not other:
        return 0.0
    precision = share_near(one, other, reach)
    recall = share_near(other, one, reach)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def test_j_of_two_overlapping_boxes_is_worked_by_hand():
    found = masks_of((0, 4, 0, 10), (0, 4, 0, 10), None, (0, 2, 0, 2))
    truth = masks_of((2, 6, 0, 10), (0, 4, 0, 10), None, None)
    # 20 pixels of 60 in common; the same; both empty; nothing to be found.
    torch.testing.assert_close(region_similarity(found, truth), torch.tensor([1 / 3, 1.0, 1.0, 0.0]))


def test_f_of_a_shifted_box_is_worked_by_hand():
    # 0.008 of the diagonal of 20 x 30 are 0.29 pixels, so one counts. The contour of a box of 8 x 8 is a ring of 32
    # pixels. Shifted by one, each of them has a partner. Shifted by two, 8 of the 9 above have one, 8 of the 9 below,
    # none of the 7 to the left, and of the 7 to the right the first and the last, next to the other's horizontal lines.
    box, one, two, far = (5, 13, 5, 13), (5, 13, 6, 14), (5, 13, 7, 15), (5, 13, 20, 28)
    f = contour_accuracy(masks_of(box, box, box, box, box, None), masks_of(box, one, two, far, None, None))
    torch.testing.assert_close(f, torch.tensor([1.0, 1.0, 18 / 32, 0.0, 0.0, 1.0]))


@pytest.mark.parametrize("size", [(41, 57), (120, 160), (1, 7), (9, 1)])
def test_f_equals_the_comparison_of_all_pairs_of_contour_pixels(size):
    found, truth = blobs(0, size), blobs(1, size)
    found[-1], truth[-1] = truth[-1].roll(1, 0), truth[-1].clone()
    expected = [naive_f(one.numpy(), other.numpy()) for one, other in zip(found, truth, strict=True)]
    torch.testing.assert_close(contour_accuracy(found, truth), torch.tensor(expected, dtype=torch.float32))


def test_a_contour_is_what_differs_from_the_right_below_or_diagonal_neighbour():
    for mask in blobs(2):
        assert {tuple(place) for place in contour(mask[None])[0].nonzero().tolist()} == naive_contour(mask.numpy())


@pytest.mark.parametrize("radius", [0, 1, 2, 5, 8, 100])
def test_dilation_reaches_every_pixel_within_the_radius(radius):
    masks = blobs(3, (23, 31), number=3) & (torch.rand(3, 23, 31, generator=torch.Generator().manual_seed(0)) < 0.05)
    places = torch.cartesian_prod(torch.arange(23), torch.arange(31))
    for mask, ours in zip(masks, dilated(masks, radius), strict=True):
        distances = (places[:, None] - mask.nonzero()[None]).square().sum(-1)
        assert torch.equal(ours.flatten(), (distances <= radius**2).any(1))


def test_scores_of_an_object_are_worked_by_hand():
    # Eight frames: quarters end at frames 0, 2, 4, 5, 7 (1, 2.75, 4.5, 6.25 and 8 rounded, less one).
    frames = torch.tensor([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2])
    found = scores(frames)
    assert found.mean == pytest.approx(0.55)
    assert found.recall == pytest.approx(4 / 8)  # 0.5 itself is not above
    assert found.decay == pytest.approx((0.9 + 0.8 + 0.7) / 3 - (0.4 + 0.3 + 0.2) / 3)


def test_one_frame_has_no_decay():
    assert scores(torch.tensor([0.7])).decay == 0


def test_each_object_counts_once():
    short, long = scores(torch.tensor([1.0, 1.0])), scores(torch.tensor([0.0] * 50))
    assert mean_scores([short, long]).mean == 0.5
    assert mean_scores([short, long]).recall == 0.5
