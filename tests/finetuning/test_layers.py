"""Which layer a parameter is in, and the factor of its learning rate."""

import pytest
import torch
from torch import nn

from dino_ssl.errors import UsageError
from dino_ssl.finetuning.classify import Classifier
from dino_ssl.finetuning.layers import layer_of_parameters, layerwise_groups
from dino_ssl.models.backbone import build_backbone


def a_classifier(name, **options):
    return Classifier(build_backbone(name, image_size=32, **options), 3)


@pytest.mark.parametrize(
    ("name", "options", "depth", "somewhere"),
    [
        ("vit_micro", {"patch_size": 8}, 4, {"cls_token": 0, "pos_embed": 0, "patch_embed.proj.weight": 0,
                                             "blocks.0.attn.qkv.weight": 1, "blocks.3.mlp.fc1.bias": 4,
                                             "norm.weight": 4}),
        ("resnet18", {}, 8, {"conv1.weight": 0, "layer1.0.conv1.weight": 1, "layer1.1.bn2.weight": 2,
                             "layer4.1.conv2.weight": 8}),
        ("timm/test_vit", {"patch_size": 16}, 6, {"model.pos_embed": 0, "model.blocks.5.mlp.fc1.weight": 6}),
    ],
)  # fmt: skip
def test_layers_are_counted_from_the_stem_to_the_head(name, options, depth, somewhere):
    network = a_classifier(name, **options)
    layers, head = layer_of_parameters(network)
    assert head == depth + 1
    for parameter, layer in somewhere.items():
        assert layers[f"backbone.{parameter}"] == layer, parameter
    assert layers["head.1.weight"] == head
    assert layers.keys() == dict(network.named_parameters()).keys()


def test_a_cmt_has_a_layer_for_every_block_of_every_stage():
    network = Classifier(build_backbone("cmt_tiny", image_size=64), 3)
    layers, head = layer_of_parameters(network)
    assert head == sum((2, 2, 10, 2)) + 1
    assert sorted(set(layers.values())) == list(range(head + 1))


def test_groups_hold_every_parameter_once_with_the_factor_of_its_layer():
    network = a_classifier("vit_micro", patch_size=8)
    network.backbone.cls_token.requires_grad_(False)
    layers, head = layer_of_parameters(network)
    groups = layerwise_groups(network, 0.5)
    by_id = {id(p): name for name, p in network.named_parameters()}
    seen = [(by_id[id(p)], group) for group in groups for p in group["params"]]
    assert len(seen) == len(by_id) - 1
    for name, group in seen:
        parameter = network.get_parameter(name)
        assert group["lr_scale"] == 0.5 ** (head - layers[name]), name
        assert group["is_decayed"] == (parameter.ndim > 1 and not name.endswith(".bias")), name


def test_without_decay_of_layers_every_factor_is_one():
    assert {group["lr_scale"] for group in layerwise_groups(a_classifier("resnet18"), 1.0)} == {1.0}
    plain = nn.ModuleDict({"head": nn.Linear(2, 2)})
    (weight, bias) = layerwise_groups(plain, 0.7)
    assert weight["is_decayed"] and not bias["is_decayed"]
    assert torch.equal(weight["params"][0], plain["head"].weight)


def test_decay_of_layers_without_blocks_that_are_known_is_an_error():
    network = nn.ModuleDict({"backbone": nn.Sequential(nn.Conv2d(3, 4, 1)), "head": nn.Linear(4, 2)})
    assert {group["lr_scale"] for group in layerwise_groups(network, 1.0)} == {1.0}
    with pytest.raises(UsageError, match=r"optim.layer_decay=0.7 needs blocks.*write --optim.layer-decay 1"):
        layerwise_groups(network, 0.7)
