"""What a student may learn from a teacher's outputs and features: one function for each published loss.

Sizes: b images, k classes, d dimensions. Nothing flows back to the teacher. All are means over images, so that they
can be added with weights.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F


def soft_target_loss(
    student: Float[Tensor, "b k"], teacher: Float[Tensor, "b k"], temperature: float
) -> Float[Tensor, ""]:
    """KD: T^2 KL(softmax(t / T) || softmax(s / T)), of logits.

    Source: Hinton et al. 2015, arXiv:1503.02531, section 2; T^2 keeps the gradient's scale.
    """
    targets = torch.log_softmax(teacher.detach() / temperature, 1)
    ours = torch.log_softmax(student / temperature, 1)
    return temperature**2 * F.kl_div(ours, targets, reduction="batchmean", log_target=True)


def decoupled_loss(
    student: Float[Tensor, "b k"],
    teacher: Float[Tensor, "b k"],
    labels: Int[Tensor, " b"],
    temperature: float,
    *,
    alpha: float = 1.0,
    beta: float = 8.0,
) -> Float[Tensor, ""]:
    """DKD: T^2 (alpha TCKD + beta NCKD).

    TCKD = KL(b_t || b_s) with b = (p_y, 1 - p_y); NCKD = KL(q_t || q_s) with q = softmax over all classes but y. With
    alpha 1 and beta 1 - p_y of the teacher it would be KD.

    Source: Zhao et al. 2022, arXiv:2203.08679, equation 7.
    """
    is_label = F.one_hot(labels, student.shape[1]).bool()
    ours, theirs = (torch.log_softmax(logits / temperature, 1) for logits in (student, teacher.detach()))
    target = F.kl_div(_binary(ours, is_label), _binary(theirs, is_label), reduction="batchmean", log_target=True)
    others = F.kl_div(_others(ours, is_label), _others(theirs, is_label), reduction="batchmean", log_target=True)
    return temperature**2 * (alpha * target + beta * others)


def _binary(log_p: Float[Tensor, "b k"], is_label: Tensor) -> Float[Tensor, "b 2"]:
    """log of (p_y, 1 - p_y)."""
    label = log_p[is_label][:, None]
    return torch.cat((label, log_p.masked_fill(is_label, -torch.inf).logsumexp(1, keepdim=True)), 1)


def _others(log_p: Float[Tensor, "b k"], is_label: Tensor) -> Float[Tensor, "b l"]:
    """Log-probabilities among the classes that are not the label."""
    return torch.log_softmax(log_p[~is_label].view(len(log_p), -1), 1)


def hint_loss(student: Float[Tensor, "b d h w"], teacher: Float[Tensor, "b d h w"]) -> Float[Tensor, ""]:
    """FitNet: mean of (r(s) - t)^2; `student` is r(s), what a regressor makes of the student's map.

    Source: Romero et al. 2015, arXiv:1412.6550, equation 3 (a mean here, half a sum there).
    """
    return F.mse_loss(student, teacher.detach())


def attention_transfer_loss(
    student: Float[Tensor, "b _c _h _w"], teacher: Float[Tensor, "b _d _k _l"]
) -> Float[Tensor, ""]:
    """AT: mean of (Q_s / |Q_s| - Q_t / |Q_t|)^2 with Q = the mean of A_c^2 over channels, flattened.

    The larger map is averaged down to the smaller one's grid.

    Source: Zagoruyko and Komodakis 2017, arXiv:1612.03928, equation 2, squared and averaged as its authors' code does.
    """
    grid = (min(student.shape[2], teacher.shape[2]), min(student.shape[3], teacher.shape[3]))
    ours, theirs = (
        F.normalize(F.adaptive_avg_pool2d(maps, grid).square().mean(1).flatten(1), dim=1)
        for maps in (student, teacher.detach())
    )
    return F.mse_loss(ours, theirs)


def relational_distance_loss(student: Float[Tensor, "b _c"], teacher: Float[Tensor, "b _d"]) -> Float[Tensor, ""]:
    """RKD-D: Huber loss of |x_i - x_j| / mu, mu the mean distance over pairs of different images.

    Source: Park et al. 2019, arXiv:1904.05068, equations 5 to 7; the mean over all b^2 pairs, as in its authors' code.
    """
    return F.smooth_l1_loss(_relative_distances(student), _relative_distances(teacher.detach()))


def _relative_distances(features: Float[Tensor, "b d"]) -> Float[Tensor, "b b"]:
    square = (features[:, None] - features[None]).square().sum(2)
    # The gradient of a root is infinite at 0, where an image meets itself.
    distances = torch.where(square > 0, square.clamp_min(1e-12).sqrt(), 0.0)
    # Where all images are alike, or there is one alone, every distance is 0, and so is what is compared.
    mean = distances.sum() / (distances > 0).sum().clamp_min(1)
    return distances / mean.clamp_min(1e-12)


def relational_angle_loss(student: Float[Tensor, "b _c"], teacher: Float[Tensor, "b _d"]) -> Float[Tensor, ""]:
    """RKD-A: Huber loss of cos(x_i x_j x_k), the angle at x_j, over all triples of images.

    Source: Park et al. 2019, arXiv:1904.05068, equations 8 and 9.
    """
    return F.smooth_l1_loss(_cosines_at(student), _cosines_at(teacher.detach()))


def _cosines_at(features: Float[Tensor, "b d"]) -> Float[Tensor, "b b b"]:
    directions = F.normalize(features[None] - features[:, None], dim=2)
    return directions @ directions.mT


def feature_cosine_loss(student: Float[Tensor, "b d"], teacher: Float[Tensor, "b d"]) -> Float[Tensor, ""]:
    """1 - cos(s, t); `student` has been brought to the teacher's dimensions.

    Source: feature similarity, arXiv:2303.04681.
    """
    return 1 - F.cosine_similarity(student, teacher.detach(), dim=1).mean()
