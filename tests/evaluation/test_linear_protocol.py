"""What is reported of linear classifiers: accuracies, how the setting was chosen, and nothing that JSON cannot say."""

import json

import pytest
import torch
from sklearn.datasets import load_digits

from dino_ssl.evaluation import linear_protocol
from dino_ssl.evaluation.features import Labelled
from dino_ssl.evaluation.linear import Classifiers, Sweep
from dino_ssl.evaluation.linear_features import POOLED, Choice
from dino_ssl.evaluation.metrics import estimate

CPU = torch.device("cpu")
CLASSES = [f"digit {number}" for number in range(10)]


def digits() -> tuple[Labelled, Labelled]:
    """Two "blocks": the pixels of the upper half, and of the lower; the mean patches of both are noise."""
    pixels, labels = load_digits(return_X_y=True)
    values = torch.zeros(len(labels), 2, 2, 32)
    values[:, :, 0] = torch.tensor(pixels, dtype=torch.float32).view(-1, 2, 32) / 16
    values[:, :, 1] = torch.randn(len(labels), 2, 32, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor(labels)
    return Labelled(values[:1200], labels[:1200]), Labelled(values[1200:], labels[1200:])


def by_metric(found):
    return {measurement.metric: measurement for measurement in found.measurements}


def test_the_grid_prefers_both_halves_of_the_digits_and_says_so():
    train, test = digits()
    sweep = Sweep(learning_rates=(0.001, 0.3, 1e38), epochs=20, batch_size=64)
    choices = [Choice(1, patches=False), Choice(2, patches=False)]
    advanced = []
    found = linear_protocol.grid(
        train, test, CLASSES, choices, sweep, val_share=0.2, device=CPU, advance=advanced.append
    )
    assert found.details["chosen"] == {"features": "2", "learning_rate": 0.3}
    best = max(found.details["candidates"], key=lambda candidate: candidate["accuracy"])
    assert (best["choice"], best["setting"]) == ("2", 0.3)
    assert found.details["note"].startswith(
        "learning rate 0.3 on features 2, the best of 6 on held-out training images"
    )
    assert by_metric(found)["linear/top1"].value > 0.88
    assert by_metric(found)["linear/top5"].value > by_metric(found)["linear/top1"].value
    per_class = found.details["per_class"]
    assert list(per_class) == CLASSES
    assert by_metric(found)["linear/macro"].value == pytest.approx(sum(per_class.values()) / 10)
    # The third rate diverges, and its loss is no number.
    json.dumps(found.details, allow_nan=False)
    assert [candidate["loss"] is None for candidate in found.details["candidates"]] == [False, False, True] * 2


def test_a_chosen_rate_at_the_end_of_the_grid_is_pointed_out():
    train, test = digits()
    sweep = Sweep(learning_rates=(0.0001, 0.001), epochs=2)
    found = linear_protocol.grid(train, test, CLASSES, [POOLED], sweep, val_share=0.2, device=CPU)
    assert "at the end of the grid: try --lr with values beyond it" in found.details["note"]


def test_logistic_regression_reports_as_the_grid_does():
    train, test = digits()
    found = linear_protocol.logistic(train, test, CLASSES, Choice(2, patches=False), val_share=0.2, seed=0)
    assert set(by_metric(found)) == {"logistic/top1", "logistic/top5", "logistic/macro"}
    assert by_metric(found)["logistic/top1"].value > 0.88
    assert len(found.details["candidates"]) == 6 and found.details["chosen"]["converged"]


def test_the_original_reports_the_last_epoch_and_marks_the_best_on_test_as_chosen_on_test():
    test = Labelled(torch.eye(4), torch.tensor([0, 1, 2, 2]))
    classifier = Classifiers(torch.eye(4)[:3], torch.zeros(3), num_members=1)
    found = linear_protocol.original(classifier, test, ["a", "b", "c"], {"epochs": 3}, [0.5, 0.8, 0.75])
    # The last image has equal scores everywhere, and so counts as the first class.
    top1 = by_metric(found)["linear/top1"]
    assert (top1.value, top1.interval) == (0.75, estimate(torch.tensor([True, True, True, False])).interval)
    assert found.details["per_class"] == {"a": 1.0, "b": 1.0, "c": 0.5}
    assert found.details["best_on_test"] == {"top1": 0.8, "epoch": 2}
    assert "80.0 % (epoch 2), is chosen on test" in found.details["note"]
    assert "linear/top5" not in by_metric(found), "of three classes the first five are always right"


def test_a_class_without_test_images_has_no_accuracy_and_no_part_in_the_mean():
    test = Labelled(torch.eye(3)[:2], torch.tensor([0, 1]))
    classifier = Classifiers(torch.eye(3), torch.zeros(3), num_members=1)
    found = linear_protocol.original(classifier, test, ["a", "b", "c"], {})
    assert found.details["per_class"] == {"a": 1.0, "b": 1.0, "c": None}
    assert by_metric(found)["linear/macro"].value == 1.0
    assert linear_protocol.weakest(found.details["per_class"]) == "a 100.0 %, b 100.0 %"


def test_the_weakest_classes_are_named_lowest_first():
    assert linear_protocol.weakest({"cat": 0.5, "dog": 0.25, "cow": None, "hen": 1.0}, 2) == "dog 25.0 %, cat 50.0 %"
