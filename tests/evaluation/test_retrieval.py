import numpy as np
import pytest
import torch

from dino_ssl.evaluation import retrieval
from dino_ssl.evaluation.retrieval import average_precision, judge, rankings


def places(*numbers):
    return np.array(numbers, np.int64)


def test_average_precision_with_junk_is_worked_by_hand():
    # Ranked: 4 0 2 5 1 3. Junk 0 and 5 go: 4 2 1 3. Positives 4 and 1 have ranks 0 and 2.
    # Trapezoids over recall 0 to 1/2: (1 + 1) / 2; over 1/2 to 1: (1/2 + 2/3) / 2. The mean of both is 19/24.
    scores = judge(places(4, 0, 2, 5, 1, 3), places(1, 4), places(5, 0))
    assert scores.average_precision == pytest.approx(19 / 24)
    # At 1: 4 alone. At 5 and 10: nothing counts behind the last positive, of the first three two are right.
    assert scores.precision == {1: 1.0, 5: pytest.approx(2 / 3), 10: pytest.approx(2 / 3)}


def test_the_same_ranking_without_junk_scores_less():
    scores = judge(places(4, 0, 2, 5, 1, 3), places(1, 4), places())
    # Ranks 0 and 4: (1 + 1) / 4 + (1/4 + 2/5) / 4.
    assert scores.average_precision == pytest.approx(0.5 + 0.65 / 4)
    assert scores.precision == {1: 1.0, 5: pytest.approx(2 / 5), 10: pytest.approx(2 / 5)}


def naive(order, positives, junk):
    """Walk down the list, and add a trapezoid at each positive."""
    area, rank, hits = 0.0, 0, 0
    for image in order:
        if image in junk:
            continue
        if image in positives:
            before = 1.0 if rank == 0 else hits / rank
            hits += 1
            area += (before + hits / (rank + 1)) / 2 / len(positives)
        rank += 1
    return area


def test_average_precision_equals_a_walk_down_the_list():
    rng = np.random.default_rng(0)
    for _ in range(200):
        order = rng.permutation(30)
        chosen = rng.permutation(30)
        positives, junk = chosen[: rng.integers(1, 8)], chosen[10 : 10 + rng.integers(0, 15)]
        expected = naive(order, set(positives.tolist()), set(junk.tolist()))
        assert judge(order, positives, junk).average_precision == pytest.approx(expected)


def test_positives_that_are_not_found_pull_the_average_down():
    assert average_precision(places(0), 2) == 0.5
    assert average_precision(places(), 2) == 0


@pytest.mark.parametrize("at_once", [1, 7, 10**6])
def test_rankings_are_by_cosine_whatever_fits_at_once(monkeypatch, at_once):
    monkeypatch.setattr(retrieval, "MAX_SIMILARITIES", at_once)
    rng = np.random.default_rng(0)
    queries, gallery = rng.standard_normal((5, 4)).astype(np.float32), rng.standard_normal((7, 4)).astype(np.float32)
    for query, ranking in zip(queries, rankings(torch.from_numpy(queries), torch.from_numpy(gallery)), strict=True):
        cosine = gallery @ query / np.linalg.norm(gallery, axis=1) / np.linalg.norm(query)
        assert ranking.order.tolist() == np.argsort(-cosine).tolist()
        np.testing.assert_allclose(ranking.similarity, -np.sort(-cosine), rtol=1e-5)


def test_of_equal_images_the_first_is_nearer_and_nobody_finds_itself_if_asked():
    same = torch.ones(4, 3)
    assert [ranking.order.tolist() for ranking in rankings(same[:1], same)] == [[0, 1, 2, 3]]
    found = [ranking.order.tolist() for ranking in rankings(same, same, leave_one_out=True)]
    assert found == [[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]]
