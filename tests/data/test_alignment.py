"""Alignment of faces: the similarity is exact where one exists and the best where none does."""

import numpy as np
import pytest
from PIL import Image
from scipy.optimize import minimize

from dino_ssl.data.alignment import SIDE, TEMPLATE, aligned, similarity


def moved(points: np.ndarray, scale: float, angle: float, shift: tuple[float, float]) -> np.ndarray:
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return scale * points @ turn.T + np.array(shift)


def loss(matrix: np.ndarray, points: np.ndarray, targets: np.ndarray) -> float:
    return float(np.square(points @ matrix[:, :2].T + matrix[:, 2] - targets).sum())


def loss_of_four(p: np.ndarray, points: np.ndarray, targets: np.ndarray) -> float:
    """A similarity has four numbers."""
    return loss(np.array([[p[0], -p[1], p[2]], [p[1], p[0], p[3]]]), points, targets)


def test_a_similarity_is_found_again() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        points = rng.normal(size=(5, 2)) * 30
        scale, angle, shift = rng.uniform(0.2, 3), rng.uniform(-3, 3), tuple(rng.normal(size=2) * 50)
        matrix = similarity(points, moved(points, scale, angle, shift))
        expected = moved(np.eye(2), scale, angle, (0, 0)).T
        np.testing.assert_allclose(matrix, np.column_stack([expected, shift]), atol=1e-9)


def test_of_other_points_the_nearest_similarity_without_mirroring_is_found() -> None:
    rng = np.random.default_rng(1)
    for case in range(10):
        points = rng.normal(size=(5, 2)) * 30
        targets = points * [-1, 1] if case == 0 else TEMPLATE + rng.normal(size=(5, 2)) * 8
        matrix = similarity(points, targets)
        assert np.linalg.det(matrix[:, :2]) > 0
        starts = ([1, 0, 0, 0], [-1, 0, 50, 50])
        found = min(minimize(loss_of_four, start, (points, targets), tol=1e-12).fun for start in starts)
        assert loss(matrix, points, targets) <= found * (1 + 1e-6) + 1e-9


def test_points_that_determine_nothing_are_refused() -> None:
    for points in (np.ones((5, 2)), np.full((5, 2), np.nan)):
        with pytest.raises(ValueError, match="two different points"):
            similarity(points, TEMPLATE)


def test_a_face_that_lies_right_stays_as_it_is_and_black_surrounds_it() -> None:
    pixels = np.random.default_rng(2).integers(0, 256, (SIDE, SIDE, 3)).astype(np.uint8)
    np.testing.assert_array_equal(aligned(pixels, TEMPLATE), pixels)
    shifted = aligned(pixels, TEMPLATE + np.array([10, -5]))
    np.testing.assert_array_equal(shifted[5:, :-10], pixels[:-5, 10:])
    assert not shifted[:5].any() and not shifted[:, -10:].any()
    assert not aligned(pixels, TEMPLATE + 1e7).any()


def test_a_turned_and_larger_face_comes_back_upright() -> None:
    smooth = np.asarray(Image.fromarray(
        np.random.default_rng(3).integers(0, 256, (7, 7, 3)).astype(np.uint8)
    ).resize((SIDE, SIDE), Image.Resampling.BICUBIC))  # fmt: skip
    scale, angle, shift = 2.5, 0.5, (120.0, 40.0)
    points = moved(TEMPLATE, scale, angle, shift)
    back = np.linalg.inv(np.vstack([similarity(TEMPLATE, points), [0, 0, 1]]))
    large = Image.fromarray(smooth).transform(
        (420, 420), Image.Transform.AFFINE, back[:2].ravel(), Image.Resampling.BILINEAR
    )
    found = aligned(np.asarray(large), points)
    assert np.abs(found.astype(int) - smooth)[8:-8, 8:-8].mean() < 3


def test_other_sides_scale_the_template() -> None:
    pixels = np.full((SIDE, SIDE, 1), 9, np.uint8)
    assert aligned(pixels, TEMPLATE, side=56).shape == (56, 56, 1)
    assert (aligned(pixels, TEMPLATE, side=56)[1:-1, 1:-1] == 9).all()
