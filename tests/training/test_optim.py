import pytest
import torch
from torch import nn

from dino_ssl.models.backbone import build_backbone
from dino_ssl.models.heads import DINOHead
from dino_ssl.training.optim import (
    LARS,
    build_optimizer,
    clip_gradients,
    drop_last_layer_gradients,
    parameter_groups,
    set_rates,
)


def with_gradients(*norms):
    """Parameters whose gradients have the given norms."""
    parameters = []
    for norm in norms:
        parameter = nn.Parameter(torch.zeros(8))
        parameter.grad = torch.full((8,), norm / 8**0.5)
        parameters.append(parameter)
    return parameters


def tiny_student():
    backbone = build_backbone("vit_tiny", image_size=32, patch_size=16)
    head = DINOHead(192, 16, hidden_dim=8, bottleneck_dim=4)
    return nn.ModuleDict({"backbone": backbone, "head": head})


def test_lars_takes_the_two_steps_of_the_reference():
    # Golden: facebookresearch/dino's LARS, lr 0.1, weight decay 1e-4 on p, two steps of the gradient of
    # sum(p^2) + sum(b^3).
    torch.manual_seed(0)
    p, b = nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.randn(3))
    optimizer = LARS([{"params": [p], "weight_decay": 1e-4}, {"params": [b]}], lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        ((p**2).sum() + (b**3).sum()).backward()
        optimizer.step()
    expected_p = torch.tensor([1.54054916, -0.29334378, -2.17815757, 0.56826639])
    expected_b = torch.tensor([-1.62286937, 0.24710478, -2.32625365])
    torch.testing.assert_close(p[0].detach(), expected_p, atol=1e-7, rtol=0)
    torch.testing.assert_close(b.detach(), expected_b, atol=1e-6, rtol=0)


def test_lars_is_its_formula_tensor_by_tensor():
    """A parameter of zeros has ratio 1, one without gradient stays."""
    torch.manual_seed(0)
    shapes = [(8, 3, 3, 3), (200, 100), (1, 1, 384), (7,), (5, 5), (4, 4), (2, 2)]
    parameters = [nn.Parameter(torch.randn(shape)) for shape in shapes]
    parameters[4].data.zero_()
    expected = [p.detach().clone() for p in parameters]
    momenta = [torch.zeros_like(p) for p in parameters]
    optimizer = LARS([{"params": parameters, "weight_decay": 1e-4}], lr=0.3)
    for step in range(3):
        for index, (p, w, momentum) in enumerate(zip(parameters[:-1], expected, momenta, strict=False)):
            p.grad = torch.zeros_like(p) if index == 5 and step == 0 else torch.randn_like(p)
            update = p.grad
            if p.ndim != 1:
                update = update + 1e-4 * w
                if w.norm() > 0 and update.norm() > 0:
                    update = update * (0.001 * w.norm() / update.norm())
            momentum.mul_(0.9).add_(update)
            w.sub_(0.3 * momentum)
        optimizer.step()
    torch.testing.assert_close([p.detach() for p in parameters], expected, atol=1e-7, rtol=1e-6)
    assert parameters[-1] not in optimizer.state


def test_clipping_per_tensor_is_the_reference():
    parameters = with_gradients(28.284, 0.14142)
    clip_gradients(parameters, 3.0, per_tensor=True)
    norms = [p.grad.norm().item() for p in parameters]
    assert norms == pytest.approx([2.9999998, 0.14142], abs=1e-6)


def test_clipping_together_is_pytorchs():
    ours, theirs = with_gradients(28.284, 0.14142), with_gradients(28.284, 0.14142)
    clip_gradients(ours, 3.0, per_tensor=False)
    nn.utils.clip_grad_norm_(theirs, 3.0)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a.grad, b.grad)


@pytest.mark.parametrize("per_tensor", [True, False])
def test_clipping_at_zero_is_off(per_tensor):
    parameters = with_gradients(28.0)
    clip_gradients(parameters, 0.0, per_tensor=per_tensor)
    assert parameters[0].grad.norm().item() == pytest.approx(28.0)


def test_groups_of_vit_tiny_are_those_of_the_reference():
    head = DINOHead(192, 64, norm_last_layer=False)
    student = nn.ModuleDict({"backbone": build_backbone("vit_tiny", image_size=224), "head": head})
    decayed, plain = parameter_groups(student)
    assert (len(decayed["params"]), len(plain["params"])) == (56, 102)
    names = {id(p): name for name, p in student.named_parameters()}
    decayed_names = {names[id(p)] for p in decayed["params"]}
    prototypes = {"head.last_layer.weight_v", "head.last_layer.weight_g"}
    assert {"backbone.pos_embed", "backbone.cls_token"} | prototypes <= decayed_names


def test_a_frozen_prototype_length_is_in_no_group():
    student = tiny_student()
    grouped = [p for group in parameter_groups(student) for p in group["params"]]
    assert len(grouped) == len(list(student.parameters())) - 1
    assert not any(p is student["head"].last_layer.weight_g for p in grouped)


def test_a_frozen_last_layer_leaves_no_trace_in_the_optimizer():
    student = tiny_student()
    optimizer = build_optimizer("adamw", parameter_groups(student))
    set_rates(optimizer, lr=0.1, weight_decay=0.4)
    before = student["head"].last_layer.weight_v.detach().clone()
    student["head"](student["backbone"](torch.randn(2, 3, 32, 32))).square().sum().backward()
    drop_last_layer_gradients(student)
    optimizer.step()
    assert student["head"].last_layer.weight_v not in optimizer.state
    assert torch.equal(student["head"].last_layer.weight_v, before)
    assert len(optimizer.state) == sum(1 for p in student.parameters() if p.requires_grad) - 1


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_optimizers_are_pytorchs_with_the_papers_settings(name):
    torch.manual_seed(0)
    start = torch.randn(4, 3)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    optimizer = build_optimizer(name, [{"params": [ours]}, {"params": [], "weight_decay": 0.0}])
    reference = {
        "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.3, foreach=False),
        "sgd": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, weight_decay=0.3),
    }[name]([theirs])
    for _ in range(3):
        set_rates(optimizer, lr=0.01, weight_decay=0.3)
        for parameter, each in ((ours, optimizer), (theirs, reference)):
            each.zero_grad()
            parameter.pow(3).sum().backward()
            each.step()
    torch.testing.assert_close(ours, theirs)


def test_only_the_first_group_is_decayed():
    optimizer = build_optimizer("adamw", parameter_groups(tiny_student()))
    set_rates(optimizer, lr=0.5, weight_decay=0.3)
    assert [(g["lr"], g["weight_decay"]) for g in optimizer.param_groups] == [(0.5, 0.3), (0.5, 0.0)]
