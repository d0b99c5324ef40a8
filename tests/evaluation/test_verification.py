"""Both verification protocols equal what their authors' loops would say, also where distances are equal."""

from itertools import product

import numpy as np
import pytest

from dino_ssl.errors import UsageError
from dino_ssl.evaluation import verification
from dino_ssl.evaluation.face_templates import rates_on_curve, template_cosines, templates
from dino_ssl.evaluation.verification import Folds, Pairs, rate_at, rates_in_folds, resolution


def made(num_pairs: int, seed: int = 0, *, offset: float = 0.0, coarse: bool = False) -> tuple[np.ndarray, Pairs]:
    """Features [n, 2, d] of people, and pairs of them in folds of both kinds; coarse ones have equal distances."""
    rng = np.random.default_rng(seed)
    people = rng.normal(size=(12, 8))
    who = np.arange(60) % 12
    features = people[who][:, None] + 0.9 * rng.normal(size=(60, 2, 8)) + offset
    if coarse:
        features = np.sign(features)
    left, right = rng.integers(0, 60, (2, num_pairs))
    wanted = np.arange(num_pairs) % 2 == 0
    for place in range(num_pairs):
        choice = np.flatnonzero((who == who[left[place]]) == wanted[place])
        right[place] = rng.choice(choice[choice != left[place]])
    return features, Pairs(left, right, wanted)


def naive_folds(num_pairs: int) -> list[list[int]]:
    sizes = [num_pairs // 10 + (1 if fold < num_pairs % 10 else 0) for fold in range(10)]
    places = iter(range(num_pairs))
    return [[next(places) for _ in range(size)] for size in sizes]


def unit(vector: np.ndarray) -> np.ndarray:
    length = float(np.sqrt((vector * vector).sum()))
    return vector / length if length else vector


def naive_insightface(features: np.ndarray, pairs: Pairs) -> tuple[list[float], list[float]]:
    distances = []
    for left, right in zip(pairs.left, pairs.right, strict=True):
        one, other = (unit(features[place, 0] + features[place, 1]) for place in (left, right))
        distances.append(float(((one - other) ** 2).sum()))
    accuracies, thresholds = [], []
    for test in naive_folds(len(pairs)):
        train = [place for place in range(len(pairs)) if place not in test]
        best, chosen = -1, 0.0
        for threshold in np.arange(0, 4, 0.01):
            right = sum((distances[place] < threshold) == pairs.is_same[place] for place in train)
            if right > best:
                best, chosen = right, threshold
        accuracies.append(sum((distances[place] < chosen) == pairs.is_same[place] for place in test) / len(test))
        thresholds.append(chosen)
    return accuracies, thresholds


def naive_askd(features: np.ndarray, pairs: Pairs) -> tuple[list[float], list[float]]:
    accuracies, thresholds = [], []
    both = np.concatenate([features[:, 0], features[:, 1]], 1)
    for test in naive_folds(len(pairs)):
        train = np.array([place for place in range(len(pairs)) if place not in test])
        mean = np.concatenate([both[pairs.left[train]], both[pairs.right[train]]]).mean(0)
        cosines = np.array([
            float((unit(both[left] - mean) * unit(both[right] - mean)).sum())
            for left, right in zip(pairs.left, pairs.right, strict=True)
        ])  # fmt: skip
        limits = [step / 10000 for step in range(-10000, 10001)]
        same, different = cosines[train][pairs.is_same[train]], cosines[train][~pairs.is_same[train]]
        rights = np.array([(same > limit).sum() + (different < limit).sum() for limit in limits])
        chosen = np.mean(np.array(limits)[rights == rights.max()])
        right = sum(
            bool(cosines[place] > chosen) if pairs.is_same[place] else bool(cosines[place] < chosen) for place in test
        )
        accuracies.append(right / len(test))
        thresholds.append(float(chosen))
    return accuracies, thresholds


ORACLES = [(verification.insightface, naive_insightface), (verification.askd, naive_askd)]


@pytest.mark.parametrize(("ours", "naive"), ORACLES)
@pytest.mark.parametrize(
    ("num_pairs", "offset", "coarse"), [(200, 0.0, False), (200, 2.0, False), (103, 0.0, True), (10, 0.0, False)]
)
def test_the_ten_folds_are_those_of_a_naive_loop(ours, naive, num_pairs, offset, coarse) -> None:
    features, pairs = made(num_pairs, offset=offset, coarse=coarse)
    found: Folds = ours(features, pairs)
    accuracies, thresholds = naive(features, pairs)
    np.testing.assert_allclose(found.accuracies, accuracies, rtol=0, atol=1e-9)
    np.testing.assert_allclose(found.thresholds, thresholds, rtol=0, atol=1e-9)
    assert abs(found.mean - np.mean(accuracies)) < 1e-9 and abs(found.std - np.std(accuracies)) < 1e-9
    if num_pairs % 10 == 0:
        assert found.hits.mean() == pytest.approx(found.mean, abs=1e-9)


@pytest.mark.parametrize(("ours", "naive"), ORACLES)
def test_equal_features_everywhere_and_features_of_zero_are_judged_as_by_the_loop(ours, naive) -> None:
    _, pairs = made(40)
    for features in (np.zeros((60, 2, 3)), np.ones((60, 2, 3)), np.tile([[[1.0, 0], [0, 1]]], (60, 1, 1))):
        np.testing.assert_allclose(ours(features, pairs).accuracies, naive(features, pairs)[0], rtol=0, atol=1e-9)


def test_a_common_offset_is_what_the_two_protocols_disagree_about() -> None:
    features, pairs = made(400, offset=3.0)
    assert verification.askd(features, pairs).mean > verification.insightface(features, pairs).mean


@pytest.mark.parametrize("ours", [verification.insightface, verification.askd])
def test_too_few_pairs_or_one_kind_of_them_are_refused(ours) -> None:
    features, pairs = made(20)
    for few in (slice(0, 9), slice(0, 20, 2), slice(1, 20, 2)):
        with pytest.raises(UsageError, match="needs 10 pairs or more, of one person and of two"):
            ours(features, Pairs(pairs.left[few], pairs.right[few], pairs.is_same[few]))


def naive_rate(distances: np.ndarray, is_same: np.ndarray, far: float) -> float:
    """The largest of all thresholds that accept few enough of the others."""
    same, others = distances[is_same], distances[~is_same]
    candidates = [*distances, np.inf, distances.max() + 1]
    allowed = [t for t in candidates if (others < t).sum() <= far * len(others) + 1e-12]
    return (same < max(allowed)).mean()


@pytest.mark.parametrize(
    ("seed", "coarse", "far"), product(range(4), (False, True), (0.0, 1e-3, 0.01, 0.07, 0.29, 0.5, 1.0))
)
def test_true_accepts_are_those_of_the_largest_threshold_that_is_allowed(seed, coarse, far) -> None:
    features, pairs = made(200, seed, coarse=coarse)
    distances = verification.squared_distances(features, pairs)
    found = rate_at(distances, pairs.is_same, far)
    assert found.tar == naive_rate(distances, pairs.is_same, far) == found.hits.mean()
    assert (distances[~pairs.is_same] < found.threshold).mean() <= far + 1e-12


def test_so_many_pairs_show_so_small_a_rate() -> None:
    assert resolution(made(200)[1]) == 1 / 100


def test_rates_in_folds_take_their_threshold_from_the_others() -> None:
    features, pairs = made(200)
    distances = verification.squared_distances(features, pairs)
    for far in (0.02, 0.1):
        found = rates_in_folds(pairs, distances, far)
        for (tar, measured), test in zip(found, naive_folds(200), strict=True):
            train = np.array([place for place in range(200) if place not in test])
            threshold = rate_at(distances[train], pairs.is_same[train], far).threshold
            accepted, same = distances[test] < threshold, pairs.is_same[test]
            assert (tar, measured) == (accepted[same].mean(), accepted[~same].mean())


def test_templates_count_a_video_once_and_keep_the_length_of_features_as_a_weight() -> None:
    rng = np.random.default_rng(0)
    features, scores = rng.normal(size=(40, 5)), rng.random(40)
    template_ids, media_ids = rng.integers(3, 9, 40), rng.integers(0, 4, 40)
    for weights in (None, scores):
        numbers, vectors = templates(features, template_ids, media_ids, weights)
        assert numbers.tolist() == sorted(set(template_ids.tolist()))
        for number, vector in zip(numbers, vectors, strict=True):
            total = np.zeros(5)
            for medium in set(media_ids[template_ids == number].tolist()):
                chosen = (template_ids == number) & (media_ids == medium)
                frames = features[chosen] * (1 if weights is None else weights[chosen, None])
                total = total + frames.sum(0) / len(frames)
            np.testing.assert_allclose(vector, unit(total), rtol=0, atol=1e-12)


def test_pairs_of_templates_are_found_by_their_numbers() -> None:
    numbers, vectors = templates(np.eye(3), np.array([7, 2, 9]), np.zeros(3, np.int64))
    cosines = template_cosines(numbers, vectors, np.array([7, 2, 7]), np.array([7, 9, 2]))
    assert cosines.tolist() == [1, 0, 0]
    with pytest.raises(ValueError, match="there is no template 8"):
        template_cosines(numbers, vectors, np.array([7]), np.array([8]))


def test_rates_on_the_curve_are_those_of_its_nearest_point() -> None:
    features, pairs = made(400, coarse=True)
    scores = -verification.squared_distances(features, pairs)
    found = rates_on_curve(scores, pairs.is_same, [0.0, 0.5, 1.0])
    assert (found[0], found[2]) == (np.mean(scores[pairs.is_same] > scores[~pairs.is_same].max()), 1.0)
    assert found[0] <= found[1] <= found[2]
