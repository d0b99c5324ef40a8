"""Every loss of distillation against its equation written out image by image."""

import math

import pytest
import torch
from torch.nn import functional as F

from dino_ssl.finetuning.distillation import (
    attention_transfer_loss,
    decoupled_loss,
    feature_cosine_loss,
    hint_loss,
    relational_angle_loss,
    relational_distance_loss,
    soft_target_loss,
)


def drawn(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()


def divergence(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def soft(logits, temperature):
    powers = [math.exp(value / temperature) for value in logits.tolist()]
    return [power / sum(powers) for power in powers]


def test_soft_targets_are_hintons():
    student, teacher = drawn(5, 7), drawn(5, 7, seed=1)
    expected = [16 * divergence(soft(t, 4.0), soft(s, 4.0)) for s, t in zip(student, teacher, strict=True)]
    assert soft_target_loss(student, teacher, 4.0).item() == pytest.approx(sum(expected) / 5)


def test_the_gradient_of_soft_targets_is_the_difference_of_the_probabilities_times_the_temperature():
    student, teacher = drawn(5, 7), drawn(5, 7, seed=1)
    soft_target_loss(student, teacher, 4.0).backward()
    expected = 4.0 * (torch.softmax(student / 4, 1) - torch.softmax(teacher / 4, 1)) / 5
    torch.testing.assert_close(student.grad, expected.detach())


def parts_of_dkd(student, teacher, labels, temperature):
    """TCKD and NCKD of each image, from sums of exponentials."""
    target, others = [], []
    for s, t, label in zip(student, teacher, labels.tolist(), strict=True):
        p, q = soft(t, temperature), soft(s, temperature)
        target.append(divergence((p[label], 1 - p[label]), (q[label], 1 - q[label])))
        rest = [index for index in range(len(p)) if index != label]
        others.append(divergence([p[i] / (1 - p[label]) for i in rest], [q[i] / (1 - q[label]) for i in rest]))
    return target, others


def test_decoupled_distillation_weighs_the_labels_class_and_the_others_apart():
    student, teacher, labels = drawn(5, 7), drawn(5, 7, seed=1), torch.tensor([0, 3, 6, 3, 1])
    target, others = parts_of_dkd(student, teacher, labels, 4.0)
    expected = 16 * (1.5 * sum(target) + 8 * sum(others)) / 5
    assert decoupled_loss(student, teacher, labels, 4.0, alpha=1.5).item() == pytest.approx(expected)


def test_coupled_again_it_is_soft_target_distillation():
    """KD = TCKD + (1 - p_y) NCKD, the identity of the paper."""
    student, teacher, label = drawn(1, 7), drawn(1, 7, seed=1), torch.tensor([2])
    share = 1 - torch.softmax(teacher / 4, 1)[0, 2].item()
    coupled = decoupled_loss(student, teacher, label, 4.0, beta=share)
    torch.testing.assert_close(coupled, soft_target_loss(student, teacher, 4.0))


def test_decoupled_distillation_stays_finite_for_teachers_that_are_sure():
    student, labels = torch.zeros(2, 3, requires_grad=True), torch.tensor([0, 1])
    decoupled_loss(student, torch.eye(3)[:2] * 1000, labels, 1.0).backward()
    assert student.grad.isfinite().all()


def test_hints_are_the_mean_squared_error():
    student, teacher = drawn(2, 3, 4, 5), drawn(2, 3, 4, 5, seed=1)
    expected = sum((s - t) ** 2 for s, t in zip(student.flatten().tolist(), teacher.flatten().tolist(), strict=True))
    assert hint_loss(student, teacher).item() == pytest.approx(expected / 120)


def test_attention_is_where_the_squares_of_the_channels_lie_on_the_coarser_grid():
    student, teacher = drawn(2, 3, 4, 6), drawn(2, 5, 8, 6, seed=1)
    halved = (teacher[:, :, 0::2] + teacher[:, :, 1::2]) / 2
    expected = 0.0
    for s, t in zip(student, halved, strict=True):
        ours, theirs = ((x**2).mean(0).flatten() for x in (s, t))
        expected += (ours / ours.norm() - theirs / theirs.norm()).square().mean() / 2
    torch.testing.assert_close(attention_transfer_loss(student, teacher), expected)


def huber(difference):
    return 0.5 * difference**2 if abs(difference) < 1 else abs(difference) - 0.5


def test_relations_are_distances_over_their_mean():
    student, teacher = drawn(5, 3), drawn(5, 4, seed=1)
    tables = []
    for features in (student, teacher):
        table = [[math.dist(a.tolist(), b.tolist()) for a in features] for b in features]
        mean = sum(map(sum, table)) / (5 * 4)
        tables.append([value / mean for row in table for value in row])
    expected = sum(huber(a - b) for a, b in zip(*tables, strict=True)) / 25
    assert relational_distance_loss(student, teacher).item() == pytest.approx(expected)


def test_relations_are_cosines_of_the_angles_of_triples():
    student, teacher = drawn(4, 3), drawn(4, 5, seed=1)
    expected = 0.0
    for i in range(4):
        for j in range(4):
            for k in range(4):
                cosines = [F.cosine_similarity(x[i] - x[j], x[k] - x[j], dim=0).item() for x in (student, teacher)]
                expected += huber(cosines[0] - cosines[1]) / 4**3
    assert relational_angle_loss(student, teacher).item() == pytest.approx(expected)


def test_relations_do_not_change_when_the_teacher_is_scaled_or_turned():
    student, teacher = drawn(5, 3), drawn(5, 3, seed=1)
    turned = 7 * teacher @ torch.linalg.qr(drawn(3, 3, seed=2))[0] + 1
    for loss in (relational_distance_loss, relational_angle_loss):
        torch.testing.assert_close(loss(student, turned), loss(student, teacher))


def test_the_cosine_of_features_ignores_their_length():
    student, teacher = drawn(5, 3), drawn(5, 3, seed=1)
    expected = 0.0
    for a, b in zip(student, teacher, strict=True):
        expected += (1 - (a @ b) / (a.norm() * b.norm())) / 5
    torch.testing.assert_close(feature_cosine_loss(student, 3 * teacher), expected)


LOSSES = {
    "soft targets": lambda s, t: soft_target_loss(s, t, 4.0),
    "decoupled": lambda s, t: decoupled_loss(s, t, torch.tensor([0, 3, 2, 3, 1]), 4.0),
    "hints": lambda s, t: hint_loss(s[:, :, None, None], t[:, :, None, None]),
    "attention": lambda s, t: attention_transfer_loss(s.view(5, 2, 2, 2), t.view(5, 2, 2, 2)),
    "distances": relational_distance_loss,
    "angles": relational_angle_loss,
    "cosine": feature_cosine_loss,
}


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_is_least_at_the_teacher_finite_there_and_teaches_the_student_only(name):
    student, teacher = drawn(5, 8), drawn(5, 8, seed=1)
    loss = LOSSES[name](student, teacher)
    loss.backward()
    assert student.grad.abs().sum() > 0 and teacher.grad is None and loss > 1e-6
    same = teacher.detach().clone().requires_grad_()
    least = LOSSES[name](same, teacher)
    least.backward()
    assert least.item() == pytest.approx(0, abs=1e-12) and same.grad.abs().max() < 1e-7


@pytest.mark.parametrize("features", [torch.randn(1, 4), torch.ones(3, 4)], ids=["alone", "alike"])
def test_images_without_distances_have_a_finite_loss_and_gradient(features):
    ours = features.clone().requires_grad_()
    loss = relational_distance_loss(ours, torch.randn(len(features), 5))
    loss.backward()
    assert loss.isfinite() and ours.grad.isfinite().all()
