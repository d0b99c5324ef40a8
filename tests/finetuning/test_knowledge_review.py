"""Knowledge review against golden values of the released code and a naive oracle."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dino_ssl.finetuning.knowledge_review import (
    AttentionFusion,
    KnowledgeReview,
    hierarchical_context_loss,
    levels,
    standardized,
)
from dino_ssl.models.cifar_resnet import CifarResNet

DESIGNS = ("same", "review", "fusion", "residual")
R20 = R56 = (16, 32, 64, 64)


def maps(dims, sizes, *, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(2, dim, *size, generator=generator, dtype=torch.float64).requires_grad_()
        for dim, size in zip(dims, sizes, strict=True)
    ]


@pytest.fixture
def pair():
    """Three levels of a student and of a teacher with other channels and, twice, other sizes, not square."""
    return maps((3, 4, 6), ((4, 6), (2, 3), (1, 1))), maps((5, 6, 7), ((8, 12), (2, 3), (1, 1)), seed=1)


@pytest.mark.parametrize(
    ("side", "expected"), [(8, 0.9918038632), (4, 0.8913455539), (2, 0.8424591360), (1, 0.8187070340)]
)
def test_hcl_has_the_golden_values(side, expected):
    student = torch.arange(384, dtype=torch.float64).reshape(2, 3, 8, 8) / 100
    teacher = student.flip(-1) ** 2 / 5
    loss = hierarchical_context_loss(student[..., :side, :side], teacher[..., :side, :side])
    assert loss.item() == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize(
    ("sizes", "weights"),
    [
        (((5, 5), (8, 8), (7, 56)), (8 / 15, 4 / 15, 2 / 15, 1 / 15)),
        (((3, 3), (4, 4), (1, 3)), (4 / 7, 2 / 7, 1 / 7)),
        (((2, 2), (2, 1)), (2 / 3, 1 / 3)),
        (((1, 1),), (1.0,)),
    ],
)
def test_the_weights_of_hcl_sum_to_one_at_every_size(sizes, weights):
    """A constant difference is the same at every level; one whose parts average out counts at the finest only."""
    for height, width in sizes:
        zeros = torch.zeros(1, 1, height, width)
        assert hierarchical_context_loss(zeros + 3, zeros).item() == pytest.approx(9)
    side = max(sizes[0])
    board = (-1.0) ** (torch.arange(side)[:, None] + torch.arange(side))[None, None]
    errors = [(F.adaptive_avg_pool2d(board, n) ** 2).mean() for n in (4, 2, 1) if n < side]
    expected = sum(weight * error for weight, error in zip(weights, [torch.tensor(1.0), *errors], strict=True))
    torch.testing.assert_close(hierarchical_context_loss(board, torch.zeros_like(board)), expected)


def naive_batch_norm(x, norm):
    return F.batch_norm(x, None, None, norm.weight, norm.bias, training=True, eps=norm.eps)


def naive_fusion(module, x, deeper, size):
    """The module written out, weights and all; the nearest place by index."""
    x = naive_batch_norm(F.conv2d(x, module.reduce[0].weight), module.reduce[1])
    if deeper is not None:
        y = nearest(deeper, x.shape[2:])
        kernel = module.weigh.weight[:, :, 0, 0]
        weights = torch.sigmoid(
            torch.einsum("oc,bchw->bohw", kernel, torch.cat((x, y), 1)) + module.weigh.bias[:, None, None]
        )
        x = weights[:, :1] * x + weights[:, 1:] * y
    x = nearest(x, size)
    return naive_batch_norm(F.conv2d(x, module.expand[0].weight, padding=1), module.expand[1]), x


def nearest(x, size):
    rows, columns = (torch.arange(new) * old // new for new, old in zip(size, x.shape[2:], strict=True))
    return x[:, :, rows][:, :, :, columns]


@pytest.mark.parametrize("fuses", [False, True])
def test_attention_fusion_is_the_naive_one(fuses):
    torch.manual_seed(0)
    module = AttentionFusion(3, 4, 5, num_inputs=1 + fuses).double()
    x, deeper = torch.randn(2, 3, 4, 6, dtype=torch.float64), torch.randn(2, 4, 2, 3, dtype=torch.float64)
    found = module(x, [deeper] if fuses else [], (8, 6))
    torch.testing.assert_close(found, naive_fusion(module, x, deeper if fuses else None, (8, 6)))
    assert (module.weigh is not None) == fuses


def test_the_residual_goes_from_the_deepest_level_to_the_finest(pair):
    student, teacher = pair
    torch.manual_seed(0)
    review = KnowledgeReview((3, 4, 6), (5, 6, 7)).double()
    deepest, middle, finest = reversed(review.modules_of)
    ours_2, residual = naive_fusion(deepest, student[2], None, (1, 1))
    ours_1, residual = naive_fusion(middle, student[1], residual, (2, 3))
    ours_0, _ = naive_fusion(finest, student[0], residual, (8, 12))
    expected = [hierarchical_context_loss(*both) for both in zip((ours_0, ours_1, ours_2), teacher, strict=True)]
    torch.testing.assert_close(review.terms(student, teacher), expected)
    torch.testing.assert_close(review(student, teacher), sum(expected))


def test_fusion_at_once_weighs_a_level_and_all_deeper_ones_together(pair):
    student, teacher = pair
    review = KnowledgeReview((3, 4, 6), (5, 6, 7), design="fusion").double()
    finest = review.modules_of[0]
    inputs = [finest.reduce(student[0])]
    inputs += [nearest(review.reduce[f"{i}_0"](student[i]), (4, 6)) for i in (1, 2)]
    weights = torch.sigmoid(finest.weigh(torch.cat(inputs, 1)))
    fused = sum(weights[:, i : i + 1] * inputs[i] for i in range(3))
    expected = hierarchical_context_loss(finest.expand(nearest(fused, (8, 12))), teacher[0])
    torch.testing.assert_close(review.terms(student, teacher)[0], expected)
    assert [module.weigh is None or len(module.weigh.weight) for module in review.modules_of] == [3, 2, True]


@pytest.mark.parametrize("num", [1, 2, 4, 5])
def test_the_review_of_n_levels_has_half_n_times_n_plus_one_terms_none_from_a_deeper_teacher(num):
    dims = (2,) * num
    review = KnowledgeReview(dims, dims, design="review")
    features = [torch.randn(2, 2, side, side) for side in range(num, 0, -1)]
    assert len(review.terms(features, features)) == len(review.modules_of) == num * (num + 1) // 2
    assert all(theirs <= ours for ours, theirs in review.pairs) and len(set(review.pairs)) == len(review.pairs)
    for design in ("same", "fusion", "residual"):
        assert len(KnowledgeReview(dims, dims, design=design).terms(features, features)) == num


def test_a_pair_of_levels_is_a_convolution_a_nearest_resize_and_the_squared_error(pair):
    student, teacher = pair
    review = KnowledgeReview((3, 4, 6), (5, 6, 7), design="same", pair=(2, 0), hierarchical=False).double()
    (transform,) = review.modules_of
    ours = nearest(naive_batch_norm(F.conv2d(student[2], transform.project[0].weight), transform.project[1]), (8, 12))
    torch.testing.assert_close(review(student, teacher), ((ours - teacher[0]) ** 2).mean())
    with pytest.raises(ValueError, match="pair="):
        KnowledgeReview((3, 4), (5, 6), design="same", pair=(0, 2))


@pytest.mark.parametrize("design", DESIGNS)
def test_the_gradient_goes_to_every_level_of_the_student_and_to_no_teacher(design, pair):
    student, teacher = pair
    review = KnowledgeReview((3, 4, 6), (5, 6, 7), design=design).double()
    review(student, teacher).backward()
    assert all(level.grad is not None and level.grad.abs().sum() > 0 for level in student)
    assert all(level.grad is None for level in teacher)
    assert all(parameter.grad is not None for parameter in review.parameters())


def test_without_attention_and_hierarchy_the_fusion_is_a_sum_and_the_distance_a_squared_error(pair):
    student, teacher = pair
    review = KnowledgeReview((3, 4, 6), (5, 6, 7), attends=False, hierarchical=False).double()
    middle, deepest = review.modules_of[1:]
    fused = middle.reduce(student[1]) + nearest(deepest.reduce(student[2]), (2, 3))
    torch.testing.assert_close(review.terms(student, teacher)[1], ((middle.expand(fused) - teacher[1]) ** 2).mean())


@pytest.mark.parametrize(
    ("student", "teacher", "limit", "millions"),
    [
        (R20, R56, 512, 0.114),
        ((64, 128, 256, 256), (64, 128, 256, 256), 512, 1.81),
        ((32, 64, 128, 128), (32, 64, 128, 128), 512, 0.45),
        ((64, 128, 256, 512, 512), (64, 128, 256, 512, 512), 512, 7.55),
        ((128, 256, 512, 1024, 1024), (256, 512, 1024, 2048, 2048), 256, 14.3),
    ],
)
def test_the_extra_parameters_are_those_of_the_released_code(student, teacher, limit, millions):
    """ResNet-20 and 56, 8x4 and 32x4, WRN-16-2 and 40-2, ResNet-18 and 34, MobileNet and ResNet-50 (limit 256)."""
    with torch.device("meta"):
        review = KnowledgeReview(student, teacher, mid_limit=limit)
    found = sum(parameter.numel() for parameter in review.parameters())
    assert float(f"{found / 1e6:.3g}") == pytest.approx(millions, abs=0.005 if millions == 0.45 else 0)


def test_convolutions_start_as_kaiming_uniform_with_a_slope_of_one():
    torch.manual_seed(0)
    fusion = AttentionFusion(200, 100, 60, num_inputs=2)
    for convolution in (fusion.reduce[0], fusion.expand[0]):
        fan_in = convolution.weight[0].numel()
        assert convolution.bias is None
        assert convolution.weight.abs().max().item() == pytest.approx((3 / fan_in) ** 0.5, rel=1e-3)


def test_standardized_places_have_mean_0_and_deviation_1_whatever_the_teachers_scale(pair):
    student, teacher = pair
    found = standardized(teacher[0] * 100 + 7)
    torch.testing.assert_close(found.mean(1), torch.zeros(2, 8, 12, dtype=torch.float64))
    torch.testing.assert_close(found.square().mean(1), torch.ones(2, 8, 12, dtype=torch.float64), atol=1e-4, rtol=0)
    review = KnowledgeReview((3, 4, 6), (5, 6, 7), standardizes=True).double()
    scaled = [100 * level for level in teacher]
    torch.testing.assert_close(review(student, teacher), review(student, scaled), rtol=1e-3, atol=0)


def test_levels_that_do_not_pair_are_refused():
    with pytest.raises(ValueError, match="2 levels of the student and 3 of the teacher"):
        KnowledgeReview((3, 4), (5, 6, 7))


def test_a_student_learns_the_levels_of_its_teacher():
    """Some steps of descent bring a small network's levels nearer to those of another."""
    torch.manual_seed(0)
    teacher, student = CifarResNet("resnet8x4").eval(), CifarResNet("resnet20")
    review = KnowledgeReview((16, 32, 64, 64), (64, 128, 256, 256))
    optimizer = torch.optim.SGD([*student.parameters(), *review.parameters()], lr=0.05, momentum=0.9)
    images = torch.randn(8, 3, 16, 16)
    with torch.no_grad():
        targets = levels(*teacher.pooled_and_preactivations(images))
    losses = []
    for _ in range(15):
        loss = review(levels(*student.pooled_and_stages(images)), targets)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(student.parameters(), 5.0)
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
