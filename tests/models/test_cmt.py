"""CMT against its own formulas written out with loops, and against what was measured of the released code."""

import math
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dino_ssl.errors import UsageError
from dino_ssl.models.backbone import Backbone, build_backbone, check_crop_sizes
from dino_ssl.models.cmt import CMT, CMT_SIZES, CMTSize
from dino_ssl.models.cmt_blocks import CMTBlock, InvertedResidual, ReducedAttention, stem
from dino_ssl.training.optim import parameter_groups

# Parameters and 10^9 multiplications of the released code at the size each was trained for, classifier included.
MEASURED = [
    ("cmt_tiny", 160, 9_492_426, 0.639),
    ("cmt_xs", 192, 15_247_208, 1.547),
    ("cmt_small", 224, 26_256_160, 4.032),
    ("cmt_base", 256, 45_715_076, 9.317),
]
ODD = CMTSize(5, (3, 6, 12, 24), (2, 1, 2, 2), 3.3)


@pytest.fixture
def odd(monkeypatch):
    """The name of a CMT of odd widths that takes no time."""
    monkeypatch.setitem(CMT_SIZES, "cmt_odd", ODD)
    return "cmt_odd"


def settled(module, seed=0):
    """In float64 and evaluation, with nothing at a value that would hide it: norms, biases, running statistics."""
    torch.manual_seed(seed)
    for name, tensor in module.double().eval().state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand_like(tensor) + 0.5 if "running_var" in name else torch.randn_like(tensor) / 2)
    return module


def normal(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def gelu(x):
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def batch_norm(x, norm):
    def column(vector):
        return vector[:, None, None]

    scaled = (x - column(norm.running_mean)) / column(norm.running_var + 1e-5).sqrt()
    return scaled * column(norm.weight) + column(norm.bias)


def layer_norm(x, norm, eps):
    """Over the channels of each place."""
    out = torch.empty_like(x)
    for image in range(x.shape[0]):
        for row in range(x.shape[2]):
            for column in range(x.shape[3]):
                place = x[image, :, row, column]
                scaled = (place - place.mean()) / (place.var(unbiased=False) + eps).sqrt()
                out[image, :, row, column] = scaled * norm.weight + norm.bias
    return out


def depthwise(x, conv):
    """A 3 x 3 convolution of each channel by itself, zeros around."""
    out = torch.zeros_like(x)
    for row in range(x.shape[2]):
        for column in range(x.shape[3]):
            out[:, :, row, column] = conv.bias
            for i in range(3):
                for j in range(3):
                    y, z = row + i - 1, column + j - 1
                    if 0 <= y < x.shape[2] and 0 <= z < x.shape[3]:
                        out[:, :, row, column] += conv.weight[:, 0, i, j] * x[:, :, y, z]
    return out


def pointwise(x, conv):
    return torch.einsum("oc,bchw->bohw", conv.weight[:, :, 0, 0], x) + conv.bias[:, None, None]


def squares(x, conv):
    """Each channel's k x k squares, side by side, summed with weights of their own."""
    k = conv.kernel_size[0]
    out = x.new_empty(*x.shape[:2], x.shape[2] // k, x.shape[3] // k)
    for row in range(out.shape[2]):
        for column in range(out.shape[3]):
            square = x[:, :, row * k : (row + 1) * k, column * k : (column + 1) * k]
            out[:, :, row, column] = (square * conv.weight[:, 0]).sum((2, 3)) + conv.bias
    return out


def feed_forward(x, mlp):
    z = batch_norm(gelu(pointwise(x, mlp.widen[0])), mlp.widen[2])
    z = batch_norm(gelu(z + depthwise(z, mlp.depthwise)), mlp.activate[1])
    return batch_norm(pointwise(z, mlp.narrow[0]), mlp.narrow[1])


def attend(x, attn, bias):
    """Output and weights, query by query and head by head."""
    b, d, h, w = x.shape
    coarse = x if isinstance(attn.reduce, nn.Identity) else batch_norm(squares(x, attn.reduce[0]), attn.reduce[1])
    keys, e = coarse.shape[2] * coarse.shape[3], d // attn.num_heads
    weights, out = x.new_empty(b, attn.num_heads, h * w, keys), torch.empty_like(x)
    for image in range(b):
        places, merged = x[image].reshape(d, -1), coarse[image].reshape(d, -1)
        for i in range(h * w):
            parts = []
            for head in range(attn.num_heads):
                own = slice(head * e, (head + 1) * e)
                query = (attn.query.weight @ places[:, i] + attn.query.bias)[own]
                logits = x.new_empty(keys)
                for j in range(keys):
                    key = (attn.key.weight @ merged[:, j] + attn.key.bias)[own]
                    logits[j] = (query * key).sum() / e**0.5 + bias[head, i, j]
                weights[image, head, i] = logits.exp() / logits.exp().sum()
                values = attn.value.weight @ merged + attn.value.bias[:, None]
                parts.append(values[own] @ weights[image, head, i])
            out[image, :, i // w, i % w] = attn.proj.weight @ torch.cat(parts) + attn.proj.bias
    return out, weights


@pytest.mark.parametrize(("name", "size", "parameters", "giga"), MEASURED)
def test_parameters_and_multiplications_are_those_of_the_released_code(name, size, parameters, giga):
    with torch.device("meta"):
        cmt = build_backbone(name, image_size=size).eval()
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
            cmt(torch.zeros(1, 3, size, size))
    width, places = cmt.embed_dim, (size // 32) ** 2
    head = width * 1280 + 3 * 1280 + 1280 * 1000 + 1000  # a convolution with BN, and the classifier
    assert sum(p.numel() for p in cmt.parameters()) - 2 * width + head == parameters
    multiplications = counter.get_total_flops() / 2 + places * width * 1280 + 1280 * 1000
    assert multiplications / 1e9 == pytest.approx(giga, rel=0.002)


def test_the_parameters_of_odd_widths_are_those_of_the_closed_form(odd):
    c0, count, last = ODD.stem_dim, 0, ODD.stem_dim
    count += 30 * c0 + 2 * (9 * c0**2 + 3 * c0)
    for c, depth, heads, k, side in zip(ODD.dims, ODD.depths, (1, 2, 4, 8), (8, 4, 2, 1), (16, 8, 4, 2), strict=True):
        h = math.floor(c * ODD.mlp_ratio)
        count += 4 * last * c + 3 * c + heads * side**2 * (side**2 // k**2)
        block = 4 * c + 10 * c + 4 * (c**2 + c) + (k**2 * c + 3 * c if k > 1 else 0)
        count += depth * (block + 2 * c * h + h + c + 10 * h + 4 * h + 2 * c)
        last = c
    cmt = build_backbone(odd, image_size=64)
    assert sum(p.numel() for p in cmt.parameters()) == count + 2 * last


def test_a_relative_bias_has_a_table_of_its_own_in_every_block(odd):
    cmt, free = (build_backbone(odd, image_size=64, position_bias=kind) for kind in ("relative", "free"))
    count = 0
    for depth, heads, k, side in zip(ODD.depths, (1, 2, 4, 8), (8, 4, 2, 1), (16, 8, 4, 2), strict=True):
        count += depth * heads * (2 * side - k) ** 2 - heads * side**2 * (side**2 // k**2)
    assert sum(p.numel() for p in cmt.parameters()) - sum(p.numel() for p in free.parameters()) == count
    images = normal(2, 3, 64, 96)
    features = settled(cmt).stem(images)
    for stage in cmt.stages:
        features = stage.patch_embed(features)
        rows, columns = features.shape[2:]
        grids = (rows, columns), (rows // stage.reduction, columns // stage.reduction)
        for block, bias in zip(stage.blocks, stage.position_bias, strict=True):
            features = block(features, bias.table(*grids))
    torch.testing.assert_close(cmt.patch_features(images), layer_norm(features, cmt.norm, 1e-6))


def test_free_biases_have_weight_decay_as_released_and_relative_ones_have_none(odd):
    for kind, group in (("free", 0), ("relative", 1)):
        cmt = build_backbone(odd, image_size=64, position_bias=kind)
        tables = {id(p) for name, p in cmt.named_parameters() if ".position_bias." in name}
        groups = [{id(p) for p in each["params"]} for each in parameter_groups(cmt)]
        assert len(tables) == (4 if kind == "free" else 7) and tables <= groups[group]


def test_relative_biases_start_as_a_normal_of_standard_deviation_0_02():
    torch.manual_seed(0)
    cmt = CMT("cmt_tiny", image_size=160, position_bias="relative")
    assert cmt.stages[0].position_bias[1].bias.std().item() == pytest.approx(0.02, rel=0.05)


def test_a_position_bias_on_a_vit_is_refused():
    with pytest.raises(UsageError, match=r"position_bias applies to cmt_micro, .* only, not to model.name=vit_tiny"):
        build_backbone("vit_tiny", image_size=32, position_bias="relative")


def test_the_stem_normalises_after_gelu():
    layers, images = settled(stem(2, 4)), normal(2, 2, 8, 12)
    expected = images
    for conv, _, norm in zip(layers[::3], layers[1::3], layers[2::3], strict=True):
        stride = 2 if expected is images else 1
        expected = batch_norm(gelu(F.conv2d(expected, conv.weight, conv.bias, stride=stride, padding=1)), norm)
    assert expected.shape == (2, 4, 4, 6)
    torch.testing.assert_close(layers(images), expected)


def test_patches_are_2_x_2_places_with_a_layer_norm_of_epsilon_1e_5(odd):
    embed = settled(build_backbone(odd, image_size=32)).stages[0].patch_embed
    features = normal(2, 5, 4, 6) / 300  # so small that the epsilon counts
    embed[0].weight.data.div_(10)
    embed[0].bias.data.div_(1000)
    expected = torch.empty(2, 3, 2, 3, dtype=torch.float64)
    for row in range(2):
        for column in range(3):
            square = features[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
            expected[:, :, row, column] = torch.einsum("ocij,bcij->bo", embed[0].weight, square) + embed[0].bias
    torch.testing.assert_close(embed(features), layer_norm(expected, embed[1], 1e-5))
    assert not torch.allclose(embed(features), layer_norm(expected, embed[1], 1e-6))


@pytest.mark.parametrize(("reduction", "grid"), [(1, (3, 4)), (2, (4, 6)), (4, (8, 4))])
def test_attention_is_the_softmax_over_reduced_keys_with_the_bias(reduction, grid):
    attn, features = settled(ReducedAttention(6, 2, reduction)), normal(2, 6, *grid)
    keys = grid[0] * grid[1] // reduction**2
    bias = normal(2, grid[0] * grid[1], keys)
    expected, weights = attend(features, attn, bias)
    torch.testing.assert_close(attn(features, bias), expected)
    attention = attn.map(features, bias)
    torch.testing.assert_close(attention.weights, weights)
    assert attention.grid == (grid[0] // reduction, grid[1] // reduction)
    assert attention.num_prefix_tokens == 0 and not attention.has_class_token


def test_the_feed_forward_normalises_after_gelu_around_a_shortcut():
    mlp, features = settled(InvertedResidual(3, 10)), normal(2, 3, 4, 5)
    torch.testing.assert_close(mlp(features), feed_forward(features, mlp))


def test_a_block_is_local_perception_attention_and_feed_forward_each_around_a_shortcut():
    block, features, bias = settled(CMTBlock(6, 2, 2, 15, drop_path=0.3)), normal(2, 6, 4, 6), normal(2, 24, 6)
    expected = features + depthwise(features, block.local)
    attended, weights = attend(layer_norm(expected, block.norm1, 1e-6), block.attn, bias)
    expected = expected + attended
    expected = expected + feed_forward(layer_norm(expected, block.norm2, 1e-6), block.mlp)
    torch.testing.assert_close(block(features, bias), expected)
    torch.testing.assert_close(block.attention(features, bias).weights, weights)


def test_gradients_of_a_block_are_those_of_differences():
    block, features, bias = settled(CMTBlock(4, 2, 2, 5, drop_path=0.0)).train(), normal(2, 4, 2, 4), normal(2, 8, 2)
    names = [name for name, _ in block.named_parameters()]

    def call(features, bias, *parameters):
        return torch.func.functional_call(block, dict(zip(names, parameters, strict=True)), (features, bias))

    inputs = (features.requires_grad_(), bias.requires_grad_(), *block.parameters())
    assert torch.autograd.gradcheck(call, inputs)


def test_the_whole_is_the_stem_and_its_stages_with_each_stages_own_bias_and_the_mean_after_the_norm(odd):
    cmt, images = settled(build_backbone(odd, image_size=64)), normal(1, 3, 64, 64)
    features = cmt.stem(images)
    for stage in cmt.stages:
        features = stage.patch_embed(features)
        for block in stage.blocks:
            features = block(features, stage.position_bias.weight)
    expected = layer_norm(features, cmt.norm, 1e-6)
    torch.testing.assert_close(cmt.patch_features(images), expected)
    torch.testing.assert_close(cmt(images), expected.mean((2, 3)))


@pytest.mark.parametrize("size", [(64, 64), (32, 32), (96, 160)])
def test_cmt_meets_the_contract_at_any_multiple_of_32(odd, size):
    cmt, images = settled(build_backbone(odd, image_size=64)), normal(2, 3, *size)
    grid = (size[0] // 32, size[1] // 32)
    blocks = cmt.last_blocks(images, cmt.num_blocks)
    assert isinstance(cmt, Backbone) and len(blocks) == cmt.num_blocks == 2
    assert cmt.patch_size == 32 and blocks[0].patches.shape == (2, cmt.embed_dim, *grid)
    torch.testing.assert_close(blocks[-1].patches, cmt.patch_features(images))
    torch.testing.assert_close(blocks[-1].pooled, cmt(images))
    torch.testing.assert_close(cmt.last_blocks(images, 1)[0].patches, blocks[-1].patches)
    assert not torch.allclose(blocks[0].patches, blocks[1].patches)


@pytest.mark.parametrize("size", [(64, 64), (32, 96)])
def test_the_attention_of_every_block_is_what_it_attends_to_on_the_way_and_its_keys_lie_on_the_last_grid(odd, size):
    cmt, images, seen = settled(build_backbone(odd, image_size=64)), normal(2, 3, *size), []
    for stage in cmt.stages:
        for block in stage.blocks:
            block.register_forward_hook(lambda block, inputs, output: seen.append(block.attention(*inputs)))
    cmt(images)
    seen = seen[-sum(ODD.depths) :]
    expected = list(seen)
    assert cmt.num_attention_blocks == len(expected) == 7
    for block in range(-7, 7):
        attention = cmt.attention(images, block)
        assert attention.grid == (size[0] // 32, size[1] // 32)
        torch.testing.assert_close(attention.weights, expected[block].weights)


def test_blocks_that_are_not_there_are_refused(odd):
    cmt, images = build_backbone(odd, image_size=32), torch.zeros(1, 3, 32, 32)
    for n in (0, 3):
        with pytest.raises(UsageError, match=f"blocks={n} must lie in 1 to 2"):
            cmt.last_blocks(images, n)
    for block in (7, -8):
        with pytest.raises(UsageError, match=f"block={block} must lie in 0 to 6"):
            cmt.attention(images, block)


def test_sizes_that_are_no_multiple_of_32_are_refused_by_name(odd):
    with pytest.raises(UsageError, match=r"cmt_odd takes .* multiples of 32 pixels, not 112 x 112.* 96 or 128"):
        build_backbone(odd, image_size=112)
    cmt = build_backbone(odd, image_size=64)
    for shape in ((64, 80), (16, 64)):
        with pytest.raises(UsageError, match=f"not {shape[0]} x {shape[1]}"):
            cmt(torch.zeros(1, 3, *shape))
    with pytest.raises(UsageError, match=r"crops.local_size=98 does not go through .* 96 or 128"):
        check_crop_sizes(cmt, {"crops.global_size": 64, "crops.local_size": 98})


def test_a_cmt_with_the_small_stem_is_the_same_on_grids_of_twice_the_sides(odd):
    """As if each pixel were four: every convolution after the first sees the grids that a 64-pixel image gives."""
    cmt, images = settled(build_backbone(odd, image_size=32, small_stem=True)), normal(2, 3, 32, 48)
    ordinary = build_backbone(odd, image_size=64).double().eval()
    ordinary.load_state_dict(cmt.state_dict())
    ordinary.stem = cmt.stem
    assert cmt.stem(images).shape[2:] == (32, 48) and cmt.patch_size == 16
    grids = [(16, 24), (8, 12), (4, 6), (2, 3)]
    features = cmt.stem(images)
    for stage, grid in zip(cmt.stages, grids, strict=True):
        features = stage(features)
        assert features.shape[2:] == grid
    torch.testing.assert_close(cmt.patch_features(images), cmt.norm(features))
    assert [cmt.attention(images, block).grid for block in (-7, -5, -4, -2, 1)] == [(2, 3)] * 5
    assert cmt(images[..., :16]).shape == cmt(images[..., :16, :16]).shape == (2, 24)
    ordinary.patch_size = 16
    torch.testing.assert_close(ordinary(images), cmt(images))


def test_the_small_stem_takes_multiples_of_16(odd):
    with pytest.raises(
        UsageError, match=r"cmt_odd takes .* multiples of 16 pixels, not 40 x 40; make the 40 a 32 or 48"
    ):
        build_backbone(odd, image_size=40, small_stem=True)
    cmt = build_backbone(odd, image_size=32, small_stem=True)
    with pytest.raises(UsageError, match=r"crops.local_size=12 does not go through .* 16 or 32"):
        check_crop_sizes(cmt, {"crops.global_size": 32, "crops.local_size": 12})


def test_drop_path_rises_linearly_from_nothing():
    cmt = build_backbone("cmt_tiny", image_size=32, drop_path=0.15)
    blocks = [block for stage in cmt.stages for block in stage.blocks]
    rates = [0.0 if isinstance(block.drop_path, nn.Identity) else block.drop_path.drop_prob for block in blocks]
    assert rates == pytest.approx([0.01 * i for i in range(16)], abs=1e-7)


def test_weights_start_as_in_the_released_code():
    torch.manual_seed(0)
    cmt = CMT("cmt_tiny", image_size=64)
    block = cmt.stages[2].blocks[0]
    assert block.attn.query.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert block.local.weight.std().item() == pytest.approx((2 / (9 * 184)) ** 0.5, rel=0.1)
    assert block.mlp.widen[0].weight.std().item() == pytest.approx((2 / 662) ** 0.5, rel=0.02)
    assert cmt.stages[0].position_bias.weight.std().item() == pytest.approx(1, rel=0.1)
    assert not any(parameter.any() for name, parameter in cmt.named_parameters() if name.endswith(".bias"))


@pytest.mark.parametrize("kind", ["free", "relative"])
def test_bf16_gives_the_features_of_float32(kind):
    torch.manual_seed(0)
    cmt = build_backbone("cmt_tiny", image_size=64, position_bias=kind).eval()
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        exact = cmt(images)
        with torch.autocast("cpu", torch.bfloat16):
            ours = cmt(images)
    assert (ours - exact).norm() / exact.norm() < 0.02


COMPILED = """
import torch
from dino_ssl.models.backbone import build_backbone
from dino_ssl.models.cmt import CMT_SIZES, CMTSize

def images(*size):
    return torch.linspace(-1, 1, 2 * 3 * size[0] * size[1]).sin().view(2, 3, *size)

def passes(network):
    features = network.train()(images(64, 64))
    features.sin().sum().backward()
    with torch.no_grad():
        others = [network.eval()(images(32, 96)), network(images(64, 64))]
    return [features.detach(), *others, *(parameter.grad for parameter in network.parameters())]

CMT_SIZES["cmt_odd"] = CMTSize(5, (3, 6, 12, 24), (1, 1, 1, 1), 3.3)
for kind in ("free", "relative"):
    networks = []
    for _ in range(2):
        torch.manual_seed(0)
        networks.append(build_backbone("cmt_odd", image_size=64, position_bias=kind))
    networks[1].compile(backend="eager", fullgraph=True)
    torch.testing.assert_close(passes(networks[1]), passes(networks[0]), rtol=1e-4, atol=1e-5)
"""


def test_a_compiled_cmt_gives_the_same_features_and_gradients_at_every_size():
    """In a process without the executed annotations, which PyTorch cannot compile; as graphs, which PyTorch runs."""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", COMPILED], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("drop_path", [0.0, 0.5])
def test_activation_checkpointing_changes_no_gradient(odd, drop_path):
    torch.manual_seed(0)
    cmt, images, gradients = build_backbone(odd, image_size=64, drop_path=drop_path), torch.randn(4, 3, 32, 64), []
    for enabled in (False, True):
        cmt.set_grad_checkpointing(enabled)
        cmt.zero_grad()
        torch.manual_seed(1)
        cmt(images).sin().sum().backward()
        gradients.append([p.grad.clone() for p in cmt.parameters()])
    torch.testing.assert_close(*gradients)
