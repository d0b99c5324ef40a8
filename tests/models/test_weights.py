"""Files with the key names and shapes of each family, written here by hand, through the reader."""

import json
import os
import pickle
import re
from argparse import Namespace

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from dino_ssl.errors import UsageError
from dino_ssl.models.backbone import build_backbone
from dino_ssl.models.vit import VisionTransformer
from dino_ssl.models.weights import load, load_encoder

DIM, DEPTH, SIDE, PATCH = 64, 3, 4, 8
SIZE = SIDE * PATCH


def vit_shapes(dim=DIM, depth=DEPTH, positions=SIDE**2, patch=PATCH, *, swiglu=0, scale=False, registers=0, channels=3):
    """Names and shapes of a ViT as the released files of dino, ibot and dinov2 have them."""
    shapes = {"cls_token": (1, 1, dim), "pos_embed": (1, 1 + positions, dim)}
    if registers:
        shapes["register_tokens"] = (1, registers, dim)
    shapes |= {"patch_embed.proj.weight": (dim, channels, patch, patch), "patch_embed.proj.bias": (dim,)}
    for i in range(depth):
        block = {
            "norm1.weight": (dim,), "norm1.bias": (dim,),
            "attn.qkv.weight": (3 * dim, dim), "attn.qkv.bias": (3 * dim,),
            "attn.proj.weight": (dim, dim), "attn.proj.bias": (dim,), "norm2.weight": (dim,), "norm2.bias": (dim,),
        }  # fmt: skip
        if swiglu:
            block |= {"mlp.w12.weight": (2 * swiglu, dim), "mlp.w12.bias": (2 * swiglu,)}
            block |= {"mlp.w3.weight": (dim, swiglu), "mlp.w3.bias": (dim,)}
        else:
            block |= {"mlp.fc1.weight": (4 * dim, dim), "mlp.fc1.bias": (4 * dim,)}
            block |= {"mlp.fc2.weight": (dim, 4 * dim), "mlp.fc2.bias": (dim,)}
        if scale:
            block |= {"ls1.gamma": (dim,), "ls2.gamma": (dim,)}
        shapes |= {f"blocks.{i}.{name}": shape for name, shape in block.items()}
    return shapes | {"norm.weight": (dim,), "norm.bias": (dim,)}


def filled(shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {name: 0.1 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def empty(shapes):
    """Tensors of any size in a few bytes."""
    return {name: torch.zeros(()).expand(shape) for name, shape in shapes.items()}


def prefixed(prefix, state):
    return {prefix + name: value for name, value in state.items()}


def head(prefix=""):
    return prefixed(prefix, filled({"mlp.0.weight": (9, DIM), "mlp.0.bias": (9,), "last_layer.weight_v": (5, 9)}, 9))


def saved(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)
    return path


def same(backbone, state):
    ours = backbone.state_dict()
    return ours.keys() == state.keys() and all(torch.equal(ours[name], value) for name, value in state.items())


@pytest.mark.parametrize("ending", [".pth", ".pt", ".bin", ".ckpt", ".safetensors", ".npz"])
def test_a_backbone_alone_is_read_from_every_kind_of_file_to_the_same_weights_and_digest(tmp_path, ending):
    state, path = filled(vit_shapes()), tmp_path / f"weights{ending}"
    if ending == ".npz":
        np.savez(path, **{name: value.numpy() for name, value in state.items()})
    elif ending == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    loaded = load(path, size=SIZE)
    assert same(loaded.encoder.backbone, state) and loaded.family == "dino"
    assert loaded.encoder.report == f"matched {len(state)}/{len(state)}"
    assert loaded.encoder.digest == load_encoder(saved(tmp_path / "again.pth", prefixed("module.", state))).digest
    state["norm.bias"][3] += 1e-6
    assert loaded.encoder.digest != load_encoder(saved(tmp_path / "other.pth", state)).digest


def test_the_encoder_is_frozen_and_says_how_images_are_prepared(tmp_path):
    encoder = load_encoder(saved(tmp_path / "x.pth", filled(vit_shapes())), center_crop=1.0)
    assert not encoder.backbone.training and not any(p.requires_grad for p in encoder.backbone.parameters())
    assert (encoder.name, encoder.size, encoder.center_crop, encoder.channels) == (f"vit_64x3/{PATCH}", 224, 1.0, 3)
    assert encoder.mean == (0.485, 0.456, 0.406) and encoder.std == (0.229, 0.224, 0.225)


def full_dino_checkpoint():
    """As the original's training saves it: flags, and a learning rate that numpy computed."""
    student, teacher = filled(vit_shapes(), 1), filled(vit_shapes(), 2)
    return student, teacher, {
        "student": prefixed("module.backbone.", student) | head("module.head."),
        "teacher": prefixed("backbone.", teacher) | head("head."),
        "optimizer": {"state": {}, "param_groups": [{"lr": np.float64(0.0005), "weight_decay": np.float64(0.04)}]},
        "epoch": np.int64(100),
        "args": Namespace(arch="vit_small", patch_size=PATCH, local_crops_scale=(0.05, 0.4)),
        "dino_loss": {"center": torch.zeros(1, 5)},
        "fp16_scaler": None,
    }  # fmt: skip


def test_a_full_dino_checkpoint_gives_the_teacher_or_the_student_and_says_that_heads_were_ignored(tmp_path):
    student, teacher, content = full_dino_checkpoint()
    path = saved(tmp_path / "checkpoint.pth", content)
    assert same(load_encoder(path).backbone, teacher)
    encoder = load_encoder(path, key="student", size=SIZE)
    assert same(encoder.backbone, student)
    assert encoder.report == f"matched {len(student)}/{len(student)}, ignored head.*"
    assert encoder.origin == f"{path}, student"
    assert load(path).file.content["args"].local_crops_scale == (0.05, 0.4)


def test_a_checkpoint_without_the_network_asked_for_says_which_it_has(tmp_path):
    state = prefixed("backbone.", filled(vit_shapes()))
    with pytest.raises(UsageError, match="has no teacher; write --key student"):
        load_encoder(saved(tmp_path / "x.pth", {"student": state}))
    with pytest.raises(UsageError, match="one network, not a teacher and a student; leave --key out"):
        load_encoder(saved(tmp_path / "y.pth", {"state_dict": state}), key="student")


@pytest.mark.parametrize("container", ["state_dict", "model"])
def test_ibot_is_told_by_its_token_for_masked_patches(tmp_path, container):
    state = filled(vit_shapes())
    content = {container: prefixed("backbone.", state | {"masked_embed": torch.zeros(1, DIM)}) | head("head.")}
    loaded = load(saved(tmp_path / "checkpoint_teacher.pth", content), size=SIZE)
    assert loaded.family == "ibot" and same(loaded.encoder.backbone, state)
    assert loaded.encoder.report.endswith("ignored head.* masked_embed")


@pytest.mark.parametrize("registers", [0, 4])
def test_dinov2_has_registers_layer_scale_and_its_own_rule_for_positions(tmp_path, registers):
    state = filled(vit_shapes(scale=True, registers=registers))
    path = saved(tmp_path / "dinov2.pth", state | {"mask_token": torch.zeros(1, DIM)})
    loaded = load(path, size=SIZE + PATCH)
    assert loaded.family == "dinov2" and same(loaded.encoder.backbone, state)
    assert loaded.encoder.backbone.num_prefix_tokens == 1 + registers
    assert loaded.encoder.backbone.antialias_positions == (registers > 0)
    expected = f"matched {len(state)}/{len(state)}, interpolated pos_embed 4x4 -> 5x5, ignored mask_token"
    assert loaded.encoder.report == expected


def in_chunk_of_two(match):
    return f"blocks.{int(match[1]) // 2}.{match[1]}"


def test_a_teacher_of_dinov2_that_was_trained_in_chunks_of_blocks_with_swiglu_is_read(tmp_path):
    state = filled(vit_shapes(depth=4, scale=True, swiglu=176))
    chunked = {re.sub(r"^blocks\.(\d+)", in_chunk_of_two, name): value for name, value in state.items()}
    assert "blocks.1.3.mlp.w12.weight" in chunked
    teacher = prefixed("backbone.", chunked) | head("dino_head.") | head("ibot_head.")
    encoder = load_encoder(saved(tmp_path / "teacher_checkpoint.pth", {"teacher": teacher}), size=SIZE)
    assert same(encoder.backbone, state)
    assert encoder.report == f"matched {len(state)}/{len(state)}, ignored dino_head.* ibot_head.*"


RELEASED = [
    ("vit_small/16", vit_shapes(384, 12, 196, 16), 150, 150),
    ("vit_base/8", vit_shapes(768, 12, 784, 8), 150, 150),
    ("vit_large/16", vit_shapes(1024, 24, 196, 16), 294, 294),
    ("dinov2_vits14", vit_shapes(384, 12, 1369, 14, scale=True), 174, 174),
    ("dinov2_vitb14_reg", vit_shapes(768, 12, 1369, 14, scale=True, registers=4), 175, 175),
]


@pytest.mark.parametrize(("name", "shapes", "matched", "wanted"), RELEASED, ids=[row[0] for row in RELEASED])
def test_released_shapes_are_known_by_name_and_match_to_the_last_tensor(tmp_path, name, shapes, matched, wanted):
    encoder = load_encoder(saved(tmp_path / "released.pth", empty(shapes)))
    assert encoder.name == name and encoder.report.startswith(f"matched {matched}/{wanted}")
    assert encoder.backbone.blocks[0].attn.num_heads == encoder.backbone.embed_dim // 64


def test_prefixes_are_stripped_at_the_start_only(tmp_path):
    state = filled(vit_shapes())
    odd = {"blocks.0.module.backbone.extra": torch.zeros(1)}
    encoder = load_encoder(saved(tmp_path / "x.pth", prefixed("module.backbone.", state | odd)))
    assert same(encoder.backbone, state)
    assert "in the file, NOT used: blocks.0.module.backbone.extra" in encoder.report


def test_positions_of_dino_follow_the_scale_rule_at_sizes_other_than_the_trained(tmp_path):
    """At 96, 480 and 96 x 224 pixels the features are those of a table made by the rule written out."""
    state = filled(vit_shapes(positions=196, patch=16))
    backbone = load_encoder(saved(tmp_path / "x.pth", state)).backbone
    for height, width in ((96, 96), (480, 480), (96, 224)):
        rows, columns = height // 16, width // 16
        table = state["pos_embed"][:, 1:].reshape(1, 14, 14, DIM).permute(0, 3, 1, 2)
        scale = ((rows + 0.1) / 14, (columns + 0.1) / 14)
        table = nn.functional.interpolate(table, scale_factor=scale, mode="bicubic").flatten(2).transpose(1, 2)
        images = torch.randn(1, 3, height, width)
        tokens = backbone.patch_embed.proj(images).flatten(2).transpose(1, 2) + table
        tokens = torch.cat((state["cls_token"] + state["pos_embed"][:, :1], tokens), 1)
        for block in backbone.blocks:
            tokens = block(tokens)
        torch.testing.assert_close(backbone(images), backbone.norm(tokens)[:, 0])


def write_timm_folder(folder, model, architecture, model_args):
    folder.mkdir()
    save_file(model.state_dict(), folder / "model.safetensors")
    told = {"input_size": [3, 32, 32], "crop_pct": 0.95, "mean": [0.5] * 3, "std": [0.25] * 3}
    card = {"architecture": architecture, "num_classes": 10, "model_args": model_args, "pretrained_cfg": told}
    (folder / "config.json").write_text(json.dumps(card))


def test_a_folder_as_timm_writes_it_gives_timms_own_model_and_transform(tmp_path):
    torch.manual_seed(0)
    options = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 2, "dynamic_img_size": True}
    model = timm.create_model("vit_small_patch16_224", num_classes=10, **options).eval()
    write_timm_folder(tmp_path / "timm", model, "vit_small_patch16_224", options)
    encoder = load_encoder(tmp_path / "timm")
    assert (encoder.size, encoder.center_crop, encoder.mean, encoder.std) == (32, 0.95, (0.5,) * 3, (0.25,) * 3)
    assert encoder.report.endswith("ignored head.*") and encoder.name == "timm/vit_small_patch16_224"
    for size in (32, 48):
        images = torch.randn(2, 3, size, size)
        expected = model.forward_head(model.forward_features(images), pre_logits=True)
        torch.testing.assert_close(encoder.backbone(images), expected)


def test_a_configuration_of_timm_is_about_the_file_of_that_name_alone(tmp_path):
    model = timm.create_model("convnext_atto", num_classes=0)
    write_timm_folder(tmp_path / "folder", model, "convnext_atto", {})
    state = filled(vit_shapes())
    assert same(load_encoder(saved(tmp_path / "folder" / "vit.pth", state)).backbone, state)


def test_timms_vit_with_the_same_weights_gives_the_same_features_at_224(tmp_path):
    """And with timm's rule for positions, which its classifier gives away, elsewhere too."""
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=10, dynamic_img_size=True).eval()
    nn.init.normal_(model.pos_embed)
    loaded = load(saved(tmp_path / "vit_tiny.pth", model.state_dict()))
    assert loaded.family == "timm" and loaded.encoder.name == "vit_tiny/16"
    assert loaded.encoder.report == "matched 150/150, ignored head.*"
    for size in ((224, 224), (96, 160)):
        images = torch.randn(2, 3, *size)
        expected = model.forward_features(images)[:, 0]
        torch.testing.assert_close(loaded.encoder.backbone(images), expected, atol=1e-5, rtol=0)


def test_another_network_of_timm_is_read_when_its_name_is_given(tmp_path):
    torch.manual_seed(0)
    model = timm.create_model("convnext_atto", num_classes=10).eval()
    path = saved(tmp_path / "convnext.pth", model.state_dict())
    with pytest.raises(UsageError, match=r"no known network \(.*--arch timm/NAME"):
        load_encoder(path)
    encoder = load_encoder(path, arch="timm/convnext_atto", size=64)
    images = torch.randn(2, 3, 64, 64)
    expected = model.forward_head(model.forward_features(images), pre_logits=True)
    torch.testing.assert_close(encoder.backbone(images), expected)
    assert encoder.report == "matched 126/126, ignored head.*"


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50"])
def test_a_resnet_of_torchvision_is_told_by_its_blocks(tmp_path, name):
    torchvision = pytest.importorskip("torchvision")
    with torch.device("meta"):
        shapes = {k: v.shape for k, v in torchvision.models.get_model(name).state_dict().items()}
    loaded = load(saved(tmp_path / "resnet.pth", empty(shapes)))
    assert loaded.encoder.name == name and loaded.family == "torchvision"
    num = len(shapes) - 2
    assert loaded.encoder.report == f"matched {num}/{num}, ignored fc.*"


def test_an_old_resnet_without_counters_in_its_batch_norms_matches(tmp_path):
    resnet = build_backbone("resnet18", image_size=64).eval()
    state = {k: v for k, v in resnet.state_dict().items() if not k.endswith("num_batches_tracked")}
    encoder = load_encoder(saved(tmp_path / "resnet.pth", state))
    images = torch.randn(2, 3, 64, 64)
    assert encoder.report == "matched 100/100"
    torch.testing.assert_close(encoder.backbone(images), resnet(images))


def test_a_resnet_with_the_stem_for_small_images_is_told_by_its_first_convolution(tmp_path):
    torch.manual_seed(0)
    resnet = build_backbone("resnet18", image_size=32, small_stem=True).eval()
    encoder = load_encoder(saved(tmp_path / "resnet.pth", resnet.state_dict()))
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(encoder.backbone(images), resnet(images))


def test_a_vit_of_our_sizes_has_the_heads_of_its_size(tmp_path):
    torch.manual_seed(0)
    micro = build_backbone("vit_micro", image_size=32, patch_size=8).eval()
    path = saved(tmp_path / "micro.pth", micro.state_dict())
    images = torch.randn(2, 3, 32, 32)
    for arch in (None, "vit_micro"):
        encoder = load_encoder(path, arch=arch)
        assert encoder.name == "vit_micro/8"
        torch.testing.assert_close(encoder.backbone(images), micro(images))


def test_a_vit_whose_heads_cannot_be_known_is_refused(tmp_path):
    assert "100 wide, whose heads nobody knows" in refusal(saved(tmp_path / "x.pth", filled(vit_shapes(dim=100))))


def refusal(path, **options):
    with pytest.raises(UsageError) as caught:
        load_encoder(path, **options)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_fewer_than_95_percent_are_refused_with_names_and_shapes_and_advice(tmp_path):
    state = filled(vit_shapes())
    for name in ("norm1.weight", "norm1.bias", "norm2.weight"):
        del state[f"blocks.1.{name}"]
    text = refusal(saved(tmp_path / "x.pth", state))
    assert "39 of 42 tensors match" in text and "blocks.1.norm1.weight (64,)" in text and "--arch vit_small" in text


def test_a_few_missing_tensors_are_reported_and_filled_alike_every_time(tmp_path):
    state = filled(vit_shapes(depth=12))
    lost = state.pop("norm.bias"), state.pop("blocks.3.attn.proj.weight")
    path = saved(tmp_path / "x.pth", state)
    first, second = load_encoder(path), load_encoder(path)
    assert len(lost) == 2 and "NOT in the file, left as built: blocks.3.attn.proj.weight norm.bias" in first.report
    images = torch.randn(1, 3, SIZE, SIZE)
    assert torch.equal(first.backbone(images), second.backbone(images))


def test_a_tensor_of_another_shape_is_refused_however_many_match(tmp_path):
    state = filled(vit_shapes(depth=12)) | {"blocks.3.mlp.fc1.weight": torch.zeros(128, DIM)}
    assert "blocks.3.mlp.fc1.weight (128, 64)" in refusal(saved(tmp_path / "x.pth", state))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"arch": "vit_small"}, "pos_embed (1, 17, 384)"),
        ({"arch": "resnet18"}, "0 of 100 tensors match"),
        ({"arch": "timm/vit_tiny_patch16_224"}, "tensors match"),
        ({"patch_size": 16}, "patch_size=16, but of the network in"),
    ],
)
def test_words_that_contradict_the_file_are_refused(tmp_path, options, message):
    assert message in refusal(saved(tmp_path / "x.pth", filled(vit_shapes())), **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"arch": "vit_smal"}, "arch=vit_smal is unknown; did you mean vit_small"),
        ({"size": 100}, "size=100 must be a multiple of the patch size 8; write --size 96"),
    ],
)
def test_words_that_make_no_sense_are_refused(tmp_path, options, message):
    with pytest.raises(UsageError, match=message):
        load_encoder(saved(tmp_path / "x.pth", filled(vit_shapes())), **options)


def test_a_size_that_a_network_of_timm_does_not_take_is_refused(tmp_path):
    model = timm.create_model("gmlp_ti16_224", num_classes=0)
    path = saved(tmp_path / "gmlp.pth", model.state_dict())
    with pytest.raises(UsageError, match=r"size=100 does not go through timm/gmlp.*; leave --size out"):
        load_encoder(path, arch="timm/gmlp_ti16_224", size=100)


def test_tensors_that_differ_in_their_prefixes_only_are_refused(tmp_path):
    state = filled(vit_shapes())
    content = prefixed("backbone.", state) | {"module.backbone.norm.bias": torch.ones(DIM)}
    assert "differ in their prefixes only" in refusal(saved(tmp_path / "x.pth", content))


def test_names_of_a_vit_with_shapes_of_none_are_refused(tmp_path):
    state = filled(vit_shapes()) | {"pos_embed": torch.zeros(17)}
    assert "no known network" in refusal(saved(tmp_path / "x.pth", state))


def test_a_vit_as_only_timm_has_them_asks_for_its_name(tmp_path):
    state = filled(vit_shapes()) | {"pos_embed": torch.zeros(1, SIDE**2, DIM), "reg_token": torch.zeros(1, 4, DIM)}
    assert "--arch timm/NAME" in refusal(saved(tmp_path / "x.pth", state))


def test_channels_without_known_statistics_are_refused(tmp_path):
    text = refusal(saved(tmp_path / "x.pth", filled(vit_shapes(channels=5))))
    assert "takes 5 channels and does not say their mean" in text


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("writer", ["zip", "legacy", "pickle", "npz"])
def test_a_malicious_pickle_is_refused_by_name_and_nothing_of_it_runs(tmp_path, writer):
    content = {"teacher": filled(vit_shapes()), "args": Malicious(tmp_path / "ran")}
    path = tmp_path / ("evil.npz" if writer == "npz" else "evil.pth")
    if writer == "npz":
        np.savez(path, args=np.array([content["args"]], dtype=object))
    elif writer == "pickle":
        path.write_bytes(pickle.dumps(content["args"], protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=writer == "zip")
    text = refusal(path)
    assert "was run" in text or "more than arrays" in text
    assert not (tmp_path / "ran").exists()


def test_a_scalar_of_numpy_that_smuggles_objects_is_refused(tmp_path):
    """numpy's own reader of scalars would unpickle what an object scalar carries."""
    scalar, (dtype, raw) = np.float64(1).__reduce__()
    assert dtype == np.dtype("f8") and len(raw) == 8

    class Smuggler:
        def __reduce__(self):
            return scalar, (np.dtype("O"), pickle.dumps(Malicious(tmp_path / "ran")))

    refusal(saved(tmp_path / "evil.pth", {"lr": Smuggler()}))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("ending", [".pth", ".safetensors", ".npz"])
@pytest.mark.parametrize("damage", ["truncated", "empty", "another file"])
def test_a_truncated_or_wrong_file_is_refused_by_name(tmp_path, ending, damage):
    state, path = filled(vit_shapes()), tmp_path / f"weights{ending}"
    if ending == ".npz":
        np.savez(path, **{name: value.numpy() for name, value in state.items()})
    elif ending == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    content = path.read_bytes()
    path.write_bytes({"truncated": content[: len(content) // 2], "empty": b"", "another file": b"<html>"}[damage])
    assert "damaged" in refusal(path)


def test_a_changed_bit_of_a_tensor_is_noticed(tmp_path):
    path = saved(tmp_path / "x.pth", {"norm.weight": torch.arange(1000.0)})
    content = bytearray(path.read_bytes())
    content[content.index(np.float32(500).tobytes())] ^= 1
    path.write_bytes(content)
    assert "is damaged: wrong checksum" in refusal(path)


def test_what_is_no_file_of_weights_is_refused_and_nothing_else_is_taken(tmp_path):
    assert "does not exist" in refusal(tmp_path / "dino_deitsmall16_pretrain.pth")
    (tmp_path / "notes.txt").write_text("hello")
    assert "one of the endings .pth" in refusal(tmp_path / "notes.txt")
    folder = tmp_path / "folder"
    saved(folder / "epoch_100.pth", filled(vit_shapes()))
    assert "epoch_100.pth: write the path of one of them" in refusal(folder)
    assert "holds a Tensor" in refusal(saved(tmp_path / "x.pth", torch.zeros(3)))
    assert "holds no weights by name, but epoch, lr" in refusal(saved(tmp_path / "y.pth", {"epoch": 3, "lr": 0.1}))


def test_half_precision_weights_are_computed_in_float32(tmp_path):
    state = {name: value.half() for name, value in filled(vit_shapes()).items()}
    backbone = load_encoder(saved(tmp_path / "x.pth", state)).backbone
    assert isinstance(backbone, VisionTransformer) and backbone.norm.weight.dtype == torch.float32
    assert torch.equal(backbone.norm.weight, state["norm.weight"].float())
