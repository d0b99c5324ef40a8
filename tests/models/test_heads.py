import copy

import torch
from torch import nn

from dino_ssl.models.heads import DINOHead, WeightNormLinear


def test_names_and_shapes_are_the_originals():
    head = DINOHead(384, 1000, norm_last_layer=False)
    shapes = {name: tuple(value.shape) for name, value in head.state_dict().items()}
    assert shapes == {
        "mlp.0.weight": (2048, 384), "mlp.0.bias": (2048,),
        "mlp.2.weight": (2048, 2048), "mlp.2.bias": (2048,),
        "mlp.4.weight": (256, 2048), "mlp.4.bias": (256,),
        "last_layer.weight_g": (1000, 1), "last_layer.weight_v": (1000, 256),
    }  # fmt: skip


def test_batch_norm_stands_after_the_first_two_layers():
    kinds = [type(layer) for layer in DINOHead(8, 4, hidden_dim=6, batch_norm=True).mlp]
    block = [nn.Linear, nn.BatchNorm1d, nn.GELU]
    assert kinds == [*block, *block, nn.Linear]


def test_a_head_of_vit_small_has_22_million_weights():
    assert sum(p.numel() for p in DINOHead(384, 65536).parameters()) == 22_352_128


def test_weights_start_as_in_the_original():
    torch.manual_seed(0)
    head = DINOHead(384, 4096)
    for layer in head.mlp:
        if isinstance(layer, nn.Linear):
            assert abs(layer.weight.std().item() - 0.02) < 1e-3  # another library once shipped 0.2
            assert layer.weight.abs().max() <= 2  # trunc_normal_'s bounds are absolute
            assert not layer.bias.any()
    prototypes = head.last_layer.weight_v
    # nn.Linear's default: uniform within 1/sqrt(fan_in), whose std is that bound over sqrt(3).
    assert prototypes.abs().max() <= 1 / 16
    assert abs(prototypes.std().item() - 1 / 16 / 3**0.5) < 1e-3
    assert torch.equal(head.last_layer.weight_g, torch.ones(4096, 1))


def test_logits_are_cosines():
    torch.manual_seed(0)
    head = DINOHead(10, 7, hidden_dim=5, bottleneck_dim=4)
    x = torch.randn(3, 10)
    hidden = head.mlp(x)
    expected = [[torch.cosine_similarity(h, v, dim=0) for v in head.last_layer.weight_v] for h in hidden]
    torch.testing.assert_close(head(x), torch.stack([torch.stack(row) for row in expected]), atol=1e-4, rtol=1e-4)


def test_weight_norm_is_pytorchs():
    torch.manual_seed(0)
    ours = WeightNormLinear(6, 5, train_norm=True)
    with torch.no_grad():
        ours.weight_g.uniform_(0.5, 2)
    theirs = nn.utils.parametrizations.weight_norm(nn.Linear(6, 5, bias=False))
    theirs.load_state_dict({"weight_g": ours.weight_g.detach(), "weight_v": ours.weight_v.detach()})
    x = torch.randn(3, 6)
    assert torch.equal(ours(x), theirs(x))
    ours(x).square().sum().backward()
    theirs(x).square().sum().backward()
    torch.testing.assert_close(ours.weight_v.grad, theirs.parametrizations.weight.original1.grad)


def test_the_length_of_prototypes_trains_only_on_request():
    assert not DINOHead(4, 3, norm_last_layer=True).last_layer.weight_g.requires_grad
    assert DINOHead(4, 3, norm_last_layer=False).last_layer.weight_g.requires_grad


def test_a_used_head_can_be_copied():
    head = DINOHead(4, 3, hidden_dim=5, bottleneck_dim=2)
    head(torch.randn(2, 4)).sum().backward()
    x = torch.randn(2, 4)
    assert torch.equal(copy.deepcopy(head)(x), head(x))
