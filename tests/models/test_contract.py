"""What every backbone gives to evaluations: features of blocks and attention, against timm's own or written out."""

import pytest
import timm
import torch
from torch.nn import functional as F

from dino_ssl.errors import UsageError
from dino_ssl.models.attention_map import NoAttention
from dino_ssl.models.backbone import Backbone, build_backbone
from dino_ssl.models.swiglu import SwiGLU
from dino_ssl.models.vit import VisionTransformer

VIT_OPTIONS = {"patch_size": 14, "embed_dim": 64, "depth": 3, "num_heads": 2}


def dinov2_pair(image_size):
    """timm's DINOv2 with registers and ours with the same random weights, at a width that takes no time."""
    torch.manual_seed(0)
    theirs = timm.create_model(
        "vit_small_patch14_reg4_dinov2",
        img_size=image_size, dynamic_img_size=True, num_classes=0, embed_dim=64, depth=3, num_heads=2,
    ).eval()  # fmt: skip
    ours = VisionTransformer(
        image_size=image_size, **VIT_OPTIONS, num_registers=4, layer_scale=1.0, antialias_positions=True
    ).eval()
    state = theirs.state_dict()
    # timm adds no position to the class token and keeps none.
    state["pos_embed"] = torch.cat((torch.zeros(1, 1, 64), state["pos_embed"]), 1)
    state["register_tokens"] = state.pop("reg_token")
    for name in [name for name in state if name.endswith("gamma")]:
        state[name] = torch.rand(64)
    theirs.load_state_dict({name: value for name, value in state.items() if name.endswith("gamma")}, strict=False)
    ours.load_state_dict(state)
    return theirs, ours


@pytest.mark.parametrize("size", [(56, 56), (70, 42)])
def test_registers_layer_scale_and_antialiased_positions_are_timms(size):
    theirs, ours = dinov2_pair(56)
    images = torch.randn(2, 3, *size)
    torch.testing.assert_close(ours(images), theirs(images))
    torch.testing.assert_close(ours.last_blocks(images, 1)[0].pooled, ours(images))
    expected = theirs.forward_intermediates(images, indices=2, norm=True, intermediates_only=True)
    for block, patches in zip(ours.last_blocks(images, 2), expected, strict=True):
        torch.testing.assert_close(block.patches, patches)


def test_swiglu_is_the_gate_of_its_paper_in_two_thirds_of_the_width_rounded_up_to_8():
    torch.manual_seed(0)
    layer, tokens = SwiGLU(6, 40), torch.randn(2, 5, 6)
    assert layer.w3.weight.shape == (6, 32)
    weight, bias = layer.w12.weight, layer.w12.bias
    gate, value = (F.linear(tokens, weight[part], bias[part]) for part in (slice(32), slice(32, None)))
    torch.testing.assert_close(layer(tokens), layer.w3(gate * torch.sigmoid(gate) * value))


def test_the_giant_with_swiglu_has_the_released_shapes():
    with torch.device("meta"):
        vit = VisionTransformer(
            image_size=518, patch_size=14, embed_dim=1536, depth=40, num_heads=24, layer_scale=1.0, swiglu=True
        )
    state = vit.state_dict()
    assert state["blocks.39.mlp.w12.weight"].shape == (8192, 1536)
    assert state["blocks.39.mlp.w3.weight"].shape == (1536, 4096)
    with torch.device("meta"):
        theirs = timm.create_model("vit_giant_patch14_dinov2", num_classes=0)
    assert sum(p.numel() for p in vit.parameters()) == sum(p.numel() for p in theirs.parameters())


@pytest.mark.parametrize("name", ["vit_micro", "timm/vit_tiny_patch16_224"])
def test_the_last_block_is_what_the_backbone_gives_without_asking_for_blocks(name):
    torch.manual_seed(0)
    backbone = build_backbone(name, image_size=32, patch_size=16).eval()
    images = torch.randn(2, 3, 32, 48)
    blocks = backbone.last_blocks(images, backbone.num_blocks)
    assert isinstance(backbone, Backbone) and len(blocks) == backbone.num_blocks > 1
    torch.testing.assert_close(blocks[-1].pooled, backbone(images))
    torch.testing.assert_close(blocks[-1].patches, backbone.patch_features(images))
    assert blocks[0].patches.shape == (2, backbone.embed_dim, 2, 3) and backbone.patch_size == 16


def test_attention_of_a_timm_vit_is_the_softmax_that_its_plain_attention_computes():
    torch.manual_seed(0)
    backbone = build_backbone("timm/vit_small_patch14_reg4_dinov2", image_size=28).eval()
    block, seen = backbone.model.blocks[4], []
    block.attn.fused_attn = False
    block.attn.attn_drop.register_forward_hook(lambda module, inputs, output: seen.append(output))
    images = torch.randn(1, 3, 28, 42)
    backbone(images)
    attention = backbone.attention(images, block=4)
    assert attention.grid == (2, 3) and attention.num_prefix_tokens == 5
    torch.testing.assert_close(attention.weights, seen[0])


@pytest.mark.parametrize("name", ["resnet18", "timm/convnext_atto", "timm/swin_tiny_patch4_window7_224"])
def test_other_networks_have_one_block_their_last_map_and_its_mean(name):
    backbone = build_backbone(name, image_size=64).eval()
    images = torch.randn(2, 3, 64, 96)
    (block,) = backbone.last_blocks(images, 1)
    assert backbone.num_blocks == 1 and backbone.patch_size == 64 // block.patches.shape[2] == 32
    torch.testing.assert_close(block.patches, backbone.patch_features(images))
    torch.testing.assert_close(block.pooled, block.patches.flatten(2).mean(2))
    with pytest.raises(UsageError, match="blocks=2"):
        backbone.last_blocks(images, 2)


@pytest.mark.parametrize("name", ["vit_micro", "timm/vit_tiny_patch16_224"])
def test_blocks_that_are_not_there_are_refused(name):
    backbone = build_backbone(name, image_size=32)
    images = torch.zeros(1, 3, 32, 32)
    for n in (0, backbone.num_blocks + 1):
        with pytest.raises(UsageError, match=f"blocks={n} must lie in 1 to {backbone.num_blocks}"):
            backbone.last_blocks(images, n)
    with pytest.raises(UsageError, match="block=12 must lie in 0 to"):
        backbone.attention(images, block=12)


@pytest.mark.parametrize("block", [0, 1, -1])
@pytest.mark.parametrize("size", [(56, 56), (70, 42)])
def test_attention_of_each_block_is_the_softmax_that_plain_attention_computes(block, size):
    theirs, ours = dinov2_pair(56)
    attention, seen = theirs.blocks[block].attn, []
    attention.fused_attn = False
    attention.attn_drop.register_forward_hook(lambda module, inputs, output: seen.append(output))
    images = torch.randn(2, 3, *size)
    theirs(images)
    ours_attention = ours.attention(images, block)
    assert ours_attention.grid == (size[0] // 14, size[1] // 14) and ours_attention.num_prefix_tokens == 5
    torch.testing.assert_close(ours_attention.weights, seen[0])


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vit_micro", {"patch_size": 4}),
        ("resnet18", {}),
        ("resnet50", {"small_stem": True}),
        ("cmt_tiny", {}),
        ("cmt_micro", {"small_stem": True}),
        ("timm/vit_tiny_patch16_224", {}),
        ("timm/convnext_atto", {}),
        ("timm/efficientnet_lite0", {}),
    ],
)
def test_the_patch_size_is_the_side_of_a_place_of_the_patch_features(name, options):
    backbone = build_backbone(name, image_size=64, **options).eval()
    images = torch.zeros(1, 3, 64, 96)
    assert backbone.patch_features(images).shape[2:] == (64 // backbone.patch_size, 96 // backbone.patch_size)


@pytest.mark.parametrize("name", ["resnet18", "timm/convnext_atto"])
def test_a_network_without_attention_says_so(name):
    with pytest.raises(NoAttention, match=name):
        build_backbone(name, image_size=64).attention(torch.zeros(1, 3, 64, 64))


def test_registers_without_a_class_token_are_no_class_token():
    backbone = build_backbone("timm/vit_tiny_patch16_224", image_size=32)
    assert backbone.attention(torch.zeros(1, 3, 32, 32)).has_class_token
    backbone = build_backbone("timm/vit_medium_patch16_reg1_gap_256", image_size=32)
    attention = backbone.attention(torch.zeros(1, 3, 32, 32), block=0)
    assert not attention.has_class_token and attention.num_prefix_tokens == 1
