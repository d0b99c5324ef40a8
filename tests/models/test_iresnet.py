"""Face ResNets against their parameter counts and the equations of their blocks and gates; necks."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dino_ssl.errors import UsageError
from dino_ssl.models.backbone import Backbone, build_backbone
from dino_ssl.models.block_features import BlockFeatures
from dino_ssl.models.iresnet import FaceBlock, IResNet
from dino_ssl.models.necks import EmbeddingNetwork, Neck

# Millions, with the neck at 112 pixels, as insightface has them; A-SKD's gates are 223,152 of the last.
COUNTS = {
    "iresnet18": 24.03, "iresnet34": 34.14, "iresnet50": 43.59, "iresnet100": 65.16, "iresnet50_cbam": 43.814,
}  # fmt: skip


@pytest.mark.parametrize("name", COUNTS)
def test_with_its_neck_a_face_resnet_has_the_published_number_of_parameters(name):
    with torch.device("meta"):
        backbone = build_backbone(name, image_size=112)
        network = EmbeddingNetwork(backbone, "flatten", embed_dim=512, image_size=112)
    millions = sum(parameter.numel() for parameter in network.parameters()) / 1e6
    assert millions == pytest.approx(COUNTS[name], abs=0.0005 if "cbam" in name else 0.005)
    assert backbone.num_gates == (24 if name == "iresnet50_cbam" else 0)


def test_the_gates_of_a_network_of_fifty_layers_have_the_published_parameters():
    with torch.device("meta"):
        gates = [block.cbam for block in build_backbone("iresnet50_cbam", image_size=112).modules()
                 if isinstance(block, FaceBlock)]  # fmt: skip
    assert sum(p.numel() for gate in gates for p in gate.channel.parameters()) == 222_720
    assert sum(p.numel() for gate in gates for p in gate.spatial.parameters()) == 432


def drawn(module):
    """Running statistics and affine parameters that are nobody's defaults."""
    torch.manual_seed(1)
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d | nn.BatchNorm1d):
            norm.running_var.uniform_(0.5, 1.5), norm.running_mean.normal_(0, 0.3)
            nn.init.uniform_(norm.weight, 0.5, 1.5), nn.init.normal_(norm.bias)
        if isinstance(norm, nn.PReLU):
            nn.init.uniform_(norm.weight)
    return module.double().eval()


@pytest.mark.parametrize("has_gates", [False, True])
@pytest.mark.parametrize(("in_dim", "stride"), [(32, 2), (16, 2), (32, 1)])
def test_a_block_is_its_equations(has_gates, in_dim, stride):
    block = drawn(FaceBlock(in_dim, 32, stride, has_gates=has_gates, drop_path=0.0))
    p, x = dict(block.state_dict()), torch.randn(2, in_dim, 9, 6, dtype=torch.float64)

    def norm(x, name):
        mean, var, weight, bias = (
            p[f"{name}.{part}"][:, None, None] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (var + 1e-5).sqrt() * weight + bias

    new = norm(F.conv2d(norm(x, "bn1"), p["conv1.weight"], padding=1), "bn2")
    new = torch.where(new > 0, new, new * p["prelu.weight"][:, None, None])
    new = norm(F.conv2d(new, p["conv2.weight"], padding=1, stride=stride), "bn3")
    if has_gates:
        first, second = p["cbam.channel.0.weight"], p["cbam.channel.2.weight"]
        channel = sum(F.relu(pooled @ first.T) @ second.T for pooled in (new.mean((2, 3)), new.amax((2, 3))))
        new = new * channel.sigmoid()[:, :, None, None]
        both = torch.cat((new.mean(1, keepdim=True), new.max(1, keepdim=True).values), 1)
        spatial = F.conv2d(both, p["cbam.spatial.weight"], padding=1)
        new = new * spatial.sigmoid()
    shortcut = norm(F.conv2d(x, p["downsample.0.weight"], stride=stride), "downsample.1") if stride == 2 else x
    found, gates = block(x)
    torch.testing.assert_close(found, new + shortcut)
    assert len(gates) == has_gates
    if has_gates:
        torch.testing.assert_close((gates[0].channel, gates[0].spatial), (channel, spatial[:, 0]))


def test_gates_come_with_the_features_from_one_pass_a_pair_for_each_block():
    torch.manual_seed(0)
    network = IResNet("iresnet18_cbam").eval()
    images = torch.randn(2, 3, 32, 48)
    features, gates = network.features_and_gates(images)
    torch.testing.assert_close(features.pooled, network(images))
    torch.testing.assert_close(features.patches, network.patch_features(images))
    assert [g.channel.shape[1] for g in gates] == [64, 64, 128, 128, 256, 256, 512, 512]
    assert [tuple(g.spatial.shape[1:]) for g in gates] == [(16, 24)] * 2 + [(8, 12)] * 2 + [(4, 6)] * 2 + [(2, 3)] * 2
    network.train().features_and_gates(images)
    assert network.bn1.num_batches_tracked == network.bn2.num_batches_tracked == 1


def test_drop_path_rises_over_all_blocks():
    network = IResNet("iresnet18", drop_path=0.7)
    blocks = [module for module in network.modules() if isinstance(module, FaceBlock)]
    assert np.allclose([block.drop_path.drop_prob for block in blocks], [0.1 * i for i in range(8)])


@pytest.mark.parametrize("kind", ["cls", "gap", "cls+gap", "flatten"])
def test_a_neck_is_linear_in_what_it_reads_and_then_normalised(kind):
    torch.manual_seed(0)
    block = BlockFeatures(torch.randn(8, 6), torch.randn(8, 6, 2, 3))
    neck = Neck(kind, 6, 5, grid=(2, 3))
    mean = block.patches.flatten(2).mean(2)
    read = {"cls": block.pooled, "gap": mean, "cls+gap": torch.cat((block.pooled, mean), 1),
            "flatten": block.patches.reshape(8, -1)}[kind]  # fmt: skip
    projected = read @ neck.fc.weight.T
    expected = (projected - projected.mean(0)) / (projected.var(0, unbiased=False) + 1e-5).sqrt()
    torch.testing.assert_close(neck(block), expected)
    assert not neck.features.weight.requires_grad


def test_flatten_refuses_another_grid_by_the_knob_that_takes_any():
    neck = Neck("flatten", 6, 5, grid=(2, 2))
    with pytest.raises(
        UsageError, match=r"made for a grid of \(2, 2\) places, not of \(2, 3\); .* --embedding.neck gap"
    ):
        neck(BlockFeatures(torch.randn(2, 6), torch.randn(2, 6, 2, 3)))


@pytest.mark.parametrize("kind", ["cls", "gap", "cls+gap", "flatten"])
@pytest.mark.parametrize("name", ["vit_micro", "cmt_micro", "iresnet18", "resnet18"])
def test_every_backbone_takes_every_neck_and_meets_the_contract_with_it(name, kind):
    torch.manual_seed(0)
    backbone = build_backbone(name, image_size=64)
    network = EmbeddingNetwork(backbone, kind, embed_dim=16, image_size=64).eval()
    images = torch.randn(2, 3, 64, 64)
    assert isinstance(network, Backbone) and network(images).shape == (2, network.embed_dim) == (2, 16)
    torch.testing.assert_close(network(images), network.head(backbone.last_blocks(images, 1)[0]))
    torch.testing.assert_close(network.patch_features(images), backbone.patch_features(images))
    pooled, stages = network.pooled_and_stages(images)
    torch.testing.assert_close((pooled, stages), (network(images), backbone.stage_features(images)))
