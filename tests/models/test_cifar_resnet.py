"""The CIFAR networks against the textbook's equations, and their files."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from dino_ssl.errors import UsageError
from dino_ssl.models.backbone import build_backbone
from dino_ssl.models.cifar_resnet import CIFAR_SIZES, CifarResNet
from dino_ssl.models.weights import load

# Parameters in millions with a classifier of 100 classes, as publications round them.
PUBLISHED = {
    "resnet20": 0.278, "resnet32": 0.473, "resnet56": 0.862, "resnet110": 1.737, "resnet8x4": 1.234,
    "resnet32x4": 7.434, "wrn_16_2": 0.703, "wrn_40_1": 0.570, "wrn_40_2": 2.255,
}  # fmt: skip


@pytest.mark.parametrize("name", CIFAR_SIZES)
def test_the_sizes_are_the_published_ones(name):
    with torch.device("meta"):
        network = build_backbone(name, image_size=32)
    parameters = sum(p.numel() for p in network.parameters()) + 101 * network.embed_dim - network.embed_dim + 100
    assert round(parameters / 1e6, 3) == PUBLISHED[name]


def with_drawn_statistics(network):
    """Running statistics and affine parameters that are nobody's defaults."""
    torch.manual_seed(1)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for value in (module.weight.data, module.running_var):
                value.uniform_(0.5, 1.5)
            for value in (module.bias.data, module.running_mean):
                value.normal_(0, 0.3)
    return network.double().eval()


class Textbook:
    """Both kinds of network from their tensors alone."""

    def __init__(self, network):
        self.state = network.state_dict()
        self.blocks = CIFAR_SIZES[network.name].blocks

    def norm(self, x, name):
        mean, var, weight, bias = (
            self.state[f"{name}.{part}"][:, None, None] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (var + 1e-5).sqrt() * weight + bias

    def conv(self, x, name, stride=1):
        weight = self.state[f"{name}.weight"]
        return F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)

    def plain(self, images):
        """The stages before and after their last ReLU."""
        x, before, after = F.relu(self.norm(self.conv(images, "conv1"), "bn1")), [], []
        for stage in (1, 2, 3):
            for index in range(self.blocks):
                block, stride = f"layer{stage}.{index}", 2 if index == 0 and stage > 1 else 1
                new = F.relu(self.norm(self.conv(x, f"{block}.conv1", stride), f"{block}.bn1"))
                new = self.norm(self.conv(new, f"{block}.conv2"), f"{block}.bn2")
                if f"{block}.shortcut.0.weight" in self.state:
                    x = self.norm(self.conv(x, f"{block}.shortcut.0", stride), f"{block}.shortcut.1")
                total = new + x
                x = F.relu(total)
            before.append(total)
            after.append(x)
        return before, after

    def wide(self, images):
        """The stages after the BN that follows them, and before it."""
        x, after = self.conv(images, "conv1"), []
        for stage in (1, 2, 3):
            for index in range(self.blocks):
                block, stride = f"layer{stage}.{index}", 2 if index == 0 and stage > 1 else 1
                active = F.relu(self.norm(x, f"{block}.bn1"))
                new = F.relu(self.norm(self.conv(active, f"{block}.conv1", stride), f"{block}.bn2"))
                if f"{block}.shortcut.weight" in self.state:
                    x = self.conv(active, f"{block}.shortcut", stride)
                x = x + self.conv(new, f"{block}.conv2")
            after.append(x)
        norms = ("layer2.0.bn1", "layer3.0.bn1", "bn1")
        return [self.norm(maps, name) for maps, name in zip(after, norms, strict=True)], after


@pytest.mark.parametrize("name", ["resnet20", "resnet8x4", "wrn_16_2", "wrn_40_1"])
def test_stages_before_and_after_activation_are_the_textbooks(name):
    network = with_drawn_statistics(CifarResNet(name))
    images = torch.randn(2, 3, 16, 24, dtype=torch.float64)
    textbook = Textbook(network)
    before, after = textbook.wide(images) if network.is_wide else textbook.plain(images)
    pooled = F.relu(before[-1]).flatten(2).mean(2)
    torch.testing.assert_close(network.pooled_and_preactivations(images), (pooled, before))
    torch.testing.assert_close(network.pooled_and_stages(images), (pooled, after))
    torch.testing.assert_close(network(images), pooled)


@pytest.mark.parametrize("name", ["resnet8x4", "wrn_16_2"])
def test_every_batch_norm_sees_a_batch_once(name):
    network = CifarResNet(name)
    network.pooled_and_preactivations(torch.randn(2, 3, 8, 8))
    counts = [m.num_batches_tracked.item() for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert set(counts) == {1}


def test_drop_path_rises_over_all_blocks_and_leaves_the_shortcut():
    network = CifarResNet("resnet20", drop_path=0.8)
    blocks = [*network.layer1, *network.layer2, *network.layer3]
    assert [block.drop_path.drop_prob for block in blocks] == pytest.approx([0.1 * i for i in range(9)])
    blocks[-1].drop_path.drop_prob = 1.0 - 1e-12
    x = torch.rand(2, 64, 4, 4)
    torch.testing.assert_close(blocks[-1](x), x)


@pytest.mark.parametrize("name", CIFAR_SIZES)
def test_a_file_of_a_cifar_classifier_is_recognised_by_its_tensors(tmp_path, name):
    torch.manual_seed(0)
    network, path = CifarResNet(name), tmp_path / "weights.npz"
    classifier = {"linear.weight": torch.randn(10, network.embed_dim), "linear.bias": torch.randn(10)}
    np.savez(path, **{key: value.numpy() for key, value in (network.state_dict() | classifier).items()})
    found = load(path)
    assert (found.family, found.encoder.name, found.encoder.size, found.encoder.center_crop) == ("cifar", name, 32, 1)
    assert "ignored linear.*" in found.encoder.report
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(found.encoder.backbone(images), network.eval()(images))
    with pytest.raises(UsageError, match="tensors match"):
        load(path, arch="wrn_40_2" if name != "wrn_40_2" else "resnet20")


@pytest.mark.parametrize("name", ["resnet20", "wrn_16_2"])
def test_activation_checkpointing_recomputes_the_stages_too(name):
    torch.manual_seed(0)
    network, images = CifarResNet(name).eval(), torch.randn(2, 3, 8, 8)
    passes, gradients = [], []
    network.conv1.register_forward_hook(lambda *_: passes.append(1))
    for enabled in (False, True):
        network.set_grad_checkpointing(enabled)
        network.zero_grad()
        pooled, stages = network.pooled_and_preactivations(images)
        torch.stack([pooled.sin().sum(), *(maps.sin().sum() for maps in stages)]).sum().backward()
        gradients.append([parameter.grad for parameter in network.parameters()])
    assert len(passes) == 1 + 2
    torch.testing.assert_close(*gradients)
