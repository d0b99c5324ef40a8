"""The loss against the reference's published numbers and against the paper's double sum."""

import math

import pytest
import torch

from dino_ssl.dino.centering import Center
from dino_ssl.dino.losses import dino_loss, teacher_probabilities


def double_sum(student, teacher, temperature):
    """Algorithm 1 of the paper, one pair at a time."""
    terms = [
        -(teacher[t] * torch.log_softmax(student[s] / temperature, dim=-1)).sum(-1).mean()
        for t in range(len(teacher))
        for s in range(len(student))
        if s != t
    ]
    return torch.stack(terms).mean()


def test_loss_and_center_follow_the_reference_over_three_epochs():
    # Golden values of facebookresearch/dino: K=7, B=3, 5 crops, temperature 0.04 -> 0.07 in 2 epochs, float64.
    torch.manual_seed(0)
    student = torch.randn(15, 7, dtype=torch.float64).unflatten(0, (5, 3))
    logits = torch.randn(6, 7, dtype=torch.float64)
    center = Center(7).double()
    golden_losses = [19.31288607079167, 18.09206396957979, 17.381755824789415]
    golden_centers = [0.065124530335, 0.123736607637, 0.176487477209]
    for temperature, loss, first in zip([0.04, 0.07, 0.07], golden_losses, golden_centers, strict=True):
        targets = teacher_probabilities(logits.unflatten(0, (2, 3)), center.center, temperature)
        assert dino_loss(student, targets, 0.1).item() == pytest.approx(loss, rel=1e-14)
        center.accumulate(logits)
        logit_sum, num_logits = center.collected()
        center.update(logit_sum / num_logits)
        assert center.center[0, 0].item() == pytest.approx(first, abs=1e-12)


@pytest.mark.parametrize(("num_teacher", "num_student"), [(2, 2), (2, 3), (2, 10), (1, 3), (2, 1), (3, 4)])
@pytest.mark.parametrize("num_images", [1, 4])
def test_loss_and_gradient_are_the_double_sum(num_teacher, num_student, num_images):
    torch.manual_seed(1)
    student = torch.randn(num_student, num_images, 11, requires_grad=True)
    teacher = torch.randn(num_teacher, num_images, 11).softmax(-1)
    ours, naive = dino_loss(student, teacher, 0.1), double_sum(student, teacher, 0.1)
    torch.testing.assert_close(ours, naive)
    torch.testing.assert_close(*(torch.autograd.grad(loss, student)[0] for loss in (ours, naive)))


def logits_and_targets(dtype=torch.float32):
    torch.manual_seed(2)
    return torch.randn(4, 3, 50).to(dtype).requires_grad_(), torch.randn(2, 3, 50).mul(5).softmax(-1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", [1.0, 2.0**16])
def test_half_precision_rounds_the_gradient_and_nothing_else(dtype, scale):
    logits, targets = logits_and_targets(dtype)
    exact = logits.detach().float().requires_grad_()
    losses = [dino_loss(x, targets, 0.1) for x in (logits, exact)]
    assert losses[0].dtype == torch.float32 and torch.equal(*losses)
    for loss in losses:
        (scale * loss).backward()
    assert logits.grad.dtype == dtype and torch.equal(logits.grad, exact.grad.to(dtype))


def test_autocast_changes_nothing_about_the_loss():
    logits, targets = logits_and_targets()
    loss = dino_loss(logits, targets, 0.1)
    expected = torch.autograd.grad(loss, logits)[0]
    with torch.autocast("cpu", torch.bfloat16):
        ours = dino_loss(logits, targets, 0.1)
        assert torch.equal(ours, loss)
        assert torch.equal(torch.autograd.grad(ours, logits)[0], expected)


def test_the_logits_may_have_other_uses_and_backward_may_run_again():
    logits, targets = logits_and_targets()
    before = logits.detach().clone()
    expected = torch.autograd.grad(double_sum(logits, targets, 0.1) + logits.square().sum(), logits)[0]
    loss = dino_loss(logits, targets, 0.1) + logits.square().sum()
    for _ in range(2):
        torch.testing.assert_close(torch.autograd.grad(loss, logits, retain_graph=True)[0], expected)
    assert torch.equal(logits, before)


def test_the_loss_keeps_the_logits_and_the_targets_and_nothing_as_large():
    logits, targets = logits_and_targets(torch.bfloat16)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        dino_loss(logits, targets, 0.1)
    large = {tensor.data_ptr() for tensor in kept if tensor.numel() >= 50}
    assert large == {logits.data_ptr(), targets.data_ptr()}


def test_equal_scores_give_the_logarithm_of_the_number_of_prototypes():
    zeros = torch.zeros(4, 2, 65536)
    targets = teacher_probabilities(zeros[:2], torch.zeros(1, 65536), 0.04)
    loss = dino_loss(zeros, targets, 0.1).item()
    assert loss == pytest.approx(math.log(65536), abs=1e-4)  # the reference prints 11.0903587


def test_scores_of_ten_thousand_stay_finite():
    student = torch.tensor([1e4, -1e4, 0.0]).expand(3, 2, 3)
    targets = teacher_probabilities(-student[:2], torch.zeros(1, 3), 0.04)
    assert torch.isfinite(dino_loss(student, targets, 0.1))


def test_a_single_view_is_refused():
    view = torch.zeros(1, 2, 3)
    with pytest.raises(ValueError, match="no pair of different views"):
        dino_loss(view, view.softmax(-1), 0.1)


def test_targets_are_centred_sharpened_and_without_gradient():
    logits = torch.randn(2, 3, 5, requires_grad=True)
    center = torch.randn(1, 5)
    targets = teacher_probabilities(logits, center, 0.05)
    assert not targets.requires_grad
    torch.testing.assert_close(targets, ((logits - center) / 0.05).softmax(-1).detach())


def test_center_moves_once_per_step_by_all_micro_batches():
    logits = torch.randn(8, 5)
    whole, parts = Center(5, momentum=0.9), Center(5, momentum=0.9)
    whole.accumulate(logits)
    for part in logits.split(2):
        parts.accumulate(part)
    for center in (whole, parts):
        logit_sum, num_logits = center.collected()
        center.update(logit_sum / num_logits)
    torch.testing.assert_close(whole.center, 0.1 * logits.mean(0, keepdim=True))
    torch.testing.assert_close(parts.center, whole.center)
    assert list(whole.state_dict()) == ["center"]
