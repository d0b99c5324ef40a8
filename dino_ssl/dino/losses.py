"""The loss of DINO: cross-entropy between what the teacher and the student say of different views.

Sizes: t teacher views, s student views, b images, k prototypes.
"""

from functools import reduce
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable


def teacher_probabilities(
    logits: Float[Tensor, "t b k"], center: Float[Tensor, "1 k"], temperature: float
) -> Float[Tensor, "t b k"]:
    """Centred and sharpened targets, in the centre's float32, without gradient; each row sums to 1.

    Args:
        temperature: positive; lower is sharper.

    Source: arXiv:2104.14294, equations 1 and 4.
    """
    return torch.softmax((logits.detach() - center).div_(temperature), dim=-1)


def dino_loss(
    student_logits: Float[Tensor, "s b k"], teacher: Float[Tensor, "t b k"], temperature: float
) -> Float[Tensor, ""]:
    """Mean cross-entropy over all pairs of a teacher view and a different student view.

    Student views begin with the teacher's, in the same order: pair (i, i) is the same view and is left out.

    Args:
        student_logits: of any floating type; the loss is float32 or better, and its gradient of the logits' type.
        teacher: probabilities over prototypes, each row with the sum 1; they take no gradient.
        temperature: the student's, positive.
    Raises:
        ValueError: there is no pair of different views.

    Source: arXiv:2104.14294, equation 3 and algorithm 1.
    """
    num_teacher, num_student = len(teacher), len(student_logits)
    num_pairs = num_teacher * num_student - min(num_teacher, num_student)
    if num_pairs == 0:
        raise ValueError(f"{num_teacher} teacher and {num_student} student views form no pair of different views")
    loss: Tensor = _CrossEntropy.apply(student_logits, teacher, temperature, num_pairs * student_logits.shape[1])
    return loss


class _CrossEntropy(torch.autograd.Function):
    """Cross-entropy over all pairs of different views, view by view, in float32 whatever the logits' type.

    It keeps nothing of the size of the logits but the logits and the targets: log-probabilities are computed anew
    for the gradient, which is as large and as precise as the logits, and a tensor of its own. The logits stay as they
    are, so they may have other uses, and backward may run again. Only elementwise operations, softmax and sums, none
    of which autocast would take to half precision; no step waits for the device.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Float[Tensor, "s b k"], teacher: Float[Tensor, "t b k"], temperature: float, num_terms: int
    ) -> Float[Tensor, ""]:
        ctx.save_for_backward(logits, teacher)
        ctx.temperature, ctx.num_terms = temperature, num_terms
        losses = [
            torch.log_softmax(_scaled(view, temperature), dim=-1).mul_(targets).sum()
            for view, (targets, _) in zip(logits, _targets(teacher, len(logits)), strict=True)
        ]
        return -torch.stack(losses).sum() / num_terms

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Float[Tensor, ""]) -> tuple[Float[Tensor, "s b k"], None, None, None]:
        """A view's probabilities less the mean of its targets, times the number of these."""
        logits, teacher = ctx.saved_tensors
        unit = gradient / (ctx.temperature * ctx.num_terms)
        gradients = torch.empty_like(logits)
        for view, output, (targets, num) in zip(logits, gradients, _targets(teacher, len(logits)), strict=True):
            probabilities = torch.softmax(_scaled(view, ctx.temperature), dim=-1)
            # Without targets (one teacher view, the student's own) num is 0, and so is the gradient.
            torch.mul(probabilities.sub_(targets, alpha=1 / max(1, num)), num * unit, out=output)
        return gradients, None, None, None


def _scaled(logits: Float[Tensor, "b k"], temperature: float) -> Float[Tensor, "b k"]:
    return logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature


def _targets(teacher: Float[Tensor, "t b k"], num_student: int) -> list[tuple[Float[Tensor, "b k"], int]]:
    """For every student view, the sum of what the teacher says of other views, and how many those are."""
    views, targets = list(teacher), []
    for own in range(len(views)):
        others = views[:own] + views[own + 1 :]
        targets.append((reduce(torch.add, others) if others else torch.zeros_like(views[own]), len(others)))
    local = (reduce(torch.add, views), len(views))
    return (targets + [local] * num_student)[:num_student]
