import math

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier
from torch.nn import functional as F

from dino_ssl.errors import UsageError
from dino_ssl.evaluation import knn
from dino_ssl.evaluation.knn import L2, knn_accuracy, knn_predict, pixel_baselines


def make(num_bank, num_queries, dim=16, num_classes=7, seed=0):
    """Bank, bank labels, queries, query labels; classes are clusters, so that neighbours mean something."""
    draw = torch.Generator().manual_seed(seed)
    centers = torch.randn(num_classes, dim, generator=draw)
    labels = torch.randint(num_classes, (num_bank + num_queries,), generator=draw)
    features = centers[labels] + 1.5 * torch.randn(len(labels), dim, generator=draw)
    return features[:num_bank], labels[:num_bank], features[num_bank:], labels[num_bank:]


def naive_rankings(bank, bank_labels, queries, *, k, temperature=0.07, num_classes=7, leave_one_out=False):
    """Classes of each query in the order of their votes: loops, float64, ties as the docstring says."""
    bank, queries = (x.double().numpy() / x.double().norm(dim=1, keepdim=True).numpy() for x in (bank, queries))
    rankings = []
    for i, query in enumerate(queries):
        others = [j for j in range(len(bank)) if not (leave_one_out and j == i)]
        nearest = sorted(others, key=lambda j: (-float(bank[j] @ query), j))[:k]
        votes = [0.0] * num_classes
        for j in nearest:
            votes[int(bank_labels[j])] += math.exp(float(bank[j] @ query) / temperature)
        rankings.append(sorted(range(num_classes), key=lambda c: (-votes[c], c)))
    return rankings


def hits(rankings, labels, first):
    return np.mean([int(label) in ranking[:first] for ranking, label in zip(rankings, labels, strict=True)])


def published(bank, bank_labels, queries, query_labels, *, k, temperature=0.07, num_classes=7):
    """Top-1 and top-5 as the paper's evaluation writes it: one-hot votes, weights exp(s / T), a full sort."""
    similarity, indices = (F.normalize(queries) @ F.normalize(bank).T).topk(k)
    one_hot = F.one_hot(bank_labels[indices], num_classes).float()
    votes = (one_hot * similarity.div(temperature).exp()[..., None]).sum(1)
    correct = votes.sort(dim=1, descending=True, stable=True).indices == query_labels[:, None]
    return correct[:, 0].double().mean().item(), correct[:, : min(5, k)].any(1).double().mean().item()


@pytest.mark.parametrize("k", [1, 3, 20, 200])
def test_accuracy_is_that_of_the_naive_double_loop(k):
    data = make(200, 50)
    rankings = naive_rankings(*data[:3], k=k)
    result = knn_accuracy(*data, ks=(k,))
    assert result.top1[k] == pytest.approx(hits(rankings, data[3], 1))
    assert result.top5[k] == pytest.approx(hits(rankings, data[3], min(5, k)))


@pytest.mark.parametrize("temperature", [0.03, 0.07, 1.0])
def test_accuracies_for_several_k_in_one_pass_are_those_of_the_published_formula(temperature):
    data = make(2000, 300, dim=32, num_classes=20)
    ks = (2, 10, 20, 100, 200)
    result = knn_accuracy(*data, ks=ks, temperature=temperature)
    for k in ks:
        assert (result.top1[k], result.top5[k]) == pytest.approx(
            published(*data, k=k, temperature=temperature, num_classes=20)
        )


def test_predictions_are_the_first_of_the_naive_ranking():
    bank, bank_labels, queries, _ = make(300, 40)
    expected = [ranking[0] for ranking in naive_rankings(bank, bank_labels, queries, k=20)]
    assert knn_predict(bank, bank_labels, queries).tolist() == expected


def test_leaving_one_out_is_the_naive_loop_without_the_image_itself():
    bank, labels, _, _ = make(150, 1)
    rankings = naive_rankings(bank, labels, bank, k=5, leave_one_out=True)
    result = knn_accuracy(bank, labels, bank, labels, ks=(5,), leave_one_out=True)
    assert result.top1[5] == pytest.approx(hits(rankings, labels, 1))
    assert knn_accuracy(bank, labels, bank, labels, ks=(1,)).top1[1] == 1


def test_unweighted_l2_votes_are_those_of_scikit_learn():
    bank, bank_labels, queries, _ = make(500, 100)
    expected = KNeighborsClassifier(15).fit(bank.numpy(), bank_labels.numpy()).predict(queries.numpy())
    predicted = knn_predict(bank, bank_labels, queries, k=15, temperature=math.inf, score=L2)
    assert predicted.tolist() == expected.tolist()


@pytest.mark.parametrize("leave_one_out", [False, True])
@pytest.mark.parametrize("rows", [1, 7, 64])
@pytest.mark.parametrize("columns", [3, 40, 1000])
def test_chunks_over_queries_and_bank_change_nothing(monkeypatch, rows, columns, leave_one_out):
    bank, bank_labels, queries, query_labels = make(130, 50)
    if leave_one_out:
        queries, query_labels = bank, bank_labels
    data = bank, bank_labels, queries, query_labels
    whole = knn_accuracy(*data, ks=(4, 30), leave_one_out=leave_one_out)
    monkeypatch.setattr(knn, "QUERY_ROWS", rows)
    monkeypatch.setattr(knn, "WIDE_ROWS", 3 * rows)
    monkeypatch.setattr(knn, "BANK_ROWS", columns)
    assert knn_accuracy(*data, ks=(4, 30), leave_one_out=leave_one_out) == whole


def test_very_many_classes_shrink_the_table_of_votes_and_change_nothing(monkeypatch):
    data = make(300, 50, num_classes=60)
    whole = knn_accuracy(*data)
    monkeypatch.setattr(knn, "MAX_VOTES", 10)
    assert knn_accuracy(*data) == whole


def test_two_thousand_classes_need_no_setting():
    data = make(4000, 50, num_classes=2000)
    result = knn_accuracy(*data)
    assert (result.top1[20], result.top5[20]) == pytest.approx(published(*data, k=20, num_classes=2000))


def test_a_class_that_the_bank_lacks_is_a_miss():
    bank, bank_labels, queries, query_labels = make(50, 4)
    query_labels[:2] = 99
    expected = (knn_predict(bank, bank_labels, queries) == query_labels).double().mean().item()
    assert knn_accuracy(bank, bank_labels, queries, query_labels).top1[20] == expected


def test_of_equally_similar_neighbours_the_first_in_the_bank_counts(monkeypatch):
    bank, labels = torch.ones(100, 4), torch.arange(100).flip(0)
    for columns in (16_384, 8):
        monkeypatch.setattr(knn, "BANK_ROWS", columns)
        assert knn_predict(bank, labels, torch.ones(3, 4), k=1).tolist() == [99, 99, 99]
        # Each of the first five has one vote; the lowest of their classes wins.
        assert knn_predict(bank, labels, torch.ones(3, 4), k=5).tolist() == [95, 95, 95]


def test_of_classes_with_equal_votes_the_lower_one_wins():
    bank = torch.eye(4)[[0, 0, 1, 1]]
    labels = torch.tensor([3, 3, 1, 1])
    queries = torch.tensor([[1.0, 1.0, 0.0, 0.0]])
    assert knn_predict(bank, labels, queries, k=4).tolist() == [1]
    assert knn_accuracy(bank, labels, queries, torch.tensor([3]), ks=(4,)).top1[4] == 0


def test_a_sharp_temperature_stays_finite():
    data = make(100, 50)
    assert knn_accuracy(*data, ks=(20,), temperature=1e-6).top1[20] == knn_accuracy(*data, ks=(1,)).top1[1]


@pytest.mark.parametrize(
    ("sizes", "options", "words"),
    [
        ((10, 5), {"ks": (20,)}, "knn.k=20 must lie in 1 to 10"),
        ((10, 5), {"ks": (0,)}, "knn.k=0"),
        ((10, 10), {"ks": (10,), "leave_one_out": True}, "knn.k=10 must lie in 1 to 9"),
        ((10, 5), {"ks": (5,), "temperature": 0.0}, "knn.temperature=0.0"),
        ((10, 0), {"ks": (5,)}, "10 and 0 images"),
        ((0, 5), {"ks": (5,)}, "0 and 5 images"),
    ],
)
def test_impossible_settings_are_named(sizes, options, words):
    with pytest.raises(UsageError, match=words):
        knn_accuracy(*make(*sizes), **options)


def test_all_impossible_settings_are_named_at_once():
    with pytest.raises(UsageError) as caught:
        knn_accuracy(*make(10, 5), ks=(5, 11, 20), temperature=-1.0)
    assert len(caught.value.problems) == 3


def test_scores_stay_float32_whatever_the_training_around_allows():
    bank, _, queries, _ = make(500, 100, dim=64)
    expected, _ = knn.neighbours(bank, queries, 5, knn.COSINE, None)
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", torch.bfloat16):
            scores, _ = knn.neighbours(bank, queries, 5, knn.COSINE, None)
        assert torch.equal(scores, expected)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("k", [1, 5, 40, 60])
@pytest.mark.parametrize("columns", [60, 160, 16 * 120, 16 * 120 + 1])
@pytest.mark.parametrize("kinds", ["few values", "some ties", "no ties", "all equal"])
def test_the_largest_columns_are_those_of_a_stable_sort(k, columns, kinds):
    draw = torch.Generator().manual_seed(0)
    scores = torch.rand(200, columns, generator=draw)
    match kinds:
        case "few values":
            scores = (5 * scores).floor()
        case "some ties":
            scores = (20 * columns * scores).floor()
        case "all equal":
            scores = torch.ones(200, columns)
    expected = scores.sort(dim=1, descending=True, stable=True).indices[:, :k]
    assert torch.equal(knn._largest(scores, k), expected)


def test_pixel_baselines_are_centred_cosine_and_plain_l2():
    bank, bank_labels, queries, query_labels = (x.abs() + 5 if x.is_floating_point() else x for x in make(400, 100))
    baselines = pixel_baselines(bank, bank_labels, queries, query_labels)
    mean = bank.mean(0)
    assert baselines.cosine == pytest.approx(published(bank - mean, bank_labels, queries - mean, query_labels, k=20)[0])
    oracle = KNeighborsClassifier(20).fit(bank.numpy(), bank_labels.numpy())
    assert baselines.l2 == pytest.approx(oracle.score(queries.numpy(), query_labels.numpy()))


def test_pixel_baselines_leave_one_out():
    bank, labels, _, _ = make(60, 1)
    baselines = pixel_baselines(bank, labels, bank, labels, k=1, leave_one_out=True)
    mean = bank.mean(0)
    rankings = naive_rankings(bank - mean, labels, bank - mean, k=1, leave_one_out=True)
    assert baselines.cosine == pytest.approx(hits(rankings, labels, 1))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("bank_device", ["cpu", "cuda"])
def test_a_gpu_gives_the_same_accuracies_and_takes_the_bank_from_anywhere(bank_device):
    bank, bank_labels, queries, query_labels = make(20_000, 1000, dim=64)
    expected = knn_accuracy(bank, bank_labels, queries, query_labels, ks=(10, 20))
    moved = bank.to(bank_device), bank_labels.to(bank_device), queries.cuda(), query_labels.cuda()
    assert knn_accuracy(*moved, ks=(10, 20)).top1 == pytest.approx(expected.top1, abs=2e-3)
