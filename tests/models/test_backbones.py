import inspect
import math

import pytest
import torch
from timm.models.vision_transformer import Block
from torch import nn
from torch.nn import functional as F

from dino_ssl.errors import UsageError
from dino_ssl.models.backbone import build_backbone, check_crop_sizes
from dino_ssl.models.vit import interpolate_positions
from dino_ssl.models.vit_block import TransformerBlock

SMALL = {
    "vit_micro": {"patch_size": 8},
    "resnet18": {},
    "timm/vit_tiny_patch16_224": {},
    "timm/convnext_atto": {},
}


def reference_positions(pos_embed, width, height, patch):
    """The released code's rule, written out: both sides as a scale factor 0.1 patch too large."""
    cls_position, table = pos_embed[:, :1], pos_embed[:, 1:]
    n = table.shape[1]
    if (width // patch) * (height // patch) == n and width == height:
        return pos_embed
    side = int(math.sqrt(n))
    table = F.interpolate(
        table.reshape(1, side, side, -1).permute(0, 3, 1, 2),
        scale_factor=((width // patch + 0.1) / side, (height // patch + 0.1) / side),
        mode="bicubic",
    )
    return torch.cat((cls_position, table.permute(0, 2, 3, 1).reshape(1, -1, pos_embed.shape[-1])), dim=1)


@pytest.mark.parametrize(
    ("name", "parameters"), [("vit_tiny", 5_524_416), ("vit_small", 21_665_664), ("vit_base", 85_798_656)]
)
def test_vit_sizes_are_the_papers(name, parameters):
    with torch.device("meta"):
        vit = build_backbone(name, image_size=224, patch_size=16)
    assert sum(p.numel() for p in vit.parameters()) == parameters


def test_vit_names_are_those_of_the_released_checkpoints():
    # dino_deitsmall16_pretrain.pth holds exactly these 150 tensors.
    names = ["cls_token", "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias"]
    for i in range(12):
        for layer in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2"):
            names += [f"blocks.{i}.{layer}.weight", f"blocks.{i}.{layer}.bias"]
    names += ["norm.weight", "norm.bias"]
    state = build_backbone("vit_small", image_size=224, patch_size=16).state_dict()
    assert list(state) == names and len(names) == 150
    assert state["pos_embed"].shape == (1, 197, 384)
    assert state["patch_embed.proj.weight"].shape == (384, 3, 16, 16)
    assert state["blocks.0.attn.qkv.weight"].shape == (1152, 384)
    assert state["blocks.11.mlp.fc1.weight"].shape == (1536, 384)


def test_resnet50_names_are_torchvisions():
    torchvision = pytest.importorskip("torchvision")
    with torch.device("meta"):
        expected = torchvision.models.resnet50().state_dict()
        ours = build_backbone("resnet50", image_size=224).state_dict()
    expected = {k: v.shape for k, v in expected.items() if not k.startswith("fc.")}
    assert {k: v.shape for k, v in ours.items()} == expected


@pytest.mark.parametrize(("width", "height"), [(224, 224), (96, 96), (480, 480), (96, 224), (320, 160)])
def test_positions_interpolate_as_the_released_weights_need(width, height):
    torch.manual_seed(0)
    pos_embed = torch.randn(1, 197, 8)
    expected = reference_positions(pos_embed, width, height, 16)
    ours = interpolate_positions(pos_embed[:, 1:], width // 16, height // 16)
    assert torch.equal(ours, expected[:, 1:])


def test_giving_the_size_instead_would_be_another_table():
    torch.manual_seed(0)
    table = torch.randn(1, 196, 4)
    by_size = F.interpolate(table.reshape(1, 14, 14, 4).permute(0, 3, 1, 2), size=(6, 6), mode="bicubic")
    ours = interpolate_positions(table, 6, 6)
    assert (ours - by_size.flatten(2).transpose(1, 2)).abs().max() > 0.01


def test_vit_weights_start_as_in_the_paper():
    torch.manual_seed(0)
    vit = build_backbone("vit_tiny", image_size=224)
    for weight in (
        vit.pos_embed,
        vit.cls_token,
        vit.blocks[3].attn.qkv.weight,
        vit.blocks[11].mlp.fc2.weight,
    ):
        assert abs(weight.std().item() - 0.02) < 3e-3
    assert vit.norm.eps == vit.blocks[0].norm1.eps == 1e-6
    assert not vit.blocks[0].attn.qkv.bias.any()


def test_drop_path_rises_linearly_from_nothing():
    vit = build_backbone("vit_tiny", image_size=32, drop_path=0.11)
    rates = [0.0 if isinstance(b.drop_path1, nn.Identity) else b.drop_path1.drop_prob for b in vit.blocks]
    assert rates == pytest.approx([0.01 * i for i in range(12)], abs=1e-7)


def test_vit_is_the_textbook_transformer():
    """Class token, positions, pre-norm blocks with explicit attention, final norm."""
    torch.manual_seed(0)
    vit = build_backbone("vit_micro", image_size=16, patch_size=8).double().eval()
    images = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    patches = vit.patch_embed.proj(images).flatten(2).transpose(1, 2)
    x = torch.cat((vit.cls_token.expand(2, 1, -1), patches), 1) + vit.pos_embed
    for block in vit.blocks:
        q, k, v = block.attn.qkv(block.norm1(x)).reshape(2, 5, 3, 4, 32).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1) / 32**0.5).softmax(-1)
        x = x + block.attn.proj((weights @ v).transpose(1, 2).reshape(2, 5, 128))
        x = x + block.mlp.fc2(F.gelu(block.mlp.fc1(block.norm2(x))))
    x = F.layer_norm(x, (128,), vit.norm.weight, vit.norm.bias, 1e-6)
    torch.testing.assert_close(vit(images), x[:, 0])
    torch.testing.assert_close(vit.patch_features(images), x[:, 1:].transpose(1, 2).reshape(2, 128, 2, 2))
    torch.testing.assert_close(vit.attention(images).weights, weights)


def test_attention_rows_sum_to_one_and_say_their_grid():
    vit = build_backbone("vit_micro", image_size=32, patch_size=8).eval()
    attention = vit.attention(torch.randn(2, 3, 16, 24), block=0)
    assert attention.grid == (2, 3) and attention.num_prefix_tokens == 1
    assert attention.weights.shape == (2, 4, 7, 7)
    torch.testing.assert_close(attention.weights.sum(-1), torch.ones(2, 4, 7))


@pytest.mark.parametrize("name", SMALL)
def test_every_backbone_gives_pooled_features_at_two_sizes(name):
    torch.manual_seed(0)
    backbone = build_backbone(name, image_size=64, drop_path=0.1, **SMALL[name]).eval()
    for size in (64, 32):
        assert backbone(torch.randn(2, 3, size, size)).shape == (2, backbone.embed_dim)


@pytest.mark.parametrize("name", ["vit_micro", "resnet18", "timm/convnext_atto"])
def test_activation_checkpointing_changes_no_gradient(name):
    torch.manual_seed(0)
    backbone = build_backbone(name, image_size=32, **SMALL[name])
    images = torch.randn(4, 3, 32, 32)
    gradients = []
    for enabled in (False, True):
        backbone.set_grad_checkpointing(enabled)
        backbone.zero_grad()
        backbone(images).square().sum().backward()
        gradients.append([p.grad.clone() for p in backbone.parameters()])
    torch.testing.assert_close(*gradients)


def every_token(vit, images):
    """The class token of blocks that timm runs, on all tokens to the end, with its own drop path."""
    patches = vit.patch_embed.proj(images).flatten(2).transpose(1, 2)
    tokens = torch.cat((vit.cls_token.expand(len(images), -1, -1), patches), 1) + vit.pos_embed
    for block in vit.blocks:
        tokens = Block.forward(block, tokens)
    return vit.norm(tokens)[:, 0]


def gradients_of(vit, forward, *, autocast=False):
    """The result of `forward` and its gradients, with the same random numbers every time."""
    vit.zero_grad()
    torch.manual_seed(7)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        features = forward()
    features.sin().sum().backward()
    return features.detach(), {name: p.grad.clone() for name, p in vit.named_parameters()}


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_class_token_alone_is_that_of_all_tokens_and_of_timms_drop_path(checkpointing):
    torch.manual_seed(0)
    vit = build_backbone("vit_micro", image_size=32, patch_size=8, drop_path=0.5).double()
    images = torch.randn(8, 3, 32, 32, dtype=torch.float64)
    expected, gradients = gradients_of(vit, lambda: every_token(vit, images))
    assert not torch.allclose(expected, every_token(vit, images)), "drop path was not on"
    vit.set_grad_checkpointing(checkpointing)
    ours, our_gradients = gradients_of(vit, lambda: vit(images))
    torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(our_gradients, gradients)


def test_the_class_token_alone_is_that_of_all_tokens_in_bf16():
    torch.manual_seed(0)
    vit = build_backbone("vit_micro", image_size=32, patch_size=8)
    images = torch.randn(8, 3, 32, 32)
    (exact, exact_gradients), (expected, gradients), (ours, our_gradients) = (
        gradients_of(vit, lambda: every_token(vit, images)),
        gradients_of(vit, lambda: every_token(vit, images), autocast=True),
        gradients_of(vit, lambda: vit(images), autocast=True),
    )
    assert ours.dtype == expected.dtype and 0 < (expected - exact).abs().max() < 0.05
    torch.testing.assert_close(ours, expected, atol=0.02, rtol=0)
    for name, gradient in exact_gradients.items():
        error, allowed = (our_gradients[name] - gradient).norm(), (gradients[name] - gradient).norm()
        assert error < 1.5 * allowed + 1e-6, name


@pytest.fixture
def compiler(monkeypatch):
    """A backend that notes its graphs and runs them as they are; PyTorch cannot compile the checks of annotations."""
    for name in ("forward", "_class_attention"):
        monkeypatch.setattr(TransformerBlock, name, inspect.unwrap(getattr(TransformerBlock, name)))
    graphs = []

    def compiler(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    yield compiler, graphs
    torch._dynamo.reset()


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # PyTorch looks at it
def test_compiled_blocks_share_one_graph_per_crop_size(compiler):
    """Although drop path differs from block to block; and again one each for the last, which is not asked for all."""
    backend, graphs = compiler
    torch.manual_seed(0)
    student = build_backbone("vit_micro", image_size=32, patch_size=8, drop_path=0.3)
    teacher = build_backbone("vit_micro", image_size=32, patch_size=8).requires_grad_(False)
    views = [torch.randn(2, 3, 32, 32), torch.randn(4, 3, 16, 16)]
    assert len(student.blocks) == 4

    def step():
        teacher.train()
        return [teacher(views[0]), *(gradients_of(student, lambda crops=crops: student(crops)) for crops in views)]

    expected = step()
    student.compile(backend=backend, fullgraph=True)
    teacher.compile(backend=backend, fullgraph=True)
    for num_graphs in (2 + 4, 2 + 4 + 2):
        torch.testing.assert_close(step(), expected)
        teacher.eval()
        assert len(graphs) == num_graphs
        for num_images in (5, 5, 3):
            teacher(torch.randn(num_images, 3, 32, 32))
    # PyTorch keeps eight and says so loudly when it needs more.
    assert len(graphs) == 8


def test_the_small_stem_keeps_the_detail_of_small_images():
    resnet = build_backbone("resnet18", image_size=32, small_stem=True)
    assert resnet.conv1.weight.shape == (64, 3, 3, 3)
    assert resnet.patch_features(torch.randn(1, 3, 32, 32)).shape == (1, 512, 4, 4)
    assert sum(p.numel() for p in resnet.parameters()) == 11_168_832  # the CIFAR ResNet-18 without classifier


def test_resnet_weights_start_as_torchvisions():
    """In particular no batch norm starts at 0, as timm's would."""
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(0)
    ours, theirs = build_backbone("resnet18", image_size=64).state_dict(), torchvision.models.resnet18().state_dict()
    for name, value in ours.items():
        torch.testing.assert_close(value.float().mean(), theirs[name].float().mean(), atol=3e-3, rtol=0)
        if value.numel() > 1000:
            torch.testing.assert_close(value.std(), theirs[name].std(), atol=0, rtol=0.05)


def test_patch_features_average_to_the_pooled_features_of_a_resnet():
    resnet = build_backbone("resnet18", image_size=64).eval()
    images = torch.randn(2, 3, 64, 96)
    torch.testing.assert_close(resnet.patch_features(images).mean((2, 3)), resnet(images))


def test_a_resnet_says_that_it_has_no_attention():
    with pytest.raises(UsageError, match="resnet18 has no attention"):
        build_backbone("resnet18", image_size=32).attention(torch.zeros(1, 3, 32, 32))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vit_smal", "did you mean vit_small"),
        ("timm/resnet18x", "did you mean timm/resnet18"),
        ("x", "choose vit_micro"),
    ],
)
def test_an_unknown_name_gets_a_suggestion(name, message):
    with pytest.raises(UsageError, match=message):
        build_backbone(name, image_size=32)


def test_a_small_stem_on_a_vit_is_refused():
    with pytest.raises(UsageError, match=r"small_stem applies to cmt_micro, .* resnet18, resnet50 only"):
        build_backbone("vit_tiny", image_size=32, small_stem=True)


def test_a_crop_that_does_not_go_through_is_named():
    swin = build_backbone("timm/swin_tiny_patch4_window7_224", image_size=64)
    with pytest.raises(UsageError, match=r"crops\.local_size=40 does not go through"):
        check_crop_sizes(build_backbone("vit_micro", image_size=32, patch_size=16), {"crops.local_size": 40})
    assert swin.training
