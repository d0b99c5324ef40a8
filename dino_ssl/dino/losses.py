"""The loss of DINO: cross-entropy between what the teacher and the student say of different views.

Sizes: t teacher views, s student views, b images, k prototypes. Logits come in float32 or better.
"""

import torch
from jaxtyping import Float
from torch import Tensor


def teacher_probabilities(
    logits: Float[Tensor, "t b k"], center: Float[Tensor, "1 k"], temperature: float
) -> Float[Tensor, "t b k"]:
    """Centred and sharpened targets, without gradient; each row sums to 1.

    Args:
        temperature: positive; lower is sharper.

    Source: arXiv:2104.14294, equations 1 and 4.
    """
    return torch.softmax((logits.detach() - center) / temperature, dim=-1)


def dino_loss(
    student_logits: Float[Tensor, "s b k"], teacher: Float[Tensor, "t b k"], temperature: float
) -> Float[Tensor, ""]:
    """Mean cross-entropy over all pairs of a teacher view and a different student view.

    Student views begin with the teacher's, in the same order: pair (i, i) is the same view and is left out.

    Args:
        teacher: probabilities over prototypes.
        temperature: the student's, positive.
    Raises:
        ValueError: there is no pair of different views.

    Source: arXiv:2104.14294, equation 3 and algorithm 1.
    """
    num_teacher, num_student = len(teacher), len(student_logits)
    num_pairs = num_teacher * num_student - min(num_teacher, num_student)
    if num_pairs == 0:
        raise ValueError(f"{num_teacher} teacher and {num_student} student views form no pair of different views")
    log_p = torch.log_softmax(student_logits / temperature, dim=-1)
    # The double sum factors: every student view meets the sum of all targets; then the same views are taken out.
    every_pair = (teacher.sum(0) * log_p.sum(0)).sum()
    same_view = (teacher[:num_student] * log_p[:num_teacher]).sum()
    return (same_view - every_pair) / (num_pairs * student_logits.shape[1])
