"""Rank-k identification equals sorting the whole table, also with equal similarities and blocks of any size."""

import numpy as np
import pytest
import torch

from dino_ssl.evaluation import knn
from dino_ssl.evaluation.identification import first_hits, rank_rates


def naive(probes: np.ndarray, probe_labels: np.ndarray, gallery: np.ndarray, gallery_labels: np.ndarray) -> list[int]:
    ranks = []
    for probe, label in zip(probes, probe_labels, strict=True):
        cosines = [probe @ one / np.linalg.norm(probe) / np.linalg.norm(one) for one in gallery]
        order = np.argsort(-np.round(cosines, 12), kind="stable")
        hits = np.flatnonzero(gallery_labels[order] == label)
        ranks.append(int(hits[0]) + 1 if len(hits) else 10**9)
    return ranks


@pytest.mark.parametrize(("coarse", "rows"), [(False, 7), (False, 16_384), (True, 7)])
def test_ranks_are_those_of_the_sorted_table(coarse: bool, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knn, "BANK_ROWS", rows)
    monkeypatch.setattr(knn, "QUERY_ROWS", 5)
    rng = np.random.default_rng(0)
    probe_labels = rng.integers(0, 30, 23)
    gallery_labels = np.concatenate([np.arange(25), np.arange(25), np.full(60, -100)])
    gallery = rng.normal(size=(110, 6))
    probes = gallery[probe_labels % 25] + rng.normal(size=(23, 6))
    if coarse:
        # One-hot rows: cosines are exactly 0 or 1, in every order of summation.
        gallery, probes = np.eye(6)[np.arange(110) % 6], np.eye(6)[np.arange(23) % 6]
    ranks = first_hits(*(torch.from_numpy(each) for each in (probes, probe_labels, gallery, gallery_labels)))
    expected = np.minimum(naive(probes, probe_labels, gallery, gallery_labels), 21)
    assert ranks.tolist() == expected.tolist()
    for k, rate in rank_rates(ranks).items():
        assert rate == pytest.approx((expected <= k).mean(), abs=1e-12)


def test_a_gallery_smaller_than_the_ranks_is_searched_whole() -> None:
    ranks = first_hits(torch.eye(3), torch.tensor([5, 6, 7]), torch.eye(3), torch.tensor([5, 7, -100]))
    assert ranks.tolist() == [1, 4, 3]
    assert rank_rates(ranks, (1, 20)) == {1: pytest.approx(1 / 3), 20: pytest.approx(1)}
