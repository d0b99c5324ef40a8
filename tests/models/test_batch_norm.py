"""Batch norm statistics of given images, against means and variances written out."""

import copy

import pytest
import torch
from torch import nn

from dino_ssl.models.backbone import build_backbone
from dino_ssl.models.batch_norm import has_batch_norm, with_statistics_of


def test_statistics_are_the_mean_over_the_batches_of_their_means_and_variances():
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
    batches = [torch.randn(n, 3, 8, 8) * n for n in (2, 3, 5)]
    exact = with_statistics_of(nn.Sequential(conv, norm), iter(batches))[1]
    with torch.no_grad():
        places = [conv(images).transpose(0, 1).flatten(1) for images in batches]
    torch.testing.assert_close(exact.running_mean, torch.stack([p.mean(1) for p in places]).mean(0))
    torch.testing.assert_close(exact.running_var, torch.stack([p.var(1) for p in places]).mean(0))
    assert exact.momentum == norm.momentum == 0.1 and not exact.training


def test_a_deeper_layer_sees_what_the_normalised_layers_before_it_give():
    torch.manual_seed(0)
    network = nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.BatchNorm2d(3))
    images = torch.randn(64, 3, 4, 4) * 7 + 5
    exact = with_statistics_of(network, [images])
    expected = torch.relu((images - images.mean((0, 2, 3), keepdim=True)) / images.std((0, 2, 3), keepdim=True))
    torch.testing.assert_close(exact[2].running_mean, expected.mean((0, 2, 3)), rtol=1e-3, atol=1e-3)
    output = exact(images)
    torch.testing.assert_close(output.mean((0, 2, 3)), torch.zeros(3), rtol=0, atol=1e-2)


@pytest.mark.parametrize("name", ["cmt_micro", "resnet18", "timm/resnet10t"])
def test_nothing_of_the_network_and_of_the_random_state_changes(name):
    torch.manual_seed(0)
    network = build_backbone(name, image_size=32, drop_path=0.5).train()
    before, random = copy.deepcopy(network.state_dict()), torch.random.get_rng_state()
    exact = with_statistics_of(network, [torch.ones(4, 3, 32, 32).cumsum(0)] * 2)
    assert network.training and not any(module.training for module in exact.modules())
    torch.testing.assert_close(network.state_dict(), before, rtol=0, atol=0)
    assert torch.equal(torch.random.get_rng_state(), random)
    changed = {key for key, value in exact.state_dict().items() if not torch.equal(value, before[key])}
    assert changed and all(key.rpartition(".")[2].startswith(("running", "num_batches")) for key in changed)


def test_who_has_batch_norm():
    assert has_batch_norm(build_backbone("cmt_micro", image_size=32))
    assert not has_batch_norm(build_backbone("vit_micro", image_size=32))
