import math

import numpy as np
import pytest
import torch
from scipy.stats import binom, norm
from sklearn.metrics import recall_score, top_k_accuracy_score

from dino_ssl.evaluation import metrics
from dino_ssl.evaluation.metrics import accuracies, estimate, macro_accuracy, per_class_accuracy, ranks_of_truth


def scores_and_labels(num_images=400, num_classes=7, seed=0):
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(num_classes, (num_images,), generator=draw)
    scores = torch.randn(num_images, num_classes, generator=draw)
    scores[torch.arange(num_images), labels] += 1.5
    return scores, labels


@pytest.mark.parametrize("k", [1, 2, 5])
def test_the_share_of_ranks_below_k_is_scikit_learns_top_k_accuracy(k):
    scores, labels = scores_and_labels()
    expected = top_k_accuracy_score(labels, scores, k=k, labels=range(7))
    found = accuracies(ranks_of_truth(scores, labels), labels, 7, ks=(k,))
    assert found.top[k].value == pytest.approx(expected)


def test_macro_accuracy_is_scikit_learns_mean_recall_and_each_class_has_its_own():
    scores, labels = scores_and_labels()
    labels[labels == 3] = 2  # unequal classes, and one without images
    predicted = scores.argmax(1)
    found = accuracies(ranks_of_truth(scores, labels), labels, 7)
    recall = recall_score(labels, predicted, labels=labels.unique(), average="macro")
    assert found.macro.value == pytest.approx(recall)
    for each in range(7):
        own = predicted[labels == each]
        expected = (own == each).double().mean().item() if len(own) else math.nan
        assert found.per_class[each].item() == pytest.approx(expected, nan_ok=True)


def test_of_equal_scores_the_lower_class_comes_first():
    assert ranks_of_truth(torch.zeros(3, 3), torch.tensor([0, 1, 2])).tolist() == [0, 1, 2]


def test_scores_that_are_not_numbers_are_misses():
    scores, labels = torch.full((3, 4), math.nan), torch.tensor([0, 1, 3])
    assert ranks_of_truth(scores, labels).tolist() == [3, 3, 3]
    scores[:, 0] = 1.0
    assert ranks_of_truth(scores, labels).tolist() == [3, 3, 3]


@pytest.mark.parametrize(("hits", "images"), [(30, 40), (900, 1000), (7451, 10_000)])
def test_the_interval_of_a_proportion_is_that_of_the_binomial_distribution(hits, images):
    found = estimate(torch.arange(images) < hits)
    share, error = hits / images, math.sqrt(hits / images * (1 - hits / images) / images)
    assert found.value == pytest.approx(share)
    # Quantiles of the resampled means are known exactly; they are drawn RESAMPLES times (see there), and discrete.
    exact = binom.ppf([0.025, 0.975], images, share) / images
    assert found.interval == pytest.approx(exact, abs=0.15 * error + 1 / images)
    assert found.interval == pytest.approx(share + error * norm.ppf([0.025, 0.975]), abs=0.25 * error + 1 / images)


def test_the_interval_of_a_mean_is_that_of_the_normal_distribution():
    values = torch.rand(2000, generator=torch.Generator().manual_seed(0))
    found = estimate(values)
    error = values.double().std(correction=0).item() / math.sqrt(2000)
    assert found.value == pytest.approx(values.double().mean().item())
    assert found.interval == pytest.approx(found.value + error * norm.ppf([0.025, 0.975]), abs=0.15 * error)


def test_the_interval_of_the_macro_accuracy_is_that_of_images_drawn_one_by_one():
    scores, labels = scores_and_labels(num_images=60)
    hits = scores.argmax(1) == labels
    draw = np.random.default_rng(1)

    def resampled():
        chosen = draw.integers(60, size=60)
        own, right = labels.numpy()[chosen], hits.numpy()[chosen]
        return np.mean([right[own == each].mean() for each in np.unique(own)])

    expected = np.percentile([resampled() for _ in range(5000)], [2.5, 97.5])
    assert macro_accuracy(hits, labels, 7).interval == pytest.approx(expected, abs=0.01)


def test_with_equal_classes_macro_accuracy_and_its_interval_are_about_those_of_all_images():
    labels = torch.arange(3000) % 3
    hits = torch.rand(3000, generator=torch.Generator().manual_seed(0)) < 0.7
    macro, micro = macro_accuracy(hits, labels, 3), estimate(hits)
    assert macro.value == pytest.approx(micro.value)
    assert macro.interval == pytest.approx(micro.interval, abs=0.003)


def test_memory_is_bounded_in_blocks_that_change_nothing(monkeypatch):
    values = torch.rand(50, generator=torch.Generator().manual_seed(0))
    whole = estimate(values)
    monkeypatch.setattr(metrics, "MAX_COUNTS", 170)
    assert estimate(values) == whole


def test_a_seed_gives_one_interval_and_another_seed_another():
    values = torch.rand(50, generator=torch.Generator().manual_seed(0))
    assert estimate(values, seed=3) == estimate(values, seed=3)
    assert estimate(values, seed=3).interval != estimate(values, seed=4).interval


def test_where_every_image_is_a_hit_the_interval_has_no_width():
    assert estimate(torch.ones(20, dtype=torch.bool)).interval == (1.0, 1.0)


@pytest.mark.parametrize("values", [torch.empty(0), torch.tensor([0.5, math.nan])])
def test_no_numbers_and_numbers_that_are_not_finite_have_no_interval(values):
    with pytest.raises(ValueError, match="finite numbers"):
        estimate(values)


def test_a_class_without_images_has_no_accuracy():
    found = per_class_accuracy(torch.tensor([True, False]), torch.tensor([0, 0]), 2)
    assert found[0] == 0.5 and found[1].isnan()
