"""The whole contract of a backbone, in one test body that every architecture goes through."""

import math

import pytest
import torch
from torchvision.models import resnet18, resnet50
from torchvision.models.feature_extraction import create_feature_extractor

from dino_ssl.errors import UsageError
from dino_ssl.models.attention_map import NoAttention
from dino_ssl.models.backbone import Backbone, build_backbone
from dino_ssl.models.cmt import CMT_SIZES, CMTSize
from dino_ssl.models.stage_choice import stage_blocks

# Name, options of `build_backbone`; dimensions of the pooled features, strides of the stages in pixels, and heads of
# the last block's attention, where there is one.
EVERY = [
    ("vit_micro", {"patch_size": 16}, (128, (16,) * 4, 4)),
    ("vit_tiny", {"patch_size": 32}, (192, (32,) * 4, 3)),
    ("cmt_odd", {}, (24, (4, 8, 16, 32), 8)),
    ("cmt_odd", {"position_bias": "relative"}, (24, (4, 8, 16, 32), 8)),
    ("cmt_odd", {"small_stem": True}, (24, (2, 4, 8, 16), 8)),
    ("resnet18", {"small_stem": True}, (512, (1, 2, 4, 8), None)),
    ("resnet50", {}, (2048, (4, 8, 16, 32), None)),
    ("resnet8x4", {}, (256, (1, 2, 4), None)),
    ("wrn_16_2", {}, (128, (1, 2, 4), None)),
    ("iresnet18", {}, (512, (2, 4, 8, 16), None)),
    ("iresnet18_cbam", {}, (512, (2, 4, 8, 16), None)),
    ("timm/vit_tiny_patch16_224", {}, (192, (16,) * 4, 3)),
    ("timm/vit_medium_patch16_reg1_gap_256", {}, (512, (16,) * 4, 8)),
    ("timm/convnext_atto", {}, (320, (4, 8, 16, 32), None)),
    ("timm/swin_tiny_patch4_window7_224", {}, (768, (4, 8, 16, 32), None)),
    ("timm/efficientnet_lite0", {}, (1280, (4, 8, 16, 32), None)),
]


@pytest.fixture(autouse=True)
def odd(monkeypatch):
    """A CMT that takes no time."""
    monkeypatch.setitem(CMT_SIZES, "cmt_odd", CMTSize(5, (3, 6, 12, 24), (2, 1, 2, 2), 3.3))
    torch.manual_seed(0)


@pytest.mark.parametrize("size", [(64, 64), (96, 96), (64, 96)])
@pytest.mark.parametrize(("name", "options", "expected"), EVERY)
def test_every_backbone_meets_the_whole_contract_at_any_size(name, options, expected, size):
    dim, strides, heads = expected
    backbone, images = build_backbone(name, image_size=64, **options).eval(), torch.randn(2, 3, *size)
    assert isinstance(backbone, Backbone) and backbone.embed_dim == dim
    with torch.no_grad():
        pooled = backbone(images)
        assert pooled.shape == (2, dim) and pooled.isfinite().all() and not torch.equal(*pooled)
        grid = check_patches_and_blocks(backbone, images)
        check_stages(backbone, images, pooled, strides)
        check_preactivations(name, backbone, images, pooled)
        check_attention(backbone, images, heads, grid)
    check_gradients(backbone, images)


def check_patches_and_blocks(backbone, images):
    """The last block is what the backbone gives without asking for blocks; the grid of the patches."""
    patches = backbone.patch_features(images)
    grid = tuple(-(-side // backbone.patch_size) for side in images.shape[2:])
    assert patches.shape[0] == 2 and patches.shape[2:] == grid
    blocks = backbone.last_blocks(images, backbone.num_blocks)
    assert len(blocks) == backbone.num_blocks
    torch.testing.assert_close(blocks[-1].patches, patches)
    torch.testing.assert_close(backbone.last_blocks(images, 1)[0].pooled, blocks[-1].pooled)
    for n in (0, backbone.num_blocks + 1):
        with pytest.raises(UsageError, match=f"blocks={n}"):
            backbone.last_blocks(images, n)
    return grid


def check_stages(backbone, images, pooled, strides):
    """As many maps as announced, of the channels announced, at their strides, each image's own."""
    same, stages = backbone.pooled_and_stages(images)
    torch.testing.assert_close(same, pooled)
    torch.testing.assert_close(stages, backbone.stage_features(images))
    assert backbone.stage_dims == tuple(stage.shape[1] for stage in stages)
    for stage, stride in zip(stages, strides, strict=True):
        assert stage.shape[2:] == tuple(math.ceil(side / stride) for side in images.shape[2:])
        assert stage.isfinite().all() and not torch.equal(*stage)


def check_preactivations(name, backbone, images, pooled):
    """What a ReLU makes of them are the stages, or they are the stages themselves; wide ResNets have a BN between."""
    if name in ("timm/convnext_atto", "timm/swin_tiny_patch4_window7_224", "timm/efficientnet_lite0"):
        with pytest.raises(UsageError, match=f"{name} does not give its stages before"):
            backbone.pooled_and_preactivations(images)
        return
    stages = backbone.stage_features(images)
    same, before = backbone.pooled_and_preactivations(images)
    torch.testing.assert_close(same, pooled)
    assert [maps.shape for maps in before] == [maps.shape for maps in stages]
    if "resnet" in name and not name.startswith("iresnet"):
        assert all(maps.min() < 0 for maps in before)
        torch.testing.assert_close([maps.relu() for maps in before], stages)
    elif not name.startswith("wrn"):
        torch.testing.assert_close(before, stages)


def check_attention(backbone, images, heads, grid):
    """Rows that sum to 1 over prefix tokens and the grid of the patches, or the word that there is none."""
    if heads is None:
        assert backbone.num_attention_blocks == 0
        with pytest.raises(NoAttention, match=backbone.name):
            backbone.attention(images)
        return
    attention = backbone.attention(images)
    keys = attention.num_prefix_tokens + grid[0] * grid[1]
    assert attention.grid == grid and attention.weights.shape == (2, heads, attention.query.shape[2], keys)
    torch.testing.assert_close(attention.weights.sum(-1), torch.ones(2, heads, attention.query.shape[2]))
    blocks = backbone.num_attention_blocks
    torch.testing.assert_close(attention.weights, backbone.attention(images, blocks - 1).weights)
    assert backbone.attention(images, 0).grid == grid
    with pytest.raises(UsageError, match=f"block={blocks} must lie in 0 to {blocks - 1}"):
        backbone.attention(images, blocks)


def check_gradients(backbone, images):
    """Every parameter learns, and no less with activation checkpointing."""
    gradients = []
    for enabled in (False, True):
        backbone.set_grad_checkpointing(enabled)
        backbone.zero_grad()
        backbone(images).sin().sum().backward()
        gradients.append({name: parameter.grad for name, parameter in backbone.named_parameters()})
        assert [name for name, gradient in gradients[-1].items() if gradient is None] == []
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("make", [resnet18, resnet50])
def test_the_stages_of_a_resnet_are_torchvisions(make):
    theirs = make().eval()
    ours = build_backbone(make.__name__, image_size=64).eval()
    ours.load_state_dict({name: value for name, value in theirs.state_dict().items() if not name.startswith("fc.")})
    nodes = {f"layer{stage}": f"layer{stage}" for stage in (1, 2, 3, 4)}
    images = torch.randn(2, 3, 64, 96)
    expected = create_feature_extractor(theirs, {**nodes, "flatten": "pooled"})(images)
    pooled, stages = ours.pooled_and_stages(images)
    torch.testing.assert_close([*stages, pooled], list(expected.values()))


def test_twelve_blocks_are_four_stages_of_three_and_fewer_than_four_are_stages_themselves():
    assert stage_blocks(12) == [2, 5, 8, 11]
    assert stage_blocks(24) == [5, 11, 17, 23]
    assert [stage_blocks(number) for number in (1, 2, 3, 4, 5)] == [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3], [1, 2, 3, 4]]


@pytest.mark.parametrize(("name", "blocks"), [("vit_tiny", "blocks"), ("timm/vit_tiny_patch16_224", "model.blocks")])
def test_the_stages_of_a_vit_are_the_patches_after_every_third_block(name, blocks):
    vit, seen = build_backbone(name, image_size=32).eval(), []
    for block in vit.get_submodule(blocks):
        block.register_forward_hook(lambda block, inputs, output: seen.append(output))
    with torch.no_grad():
        stages = vit.stage_features(torch.randn(2, 3, 32, 48))
    expected = [seen[block][:, 1:].transpose(1, 2).unflatten(2, (2, 3)) for block in (2, 5, 8, 11)]
    torch.testing.assert_close(stages, expected)


def test_the_stages_of_a_cmt_are_what_they_hand_on():
    cmt, seen = build_backbone("cmt_odd", image_size=64).eval(), []
    for stage in cmt.stages:
        stage.register_forward_hook(lambda stage, inputs, output: seen.append(output))
    torch.testing.assert_close(cmt.stage_features(torch.randn(2, 3, 32, 64)), seen)


def test_one_pass_for_pooled_and_stages_updates_the_statistics_of_batch_norm_once():
    resnet = build_backbone("resnet18", image_size=32, small_stem=True).train()
    resnet.pooled_and_stages(torch.randn(2, 3, 32, 32))
    assert resnet.bn1.num_batches_tracked == resnet.layer4[1].bn2.num_batches_tracked == 1


def test_a_timm_model_without_features_of_its_stages_is_refused_by_name(monkeypatch):
    backbone = build_backbone("timm/convnext_atto", image_size=64)
    monkeypatch.delattr(type(backbone.model), "forward_intermediates")
    assert backbone.stage_dims == ()
    with pytest.raises(UsageError, match="timm/convnext_atto does not give the features of its stages"):
        backbone.stage_features(torch.zeros(1, 3, 64, 64))


@pytest.mark.parametrize("name", ["timm/resnet10t", "timm/resnet14t"])
def test_resnets_of_timm_tell_their_stages_before_the_activation_with_gradients(name):
    """Of both kinds of block."""
    backbone, images = build_backbone(name, image_size=64).eval(), torch.randn(1, 3, 64, 64)
    pooled, before = backbone.pooled_and_preactivations(images)
    expected = backbone.pooled_and_stages(images)
    torch.testing.assert_close((pooled, [maps.relu() for maps in before]), expected)
    sum(maps.sum() for maps in before).backward()
    assert backbone.model.conv1[0].weight.grad.abs().sum() > 0
    assert not any(module._forward_pre_hooks for module in backbone.modules())
