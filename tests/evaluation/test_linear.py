"""The grid of linear classifiers: each member is one that PyTorch trains alone, and none is chosen on the test set."""

import math

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from dino_ssl.errors import DivergedError, UsageError
from dino_ssl.evaluation import linear
from dino_ssl.evaluation.linear import Sweep, batches, cosine, fresh, train
from dino_ssl.evaluation.linear_features import (
    Choice,
    from_original_layout,
    original_choice,
    side_by_side,
    usual_choices,
)
from dino_ssl.evaluation.linear_selection import Candidate, best, hold_out, num_steps, probe_grid
from dino_ssl.evaluation.logistic import probe_logistic
from dino_ssl.evaluation.metrics import ranks_of_truth

CPU = torch.device("cpu")
SMALL = Sweep(learning_rates=(0.001, 0.03, 0.5), epochs=3, batch_size=32, seed=1)


def make(num_images=203, dim=12, num_classes=5, seed=0):
    """Clusters that overlap; the last batch of 32 is not full."""
    draw = torch.Generator().manual_seed(seed)
    centers = torch.randn(num_classes, dim, generator=draw)
    labels = torch.randint(num_classes, (num_images,), generator=draw)
    return centers[labels] + 1.5 * torch.randn(num_images, dim, generator=draw), labels


def every(labels):
    return torch.arange(len(labels))


def trained_alone(features, labels, rate, sweep, num_classes=5):
    """PyTorch's layer, loss, gradient, optimiser and schedule, from the same weights and over the same batches."""
    layer = nn.Linear(features.shape[1], num_classes)
    nn.init.zeros_(layer.bias)
    with torch.no_grad():
        layer.weight.copy_(fresh(1, features.shape[1], num_classes, seed=sweep.seed, device=CPU).weight)
    optimizer = torch.optim.SGD(layer.parameters(), lr=rate * sweep.batch_size / 256, momentum=0.9, weight_decay=0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, sweep.steps(len(labels)), eta_min=0)
    for rows in batches(len(labels), sweep):
        optimizer.zero_grad()
        nn.functional.cross_entropy(layer(features[rows]), labels[rows]).backward()
        optimizer.step()
        schedule.step()
    return layer


def test_each_member_is_the_layer_that_pytorch_trains_alone():
    features, labels = make()
    choices = [slice(0, 8), slice(4, 12)]
    grid = train(features, labels, choices, SMALL, rows=every(labels), num_classes=5, device=CPU)
    for columns, members in zip(choices, grid, strict=True):
        for index, rate in enumerate(SMALL.learning_rates):
            alone = trained_alone(features[:, columns], labels, rate, SMALL)
            member = members.member(index)
            torch.testing.assert_close(member.weight, alone.weight.data, rtol=1e-4, atol=1e-6)
            torch.testing.assert_close(member.bias, alone.bias.data, rtol=1e-4, atol=1e-6)


def test_each_member_of_the_grid_of_26_has_the_accuracy_that_it_has_alone():
    features, labels = make(num_images=600, dim=24)
    test, truth = make(num_images=400, dim=24, seed=0)
    sweep = Sweep(epochs=5)
    choices = [slice(0, 24), slice(8, 20)]
    grid = train(features, labels, choices, sweep, rows=every(labels), num_classes=5, device=CPU)
    for columns, members in zip(choices, grid, strict=True):
        together = (members.judge(test[:, columns], truth).ranks == 0).double().mean(1)
        for index, rate in enumerate(sweep.learning_rates):
            alone = trained_alone(features[:, columns], labels, rate, sweep)(test[:, columns]).argmax(1)
            assert together[index].item() == pytest.approx((alone == truth).double().mean().item(), abs=1 / 400)


def test_the_first_weights_are_small_normal_numbers_and_equal_for_all_members():
    members = fresh(3, 500, 20, seed=0, device=CPU)
    first = members.member(0).weight
    assert first.std().item() == pytest.approx(0.01, rel=0.02) and first.mean().abs() < 5e-4
    assert all(torch.equal(members.member(index).weight, first) for index in (1, 2))
    assert not members.bias.any()
    assert not torch.equal(fresh(1, 500, 20, seed=1, device=CPU).weight, first)


def test_every_epoch_takes_every_image_once_in_a_new_order():
    order = list(batches(10, Sweep(epochs=2, batch_size=4)))
    assert [len(rows) for rows in order] == [4, 4, 2, 4, 4, 2]
    first, second = torch.cat(order[:3]).tolist(), torch.cat(order[3:]).tolist()
    assert sorted(first) == sorted(second) == list(range(10)) and first != second


def test_the_rate_follows_pytorchs_cosine():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 7)
    for step in range(7):
        assert cosine(step, 7) == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()


def test_loss_and_ranks_of_a_set_are_pytorchs_whatever_the_parts_it_is_judged_in(monkeypatch):
    features, labels = make()
    (members,) = train(features, labels, [slice(0, 12)], SMALL, rows=every(labels), num_classes=5, device=CPU)
    whole = members.judge(features, labels)
    for index in range(3):
        scores = members.scores(features)[:, index]
        assert whole.loss[index].item() == pytest.approx(nn.functional.cross_entropy(scores, labels).item(), rel=1e-5)
        assert torch.equal(whole.ranks[index], ranks_of_truth(scores, labels))
    monkeypatch.setattr(linear, "MAX_SCORES", 100)
    parts = members.judge(features, labels)
    assert torch.equal(parts.ranks, whole.ranks)
    torch.testing.assert_close(parts.loss, whole.loss)


def test_a_member_that_diverges_is_not_chosen_and_leaves_the_others_as_they_are():
    features, labels = make()
    features = 30 * features
    wild = Sweep(learning_rates=(1e38, 1e-4), epochs=2, batch_size=32)
    tame = Sweep(learning_rates=(1e-4,), epochs=2, batch_size=32)
    (members,) = train(features, labels, [slice(0, 12)], wild, rows=every(labels), num_classes=5, device=CPU)
    (alone,) = train(features, labels, [slice(0, 12)], tame, rows=every(labels), num_classes=5, device=CPU)
    assert not members.member(0).weight.isfinite().all()
    torch.testing.assert_close(members.member(1).weight, alone.weight)
    probe = probe_grid(features, labels, {"all": slice(0, 12)}, wild, num_classes=5, val_share=0.2, device=CPU)
    assert probe.learning_rate == 1e-4
    assert [math.isfinite(candidate.loss) for candidate in probe.candidates] == [False, True]


def test_where_every_member_diverges_the_error_says_what_to_write():
    features, labels = make()
    wild = Sweep(learning_rates=(1e38, 1e37), epochs=2, batch_size=32)
    with pytest.raises(DivergedError, match="smaller values after --lr"):
        probe_grid(30 * features, labels, {"all": slice(0, 12)}, wild, num_classes=5, val_share=0.2, device=CPU)


def test_held_out_images_are_each_class_s_share_and_the_rest_is_fitted():
    labels = torch.repeat_interleave(torch.arange(4), torch.tensor([1, 10, 101, 1001]))
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))]
    fitted, held = hold_out(labels, 0.1, seed=0)
    assert torch.cat([fitted, held]).sort().values.tolist() == list(range(len(labels)))
    held_by_class = labels[held].bincount(minlength=4).tolist()
    assert held_by_class[0] == 0 and held_by_class[1] in (0, 1) and held_by_class[2:] == [10, 100]
    assert torch.equal(hold_out(labels, 0.1, seed=0)[1], held)
    assert not torch.equal(hold_out(labels, 0.1, seed=1)[1], held)


def test_held_out_images_of_a_class_are_drawn_at_random():
    labels = torch.zeros(50, dtype=torch.int64)
    times = torch.zeros(50)
    for seed in range(400):
        times[hold_out(labels, 0.2, seed)[1]] += 1
    assert times.mean().item() == pytest.approx(400 * 0.2, rel=0.03)
    assert times.min() > 50 and times.max() < 115  # 80 ± 8


def test_with_one_image_of_each_class_there_is_nothing_to_choose_on():
    with pytest.raises(UsageError, match="single value after --lr"):
        hold_out(torch.arange(5), 0.1, 0)


def test_of_equally_accurate_candidates_the_one_with_the_lowest_loss_is_best():
    candidates = [Candidate("4", 0.1, 0.9, 0.5), Candidate("4", 0.2, 0.9, 0.4), Candidate("1", 0.3, 0.95, math.nan)]
    assert best(candidates) == candidates[1]


def test_the_chosen_one_is_the_best_on_held_out_images_and_then_trained_on_all():
    features, labels = make(num_images=400)
    choices = {"4": slice(0, 8), "1+patches": slice(4, 12)}
    advanced = []
    probe = probe_grid(
        features, labels, choices, SMALL, num_classes=5, val_share=0.25, device=CPU, advance=advanced.append
    )
    fitted, held = hold_out(labels, 0.25, SMALL.seed)
    for candidate in probe.candidates:
        columns = choices[candidate.choice]
        alone = trained_alone(features[fitted][:, columns], labels[fitted], candidate.setting, SMALL)
        accuracy = (alone(features[held][:, columns]).argmax(1) == labels[held]).double().mean().item()
        assert candidate.accuracy == pytest.approx(accuracy, abs=1 / len(held))
    assert len(probe.candidates) == 6
    assert max(c.accuracy for c in probe.candidates) == best(probe.candidates).accuracy
    assert (probe.choice, probe.learning_rate) == (best(probe.candidates).choice, best(probe.candidates).setting)
    again = trained_alone(features[:, choices[probe.choice]], labels, probe.learning_rate, SMALL)
    torch.testing.assert_close(probe.classifier.weight, again.weight.data, rtol=1e-4, atol=1e-6)
    assert sum(advanced) == num_steps(labels, SMALL, num_choices=2, val_share=0.25)


def test_a_grid_of_one_is_trained_on_all_images_and_holds_none_out():
    features, labels = make()
    one = Sweep(learning_rates=(0.03,), epochs=2, batch_size=32)
    probe = probe_grid(features, labels, {"4": slice(0, 12)}, one, num_classes=5, val_share=0.1, device=CPU)
    alone = trained_alone(features, labels, 0.03, one)
    torch.testing.assert_close(probe.classifier.weight, alone.weight.data, rtol=1e-4, atol=1e-6)
    assert probe.candidates == [] and num_steps(labels, one, num_choices=1, val_share=0.1) == one.steps(len(labels))


def test_choices_are_columns_of_features_side_by_side():
    blocks = torch.randn(6, 4, 2, 3)
    rows = side_by_side(blocks)
    pooled, last_patches = blocks[:, :, 0], blocks[:, -1, 1]
    for number in (1, 2, 4):
        expected = torch.cat([pooled[:, block] for block in range(4 - number, 4)], 1)
        assert torch.equal(rows[:, Choice(number, patches=False).columns(4, 3)], expected)
        with_patches = torch.cat([expected, last_patches], 1)
        assert torch.equal(rows[:, Choice(number, patches=True).columns(4, 3)], with_patches)


def test_the_choices_are_those_of_dino_for_each_kind_of_backbone():
    assert [str(choice) for choice in usual_choices(12)] == ["4", "1+patches"]
    assert [str(choice) for choice in usual_choices(1)] == ["1"]
    assert [str(original_choice(*sizes)) for sizes in ((12, 384), (12, 768), (1, 2048))] == ["4", "1+patches", "1"]


def test_released_weights_of_features_that_take_turns_give_the_same_scores_in_our_order():
    pooled, patches, weight = torch.randn(7, 5), torch.randn(7, 5), torch.randn(3, 10)
    taking_turns = torch.cat((pooled.unsqueeze(-1), patches.unsqueeze(-1)), -1).reshape(7, -1)
    ours = from_original_layout(weight, Choice(1, patches=True))
    torch.testing.assert_close(torch.cat([pooled, patches], 1) @ ours.T, taking_turns @ weight.T)
    assert torch.equal(from_original_layout(weight, Choice(2, patches=False)), weight)


def digits():
    """Pixels of scikit-learn's digits: the first 1,200 to train on, the others to test."""
    pixels, labels = load_digits(return_X_y=True)
    pixels, labels = torch.tensor(pixels, dtype=torch.float32) / 16, torch.tensor(labels)
    return pixels[:1200], labels[:1200], pixels[1200:], labels[1200:]


def test_grid_and_logistic_regression_agree_on_the_digits():
    features, labels, test, truth = digits()
    sweep = Sweep(epochs=60, batch_size=64)
    grid = probe_grid(features, labels, {"pixels": slice(0, 64)}, sweep, num_classes=10, val_share=0.2, device=CPU)
    regression = probe_logistic(features, labels, num_classes=10, val_share=0.2)
    linear_accuracy = (grid.classifier.judge(test, truth).ranks == 0).double().mean().item()
    logistic_accuracy = (ranks_of_truth(regression.scores(test, 10), truth) == 0).double().mean().item()
    assert logistic_accuracy > 0.9 and regression.converged
    assert linear_accuracy == pytest.approx(logistic_accuracy, abs=0.015)
    assert regression.inverse_strength == best(regression.candidates).setting
