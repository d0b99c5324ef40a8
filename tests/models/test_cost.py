"""What a network costs, against sums written out by hand and against the published numbers."""

import pytest
import torch
from torch import nn

from dino_ssl.models.backbone import build_backbone
from dino_ssl.models.cost import activation_bytes, cost_of, macs_of


def test_multiplications_of_a_convolution_and_of_a_vit_are_those_of_their_formulas():
    assert macs_of(nn.Conv2d(3, 5, 3, padding=1), 8) == 64 * 5 * 3 * 9
    d, tokens, depth = 128, 17, 4  # vit_micro on 4 x 4 patches of 8 pixels
    patches = 16 * 3 * 8 * 8 * d
    block = tokens * 12 * d**2 + 2 * tokens**2 * d
    # In the last block only the class token asks, and only it goes on.
    last = tokens * 2 * d**2 + d**2 + 2 * tokens * d + d**2 + 8 * d**2
    assert macs_of(build_backbone("vit_micro", image_size=32, patch_size=8), 32) == patches + (depth - 1) * block + last


@pytest.mark.parametrize(
    ("name", "size", "giga"),
    [("cmt_tiny", 160, 0.639), ("cmt_xs", 192, 1.547), ("cmt_small", 224, 4.032), ("cmt_base", 256, 9.317)],
)
def test_multiplications_of_cmt_with_its_classifier_are_the_measured_ones(name, size, giga):
    with torch.device("meta"):
        cmt = build_backbone(name, image_size=size)
    classifier = (size // 32) ** 2 * cmt.embed_dim * 1280 + 1280 * 1000
    assert (macs_of(cmt, size) + classifier) / 1e9 == pytest.approx(giga, rel=0.002)


def test_activations_are_what_each_layer_needs_backwards_each_tensor_once_and_no_parameter():
    first, second = nn.Linear(3, 5), nn.Linear(5, 7)
    inputs = torch.zeros(4, 3)
    # The first layer needs its input, GELU its own, the second the output of GELU.
    assert activation_bytes(nn.Sequential(first, nn.GELU(), second), inputs) == 4 * 4 * (3 + 5 + 5)
    # Both layers need the same tensor; a view of it is no second one.
    assert activation_bytes(nn.Sequential(nn.ReLU(), first, nn.Unflatten(1, (1, 5)), nn.Flatten(), second), inputs) == (
        4 * 4 * (3 + 5)
    )


@pytest.mark.parametrize(("name", "size"), [("cmt_micro", 64), ("cmt_micro", 32), ("resnet18", 32), ("vit_micro", 48)])
def test_activations_of_a_batch_are_those_that_a_forward_pass_of_it_keeps(name, size):
    backbone = build_backbone(name, image_size=64)
    cost = cost_of(backbone, size)
    kept = activation_bytes(backbone.train(), torch.zeros(7, 3, size, size))
    assert cost.activations(7) == pytest.approx(kept, rel=1e-3)
    assert cost.bytes_per_image > 0 and cost.bytes_of_any_batch >= 0
