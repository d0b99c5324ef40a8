"""Files with the names and shapes of the released CMTs, written here by hand, and our own without their run."""

import pytest
import torch
from torch.nn import functional as F

from dino_ssl.commands import inspect
from dino_ssl.errors import UsageError
from dino_ssl.models.backbone import build_backbone
from dino_ssl.models.cmt import CMT_SIZES, CMTSize
from dino_ssl.models.encoder import Encoder
from dino_ssl.models.export import export
from dino_ssl.models.weights import load, load_encoder

ODD = CMTSize(5, (3, 6, 12, 24), (2, 1, 2, 2), 3.3)
HEADS, REDUCTIONS = (1, 2, 4, 8), (8, 4, 2, 1)


@pytest.fixture(autouse=True)
def odd(monkeypatch):
    """A CMT that takes no time."""
    monkeypatch.setitem(CMT_SIZES, "cmt_odd", ODD)


def layer(name, *shape):
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def batch_norm(name, dim):
    statistics = {f"{name}.running_mean": (dim,), f"{name}.running_var": (dim,), f"{name}.num_batches_tracked": ()}
    return layer(name, dim) | statistics


def block(name, dim, hidden, k):
    shapes = layer(f"{name}.norm1", dim) | layer(f"{name}.norm2", dim) | layer(f"{name}.proj", dim, 1, 3, 3)
    for linear in ("q", "k", "v", "proj"):
        shapes |= layer(f"{name}.attn.{linear}", dim, dim)
    if k > 1:
        shapes |= layer(f"{name}.attn.sr.0", dim, 1, k, k) | batch_norm(f"{name}.attn.sr.1", dim)
    shapes |= layer(f"{name}.mlp.conv1.0", hidden, dim, 1, 1) | batch_norm(f"{name}.mlp.conv1.2", hidden)
    shapes |= layer(f"{name}.mlp.proj", hidden, 1, 3, 3) | batch_norm(f"{name}.mlp.proj_bn", hidden)
    return shapes | layer(f"{name}.mlp.conv2.0", dim, hidden, 1, 1) | batch_norm(f"{name}.mlp.conv2.1", dim)


def released_shapes(size, pixels):
    """Names and shapes as the released files have them, classifier included."""
    shapes, last = {}, 3
    for number in (1, 2, 3):
        shapes |= layer(f"stem_conv{number}", size.stem_dim, last, 3, 3)
        shapes |= batch_norm(f"stem_norm{number}", size.stem_dim)
        last = size.stem_dim
    for letter, dim, depth, heads, k in zip("abcd", size.dims, size.depths, HEADS, REDUCTIONS, strict=True):
        shapes |= layer(f"patch_embed_{letter}.proj", dim, last, 2, 2) | layer(f"patch_embed_{letter}.norm", dim)
        places = (k * pixels // 32) ** 2
        shapes[f"relative_pos_{letter}"] = (heads, places, places // k**2)
        for number in range(depth):
            shapes |= block(f"blocks_{letter}.{number}", dim, int(dim * size.mlp_ratio), k)
        last = dim
    return shapes | layer("_fc", 1280, last, 1, 1) | batch_norm("_bn", 1280) | layer("head", 1000, 1280)


def filled(shapes):
    generator = torch.Generator().manual_seed(0)
    state = {name: torch.randn(shape, generator=generator) / 4 for name, shape in shapes.items()}
    variances = {name: value.abs() + 0.5 for name, value in state.items() if name.endswith("running_var")}
    counters = {name: torch.tensor(7) for name in state if name.endswith("num_batches_tracked")}
    return state | variances | counters


def released_stages(state, images):
    """What the released code computes before its own head, from its own names."""

    def norm(x, name):
        names = ("running_mean", "running_var", "weight", "bias")
        return F.batch_norm(x, *(state[f"{name}.{part}"] for part in names), eps=1e-5)

    def conv(x, name, **options):
        return F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], **options)

    def layer_norm(x, name, eps):
        weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
        return F.layer_norm(x.movedim(1, -1), weight.shape, weight, bias, eps).movedim(-1, 1)

    def linear(x, name, heads):
        tokens = F.linear(x.flatten(2).mT, state[f"{name}.weight"], state[f"{name}.bias"])
        return tokens.unflatten(2, (heads, -1)).transpose(1, 2)

    x = images
    for number in (1, 2, 3):
        x = norm(F.gelu(conv(x, f"stem_conv{number}", stride=2 if number == 1 else 1, padding=1)), f"stem_norm{number}")
    for letter, depth, heads, k in zip("abcd", ODD.depths, HEADS, REDUCTIONS, strict=True):
        x = layer_norm(conv(x, f"patch_embed_{letter}.proj", stride=2), f"patch_embed_{letter}.norm", 1e-5)
        dim = x.shape[1]
        for name in (f"blocks_{letter}.{number}" for number in range(depth)):
            x = x + conv(x, f"{name}.proj", padding=1, groups=dim)
            normed = layer_norm(x, f"{name}.norm1", 1e-6)
            query, coarse = linear(normed, f"{name}.attn.q", heads), normed
            if k > 1:
                coarse = norm(conv(normed, f"{name}.attn.sr.0", stride=k, groups=dim), f"{name}.attn.sr.1")
            key, value = (linear(coarse, f"{name}.attn.{part}", heads) for part in ("k", "v"))
            logits = query @ key.mT / (dim // heads) ** 0.5 + state[f"relative_pos_{letter}"]
            merged = (logits.softmax(-1) @ value).transpose(1, 2).flatten(2).mT.unflatten(2, x.shape[2:])
            x = x + linear(merged, f"{name}.attn.proj", 1)[:, 0].mT.unflatten(2, x.shape[2:])
            normed = layer_norm(x, f"{name}.norm2", 1e-6)
            wide = norm(F.gelu(conv(normed, f"{name}.mlp.conv1.0")), f"{name}.mlp.conv1.2")
            wide = wide + conv(wide, f"{name}.mlp.proj", padding=1, groups=wide.shape[1])
            x = x + norm(conv(norm(F.gelu(wide), f"{name}.mlp.proj_bn"), f"{name}.mlp.conv2.0"), f"{name}.mlp.conv2.1")
    return x


@pytest.mark.parametrize(
    ("name", "pixels", "parameters"),
    [
        ("cmt_tiny", 160, 9_492_426),
        ("cmt_xs", 192, 15_247_208),
        ("cmt_small", 224, 26_256_160),
        ("cmt_base", 256, 45_715_076),
    ],
)
def test_the_released_names_and_shapes_hold_exactly_the_released_parameters(name, pixels, parameters, tmp_path):
    shapes = released_shapes(CMT_SIZES[name], pixels)
    learnt = [shape for key, shape in shapes.items() if "running" not in key and "tracked" not in key]
    assert sum(torch.Size(shape).numel() for shape in learnt) == parameters
    state = {key: torch.zeros(()).expand(shape) for key, shape in shapes.items()}
    torch.save({"model": state}, tmp_path / "x.pth")
    encoder = load_encoder(tmp_path / "x.pth")
    assert (encoder.name, encoder.size, encoder.center_crop) == (name, pixels, 0.875)
    matched = len(shapes) - 2 - 5 - 2  # without _fc, _bn and head
    assert encoder.report == (
        f"matched {matched}/{matched + 2}, NOT in the file, left as built: norm.bias norm.weight, "
        "ignored _bn.* _fc.* head.*"
    )


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_released_file_gives_the_stages_of_the_released_code(tmp_path, prefix):
    state = filled(released_shapes(ODD, 64))
    torch.save({"model": {prefix + name: value for name, value in state.items()}, "epoch": 3}, tmp_path / "x.pth")
    encoder = load(tmp_path / "x.pth").encoder
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    expected = released_stages(state, images)
    torch.testing.assert_close(encoder.backbone.stage_features(images)[-1], expected, rtol=1e-4, atol=1e-4)
    assert encoder.size == 64 and encoder.backbone.image_size == 64


def test_inspect_says_what_a_released_file_is_and_what_was_left_out(tmp_path, capsys):
    torch.save({"model": filled(released_shapes(ODD, 64))}, tmp_path / "x.pth")
    inspect.run([str(tmp_path / "x.pth")])
    said = capsys.readouterr().out
    assert "family        cmt" in said and "cmt_odd, " in said and "24 of 2 blocks, at places 32 px apart" in said
    assert "left as built: norm.bias norm.weight, ignored _bn.* _fc.* head.*" in said
    inspect.run([str(tmp_path / "x.pth"), "--size", "96"])
    assert "position biases resampled 64x64 -> 96x96 px" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["free", "relative"])
@pytest.mark.parametrize("arch", [None, "cmt_odd"])
def test_our_own_tensors_tell_architecture_size_and_kind_of_bias(tmp_path, kind, arch):
    torch.manual_seed(0)
    cmt = build_backbone("cmt_odd", image_size=96, position_bias=kind).eval().requires_grad_(False)
    encoder = Encoder(cmt, "cmt_odd", "", "0" * 64, "", 96, 0.875, (0.5,) * 3, (0.25,) * 3)
    export(encoder, "torch", tmp_path / "mine.pth")
    read = load(tmp_path / "mine.pth", arch=arch)
    assert (read.family, read.encoder.name, read.encoder.size) == ("cmt", "cmt_odd", 96)
    total = len(cmt.state_dict())
    assert read.encoder.report == f"matched {total}/{total}"
    images = torch.randn(2, 3, 64, 96)
    torch.testing.assert_close(read.encoder.backbone(images), cmt(images), rtol=0, atol=0)


def test_the_stem_for_small_images_is_not_exported_as_tensors_alone(tmp_path):
    cmt = build_backbone("cmt_odd", image_size=32, small_stem=True).eval().requires_grad_(False)
    encoder = Encoder(cmt, "cmt_odd", "", "0" * 64, "", 32, 0.875, (0.5,) * 3, (0.25,) * 3)
    with pytest.raises(UsageError, match="do not say that its stem"):
        export(encoder, "torch", tmp_path / "mine.pth")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"arch": "cmt_tiny"}, r"tensors match; .*stem.0.weight \(16, 3, 3, 3\)"),
        ({"arch": "cmt_tinny"}, "arch=cmt_tinny is unknown; did you mean cmt_tiny"),
        ({"size": 100}, "size=100 must be a multiple of the patch size 32; write --size 96"),
    ],
)
def test_words_that_do_not_fit_a_cmt_are_refused(tmp_path, options, message):
    torch.save({"model": filled(released_shapes(ODD, 64))}, tmp_path / "x.pth")
    with pytest.raises(UsageError, match=message):
        load_encoder(tmp_path / "x.pth", **options)


@pytest.mark.parametrize("name", ["relative_pos_a", "stem_conv1.weight"])
def test_tables_and_stems_of_odd_shapes_are_refused(tmp_path, name):
    state = filled(released_shapes(ODD, 64))
    state[name] = torch.zeros(3, 5)
    torch.save({"model": state}, tmp_path / "x.pth")
    with pytest.raises(UsageError, match="no known network"):
        load_encoder(tmp_path / "x.pth")
