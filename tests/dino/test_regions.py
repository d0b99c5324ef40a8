"""The region-level loss against loops over every region, on every kind of backbone."""

import copy

import pytest
import torch

from dino_ssl.config import Parallel
from dino_ssl.config_checks import check
from dino_ssl.dino.region_method import RegionDistillation, RegionNetwork
from dino_ssl.dino.regions import RegionCenter, Regions, best_matches, region_loss
from dino_ssl.errors import UsageError
from dino_ssl.models.backbone import build_backbone
from dino_ssl.models.cmt import CMT_SIZES, CMTSize
from dino_ssl.models.heads import DINOHead
from dino_ssl.training.pretraining import prepare
from tests.training.small_runs import a_config, as_killed_after, assert_bitwise_equal, run_here, state_after

CPU, K = torch.device("cpu"), 5
torch.set_num_threads(1)


def regions(*shape, seed=0, as_probabilities=False):
    torch.manual_seed(seed)
    b, n, d = shape
    said = torch.randn(b, n, K, dtype=torch.float64)
    return Regions(torch.randn(b, n, d, dtype=torch.float64), said.softmax(-1) if as_probabilities else said)


def naive_loss(student, teacher, temperature):
    """Pair by pair, image by image, region by region."""
    pairs = []
    for s, view in enumerate(student):
        for t, other in enumerate(teacher):
            if s == t:
                continue
            terms = []
            for image in range(len(view.said)):
                for region, logits in zip(view.features[image], view.said[image], strict=True):
                    cosines = [(region @ one / region.norm() / one.norm()).item() for one in other.features[image]]
                    target = other.said[image][cosines.index(max(cosines))]
                    terms.append(-(target * (logits / temperature).log_softmax(-1)).sum())
            pairs.append(sum(terms) / len(terms))
    return sum(pairs) / len(pairs)


def test_the_loss_is_the_cross_entropy_to_the_most_similar_region_of_every_other_view():
    student = [regions(3, n, 4, seed=n) for n in (6, 7, 2)]
    teacher = [regions(3, 6, 4, seed=8 + i, as_probabilities=True) for i in range(2)]
    torch.testing.assert_close(region_loss(student, teacher, 0.1), naive_loss(student, teacher, 0.1), check_dtype=False)


def test_its_gradient_is_that_of_differences_and_goes_through_the_logits_alone():
    student, teacher = regions(2, 3, 4), [regions(2, 4, 4, seed=1, as_probabilities=True)]
    features = student.features.requires_grad_()

    def loss(logits):
        # The first student view is the teacher's own and is left out.
        return naive_like(logits.double())

    def naive_like(logits):
        return region_loss([student, Regions(features, logits)], teacher, 1.0)

    logits = student.said.clone().requires_grad_()
    naive_like(logits).backward()
    step, expected = 1e-2, torch.zeros_like(logits)
    with torch.no_grad():
        for place in range(logits.numel()):
            for sign in (1, -1):
                moved = logits.detach().clone()
                moved.view(-1)[place] += sign * step
                expected.view(-1)[place] += sign * naive_loss([student, Regions(features, moved)], teacher, 1.0)
    torch.testing.assert_close(logits.grad, expected / (2 * step), atol=1e-4, rtol=1e-3)
    assert features.grad is None


def test_regions_match_whatever_their_length():
    teacher = torch.tensor([[[1.0, 0.0], [0.0, 100.0], [-1.0, 0.1]]])
    student = torch.tensor([[[9.0, 1.0], [-0.01, 0.0], [0.1, 0.2]]])
    assert best_matches(student, teacher).tolist() == [[0, 2, 1]]
    with torch.autocast("cpu", torch.bfloat16):
        close = torch.tensor([[[1.0, 0.001], [1.0, 0.0]]])
        assert best_matches(close[:, 1:], close).tolist() == [[1]]


def test_without_a_pair_of_different_views_there_is_no_loss():
    with pytest.raises(ValueError, match="1 teacher and 1 student views form no pair"):
        region_loss([regions(2, 3, 4)], [regions(2, 3, 4, as_probabilities=True)], 0.1)


@pytest.fixture(autouse=True)
def odd(monkeypatch):
    """A CMT that takes no time."""
    monkeypatch.setitem(CMT_SIZES, "cmt_odd", CMTSize(5, (3, 6, 12, 24), (1, 1, 2, 2), 3.3))


def a_network(name):
    torch.manual_seed(0)
    backbone = build_backbone(name, image_size=64, patch_size=16)
    heads = [DINOHead(backbone.embed_dim, K, hidden_dim=8, bottleneck_dim=4) for _ in range(2)]
    return RegionNetwork(backbone, *heads)


def naive_regions(network, crops):
    """The regions of the views of one size, each view by itself."""
    patches = network.backbone.patch_features(crops.flatten(0, 1)).unflatten(0, crops.shape[:2])
    features = [view.flatten(2).transpose(1, 2) for view in patches]
    return [Regions(view, torch.stack([network.region_head(image) for image in view])) for view in features]


@pytest.mark.parametrize("name", ["cmt_odd", "resnet18", "vit_micro"])
def test_the_method_averages_the_losses_of_views_and_of_regions_each_with_its_own_centre(name):
    method = RegionDistillation(
        a_network(name), a_network(name), RegionCenter(K), student_temperature=0.1, device=CPU, parallel=Parallel()
    )
    method.center.center.normal_()
    method.center.regions.center.normal_()
    network, views = copy.deepcopy(method.student), [torch.randn(2, 3, 3, 64, 64), torch.randn(2, 3, 3, 32, 32)]
    logits = torch.cat([network.head(network.backbone(crops.flatten(0, 1))).unflatten(0, (2, 3)) for crops in views])
    found = [view for crops in views for view in naive_regions(network, crops)]
    targets = ((logits[:2] - method.center.center) / 0.04).softmax(-1)
    pairs = [(t, s) for t in range(2) for s in range(4) if t != s]
    by_view = sum(-(targets[t] * (logits[s] / 0.1).log_softmax(-1)).sum(-1).mean() for t, s in pairs) / len(pairs)
    taught = [
        Regions(each.features, ((each.said - method.center.regions.center) / 0.04).softmax(-1)) for each in found[:2]
    ]
    expected = (by_view + naive_loss(found, taught, 0.1)) / 2
    loss = method.loss(views, 0.04)
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-4)
    loss.backward()
    assert all(p.grad is not None for p in method.student.parameters() if p.requires_grad)
    before = {key: center.clone() for key, center in method.center.state_dict().items()}
    method.update_center()
    means = {
        "center": logits[:2].flatten(0, 1).mean(0),
        "regions.center": torch.cat([f.said for f in found[:2]]).mean((0, 1)),
    }
    assert before.keys() == means.keys()
    for key, center in method.center.state_dict().items():
        torch.testing.assert_close(center, 0.9 * before[key] + 0.1 * means[key][None], atol=1e-5, rtol=1e-4)


def test_a_run_with_regions_resumes_exactly_and_its_view_head_starts_as_without(tmp_path):
    knobs = {"steps": 2, "dino": {"region_loss": True}}
    config = a_config(tmp_path, **knobs)
    run_here(config)
    resumed = as_killed_after(config, {1}, tmp_path / "stopped", **knobs)
    run_here(resumed)
    state = state_after(config, 2)
    assert_bitwise_equal(state, state_after(resumed, 2))
    assert state["dino_loss"].keys() == {"center", "regions.center"}
    with_regions = prepare(a_config(tmp_path / "a", **knobs), CPU).task.method.student.state_dict()
    without = prepare(a_config(tmp_path / "b", steps=2), CPU).task.method.student.state_dict()
    assert_bitwise_equal({name: with_regions[name] for name in without}, dict(without))


def test_regions_where_they_were_never_tried_are_refused(tmp_path):
    knobs = {"dino": {"region_loss": True}}
    for more, rule in (
        ({"model": {"name": "timm/resnet10t"}}, "takes vit_"),
        ({"model": {"compile": True}}, "not tried with model.compile=true"),
        ({"dino": {"region_loss": True, "frozen_teacher": "run"}}, "which dino.frozen_teacher has not"),
        ({"parallel": {"sharding": "fsdp2"}}, "not tried with parallel.sharding=fsdp2"),
    ):
        assert any(
            "dino.region_loss=true" in line and rule in line for line in check(a_config(tmp_path, **{**knobs, **more}))
        )
    assert not check(a_config(tmp_path, **knobs))
    with pytest.raises(UsageError, match="local_size"):
        prepare(a_config(tmp_path, **knobs, crops={"local_size": 9}), CPU)
