"""What is written for other programs computes the same there, and nothing is left where it does not."""

import json
from pathlib import Path

import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from dino_ssl.errors import RunError, UsageError
from dino_ssl.models import export as export_module
from dino_ssl.models.backbone import build_backbone
from dino_ssl.models.encoder import Encoder
from dino_ssl.models.export import export
from dino_ssl.models.necks import EmbeddingNetwork
from dino_ssl.models.timm_card import timm_card
from dino_ssl.models.vit import VisionTransformer
from dino_ssl.models.weights import load_encoder

SMALL_VIT = {"patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 2}
DINOV2 = {"patch_size": 14, "embed_dim": 384, "depth": 1, "num_heads": 6, "layer_scale": 1.0}


def micro(**options):
    return VisionTransformer(image_size=32, **SMALL_VIT, **options)


NETWORKS = {
    "plain ViT": (micro, 32, "vit_small_patch16_224"),
    "ViT at another size": (micro, 48, "vit_small_patch16_224"),
    "ViT of five channels": (lambda: micro(in_chans=5), 32, "vit_small_patch16_224"),
    "ViT with a name": (lambda: build_backbone("vit_tiny", image_size=32), 32, "vit_tiny_patch16_224"),
    "DINOv2": (lambda: VisionTransformer(image_size=42, **DINOV2), 56, "vit_small_patch14_dinov2"),
    "DINOv2 with registers": (
        lambda: VisionTransformer(image_size=42, **DINOV2, num_registers=4, antialias_positions=True), 56,
        "vit_small_patch14_reg4_dinov2",
    ),
    "SwiGLU": (lambda: micro(layer_scale=1.0, swiglu=True), 32, "vit_giant_patch14_dinov2"),
    "ResNet": (lambda: build_backbone("resnet18", image_size=64, in_chans=1), 64, "resnet18"),
    "a network of timm": (lambda: build_backbone("timm/convnext_atto", image_size=64), 64, "convnext_atto"),
    "a network of timm bound to a size": (
        lambda: build_backbone("timm/swin_tiny_patch4_window7_224", image_size=112), 112,
        "swin_tiny_patch4_window7_224",
    ),
}  # fmt: skip


FOR_NEW_TIMM, NEW_TIMM = {"ViT of five channels", "a network of timm bound to a size"}, (1, 0, 31)


def an_encoder(backbone, size):
    """With every parameter at random, so that none is left out unseen."""
    torch.manual_seed(1)
    for name, parameter in backbone.named_parameters():
        if parameter.ndim < 2 or "pos_embed" in name or "token" in name:
            nn.init.normal_(parameter, mean=0.5 if name.endswith("weight") else 0.0, std=0.2)
    backbone.eval().requires_grad_(False)
    channels = next(p for p in backbone.parameters() if p.ndim == 4).shape[1]
    return Encoder(
        backbone=backbone, name="mine", origin="nowhere", digest="0" * 64, report="", size=size, center_crop=0.9,
        mean=(0.4,) * channels, std=(0.2,) * channels,
    )  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_timm_makes_the_same_network_from_the_folder_alone(tmp_path, name):
    build, size, architecture = NETWORKS[name]
    torch.manual_seed(0)
    encoder = an_encoder(build(), size)
    done = export(encoder, "timm", tmp_path / "out" / "mine")
    assert done.difference <= 1e-5 and sorted(p.name for p in (tmp_path / "out").iterdir()) == ["mine"]
    card = json.loads((done.path / "config.json").read_text())
    assert card["architecture"] == architecture
    with safe_open(done.path / "model.safetensors", "pt") as file:
        assert file.metadata()["digest"] == encoder.digest
    if name in FOR_NEW_TIMM and tuple(map(int, timm.__version__.split(".")[:3])) < NEW_TIMM:
        pytest.skip(f"the loader of timm {timm.__version__} changes the tensors of such networks")
    model = timm.create_model(f"local-dir:{done.path}", pretrained=True, num_classes=0).eval()
    images = torch.randn(2, encoder.channels, size, size)
    torch.testing.assert_close(model(images), encoder.backbone(images), atol=1e-5, rtol=1e-4)
    data = timm.data.resolve_model_data_config(model)
    assert (data["input_size"][-1], data["crop_pct"], tuple(data["mean"])) == (size, 0.9, encoder.mean)


@pytest.mark.parametrize("name", NETWORKS)
def test_we_read_our_own_folder_for_timm_back(tmp_path, name):
    build, size, _ = NETWORKS[name]
    torch.manual_seed(0)
    encoder = an_encoder(build(), size)
    again = load_encoder(export(encoder, "timm", tmp_path / "mine").path)
    assert (again.size, again.center_crop, again.mean, again.std) == (size, 0.9, encoder.mean, encoder.std)
    assert "NOT" not in again.report
    images = torch.randn(2, encoder.channels, size, size)
    torch.testing.assert_close(again.backbone(images), encoder.backbone(images), atol=1e-5, rtol=1e-4)


def test_the_torch_file_has_the_names_of_the_original_and_is_read_back(tmp_path):
    torch.manual_seed(0)
    encoder = an_encoder(micro(num_registers=4, layer_scale=1.0, antialias_positions=True), 48)
    done = export(encoder, "torch", tmp_path / "mine.pth")
    state = torch.load(done.path, weights_only=True)
    assert {"cls_token", "register_tokens", "blocks.1.ls2.gamma", "norm.bias"} <= state.keys()
    assert state["pos_embed"].shape == (1, 17, 64)
    backbone = micro(num_registers=4, layer_scale=1.0, antialias_positions=True).eval()
    backbone.load_state_dict(state)
    images = torch.randn(2, 3, 48, 48)
    assert torch.equal(backbone(images), encoder.backbone(images)) and done.difference <= 1e-5


def test_the_torch_file_of_a_network_of_timm_has_timms_names(tmp_path):
    encoder = an_encoder(build_backbone("timm/convnext_atto", image_size=64), 64)
    state = torch.load(export(encoder, "torch", tmp_path / "mine.pth").path, weights_only=True)
    assert state.keys() == timm.create_model("convnext_atto", num_classes=0).state_dict().keys()


def test_a_resnet_with_the_stem_for_small_images_is_not_given_to_timm(tmp_path):
    encoder = an_encoder(build_backbone("resnet18", image_size=32, small_stem=True), 32)
    with pytest.raises(UsageError, match="write --format torch or onnx"):
        export(encoder, "timm", tmp_path / "mine")
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_export_left_is_no_obstacle(tmp_path):
    (tmp_path / "mine.unfinished").mkdir()
    (tmp_path / "mine.unfinished" / "config.json").write_text("half")
    export(an_encoder(micro(), 32), "timm", tmp_path / "mine")
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]


def test_what_exists_is_not_overwritten_and_endings_are_minded(tmp_path):
    encoder = an_encoder(micro(), 32)
    (tmp_path / "mine").mkdir()
    with pytest.raises(UsageError, match="exists, and nothing is overwritten"):
        export(encoder, "timm", tmp_path / "mine")
    with pytest.raises(UsageError, match=r"must end in \.onnx; write --output .*mine\.onnx"):
        export(encoder, "onnx", tmp_path / "mine.pth")
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]


def test_a_place_that_takes_no_file_is_named():
    with pytest.raises(RunError, match=r"/proc/mine\.unfinished\.pth cannot be written .*; write --output"):
        export(an_encoder(micro(), 32), "torch", Path("/proc/mine.pth"))


def test_an_export_that_computes_something_else_is_deleted_and_an_error(tmp_path, monkeypatch):
    """timm's network with a tensor that was changed on the way to the file."""

    def distorted(encoder):
        card = timm_card(encoder)
        card.tensors["norm.bias"] = card.tensors["norm.bias"] + 1e-2
        return card

    monkeypatch.setattr(export_module, "timm_card", distorted)
    with pytest.raises(RunError, match=r"would not compute the same: .*; it was deleted"):
        export(an_encoder(micro(), 32), "timm", tmp_path / "mine")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
@pytest.mark.parametrize("name", ["iresnet18_cbam", "vit_micro"])
def test_an_embedding_network_is_written_with_its_neck(tmp_path, name, ending):
    network = EmbeddingNetwork(build_backbone(name, image_size=32), "flatten", embed_dim=8, image_size=32)
    encoder, path = an_encoder(network, 32), tmp_path / f"faces.{ending}"
    done = export(encoder, {"pth": "torch"}.get(ending, ending), path)
    assert done.difference < 1e-5
    state = load_file(path) if ending == "safetensors" else torch.load(path, weights_only=True)
    torch.testing.assert_close(state, dict(network.state_dict()))
    if ending == "safetensors":
        with safe_open(path, "pt") as file:
            assert file.metadata() == {"format": "pt", "name": encoder.name, "digest": encoder.digest, "size": "32"}
