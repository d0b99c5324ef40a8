"""Margins against the formula in float64, golden values, and where their edges are."""

from math import cos, pi, sin

import pytest
import torch
from torch.nn import functional as F

from dino_ssl.finetuning.margins import ARCFACE, COSFACE, Margin, class_cosines, default_margin, margin_logits
from dino_ssl.finetuning.subcenters import cleaned
from dino_ssl.models.backbone import build_backbone

MARGINS = {
    "arcface": (1.0, 0.5, 0.0),
    "cosface": (1.0, 0.0, 0.35),
    "sphereface": (1.35, 0.0, 0.0),
    "combined 1": (1.0, 0.3, 0.2),
    "combined 2": (0.9, 0.4, 0.15),
}
# Cosine, cos(theta + 0.5), and the gradient's factor sin(theta + 0.5) / sin(theta).
GOLDEN = [
    (0.9, 0.580847558, 1.867472418),
    (0.3, -0.194068047, 1.028354919),
    (-0.5, -0.853985977, 0.600786098),
    (-0.9, -0.998801053, -0.112307294),
]
COSINES = torch.linspace(-0.99, 0.99, 41, dtype=torch.float64)


def with_gradient(margin, cosines):
    """What the margin makes of cosines, and its derivative."""
    cosines = cosines.clone().requires_grad_()
    moved = margin(cosines)
    return moved.detach(), torch.autograd.grad(moved.sum(), cosines)[0]


@pytest.mark.parametrize(("cosine", "moved", "factor"), GOLDEN)
def test_arcface_of_known_cosines_has_the_known_values_and_gradients(cosine, moved, factor):
    found, gradient = with_gradient(ARCFACE, torch.tensor([cosine], dtype=torch.float64))
    assert (found.item(), gradient.item()) == pytest.approx((moved, factor), abs=1e-9)
    found, gradient = with_gradient(Margin(gradient="straight_through"), torch.tensor([cosine], dtype=torch.float64))
    assert (found.item(), gradient.item()) == (pytest.approx(moved, abs=1e-9), 1.0)


@pytest.mark.parametrize("name", MARGINS)
def test_every_margin_is_its_formula_with_its_exact_gradient(name):
    m1, m2, m3 = MARGINS[name]
    moved, gradient = with_gradient(Margin(m1, m2, m3), COSINES)
    for cosine, value, slope in zip(COSINES, moved, gradient, strict=True):
        angle = torch.arccos(cosine).item()
        assert value.item() == pytest.approx(cos(m1 * angle + m2) - m3, abs=1e-14)
        assert slope.item() == pytest.approx(m1 * sin(m1 * angle + m2) / sin(angle), rel=1e-9, abs=1e-12)
    assert torch.autograd.gradcheck(Margin(m1, m2, m3), COSINES.clone().requires_grad_())


@pytest.mark.parametrize("name", MARGINS)
def test_the_straight_through_gradient_is_one_and_changes_no_value(name):
    straight = Margin(*MARGINS[name], gradient="straight_through")
    moved, gradient = with_gradient(straight, COSINES)
    assert torch.equal(moved, Margin(*MARGINS[name])(COSINES)) and torch.equal(gradient, torch.ones_like(COSINES))


def test_the_hard_variant_continues_in_a_line_where_the_angle_passes_pi():
    hard, cosines = Margin(continuation="linear"), torch.tensor([-0.9, -0.8775, -0.8776], dtype=torch.float64)
    moved, gradient = with_gradient(hard, cosines)
    assert moved[0].item() == pytest.approx(-1.139712769, abs=1e-9)
    assert cos(pi - 0.5) == pytest.approx(-0.877583, abs=1e-6)  # the threshold lies between the other two
    assert moved[1] == ARCFACE(cosines)[1] and moved[2] != ARCFACE(cosines)[2]
    assert gradient[0] == gradient[2] == 1 and gradient[1] != 1
    with pytest.raises(ValueError, match="that of m2 alone, not of m1="):
        Margin(0.9, 0.5, 0.1, continuation="linear")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("gradient", ["exact", "straight_through"])
@pytest.mark.parametrize("continuation", ["cosine", "linear"])
def test_embeddings_on_or_opposite_to_their_centre_have_finite_losses_and_gradients(dtype, gradient, continuation):
    torch.manual_seed(0)
    centres = torch.randn(50, 1, 512)
    embeddings = (centres[:, 0] * torch.tensor([3.0, -0.2]).repeat(25)[:, None]).to(dtype).requires_grad_()
    weights, margin = centres.to(dtype).requires_grad_(), Margin(gradient=gradient, continuation=continuation)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16):
        logits = margin_logits(class_cosines(embeddings, weights), torch.arange(50), margin, scale=64.0)
        F.cross_entropy(logits, torch.arange(50)).backward()
    assert logits.dtype == (torch.float64 if dtype is torch.float64 else torch.float32)
    assert logits.isfinite().all() and embeddings.grad.isfinite().all() and weights.grad.isfinite().all()


def test_logits_are_the_loop_of_the_paper():
    torch.manual_seed(0)
    embeddings, centres = torch.randn(5, 8, dtype=torch.float64), torch.randn(7, 3, 8, dtype=torch.float64)
    labels, margin = torch.tensor([0, 6, -1, 3, 3]), Margin(0.9, 0.4, 0.15)
    found = margin_logits(class_cosines(embeddings, centres), labels, margin, scale=30.0)
    for image in range(5):
        for k in range(7):
            cosine = max(F.cosine_similarity(embeddings[image], centre, dim=0).item() for centre in centres[k])
            own = cos(0.9 * torch.tensor(cosine, dtype=torch.float64).arccos().item() + 0.4) - 0.15
            assert found[image, k].item() == pytest.approx(30 * (own if k == labels[image] else cosine), abs=1e-12)


def test_others_that_are_too_near_are_filtered_and_the_own_class_never():
    cosines = torch.tensor([[0.9, 0.5, 0.4, -0.9]])
    logits = margin_logits(cosines, torch.tensor([0]), COSFACE, scale=10.0, filter_above=0.4)
    torch.testing.assert_close(logits, torch.tensor([[5.0, 0.0, 4.0, -9.0]]))


def test_gradients_of_the_whole_loss_are_those_of_float64():
    torch.manual_seed(0)
    embeddings = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    centres, labels = torch.randn(5, 2, 6, dtype=torch.float64, requires_grad=True), torch.tensor([0, 1, 4, -1])

    def loss(e, c):
        return margin_logits(class_cosines(e, c), labels, ARCFACE, scale=8.0).logsumexp(1)

    assert torch.autograd.gradcheck(loss, (embeddings, centres))


@pytest.mark.parametrize(
    ("name", "margin"),
    [("resnet18", ARCFACE), ("vit_micro", COSFACE), ("cmt_micro", COSFACE), ("timm/convnext_atto", COSFACE)],
)
def test_convolutions_with_batch_norm_start_with_arcface_and_all_else_with_cosface(name, margin):
    assert default_margin(build_backbone(name, image_size=64)) is margin


def test_cleaning_keeps_what_is_near_the_dominant_centre_and_counts_classes_anew():
    """Class 0 has a second centre of noise, class 1 nothing near, class 2 a tie, which the first centre wins."""
    centres = torch.tensor([[[1.0, 0, 0], [0, 1, 0]], [[0, 0, 1], [0, 0, -1]], [[1, 0, 0], [0, 0, 1]]])
    near, between = [0.9, 0.1, 0.0], [cos(1.29), sin(1.29), 0.0]  # 74 degrees from the first axis, 16 from the second
    features = torch.tensor([near, near, [0.0, 1, 0], between, [1.0, 0, 0], near, [0.0, 0.1, 1]])
    labels = torch.tensor([0, 0, 0, 0, 1, 2, 2])
    # 0: two images each; the first centre wins the tie, and keeps the one at 74 degrees
    found = cleaned(features, labels, centres)
    assert found.kept.tolist() == [0, 1, 3, 5] and found.labels.tolist() == [0, 0, 0, 1]
    assert found.classes.tolist() == [0, 2]
    assert cleaned(features, labels, centres, most_degrees=73.0).kept.tolist() == [0, 1, 5]


def test_cleaning_is_the_loop_over_classes():
    torch.manual_seed(0)
    features, labels, centres = torch.randn(200, 4), torch.randint(6, (200,)), torch.randn(6, 3, 4)
    kept = []
    for k in range(6):
        own = (labels == k).nonzero().flatten().tolist()
        angles = [[F.cosine_similarity(features[i], c, dim=0).arccos().rad2deg() for c in centres[k]] for i in own]
        nearest = [min(range(3), key=a.__getitem__) for a in angles]
        dominant = max(range(3), key=nearest.count)
        kept += [i for i, a in zip(own, angles, strict=True) if a[dominant] < 60]
    found = cleaned(features, labels, centres, most_degrees=60.0)
    assert found.kept.tolist() == sorted(kept)
    assert torch.equal(found.classes[found.labels], labels[found.kept])
