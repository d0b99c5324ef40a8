"""ONNX files, through onnxruntime."""

import inspect

import numpy as np
import onnxruntime
import pytest
import torch

from dino_ssl.models import vit, vit_block
from dino_ssl.models.backbone import build_backbone
from dino_ssl.models.encoder import Encoder
from dino_ssl.models.export import export
from dino_ssl.models.resnet import ResNet

# torch.export traces the forward functions, whose executed annotations it cannot.
TRACED = {
    vit.VisionTransformer: ["forward", "_encode", "_run", "_tokens", "grid"],
    vit_block.TransformerBlock: ["forward", "_class_attention", "branch_scales"],
    ResNet: ["patch_features"],
}


@pytest.mark.parametrize(("name", "size"), [("vit_micro", 32), ("vit_micro", 48), ("resnet18", 64)])
@pytest.mark.filterwarnings("ignore")  # those of the exporter, about itself
def test_onnxruntime_gives_the_same_features_for_any_number_of_images(tmp_path, monkeypatch, name, size):
    for owner, methods in TRACED.items():
        for method in methods:
            monkeypatch.setattr(owner, method, inspect.unwrap(getattr(owner, method)))
    monkeypatch.setattr(vit, "interpolate_positions", inspect.unwrap(vit.interpolate_positions))
    torch.manual_seed(0)
    backbone = build_backbone(name, image_size=32, patch_size=8).eval().requires_grad_(False)
    encoder = Encoder(backbone, name, "", "0" * 64, "", size, 0.875, (0.5,) * 3, (0.25,) * 3)
    done = export(encoder, "onnx", tmp_path / "mine.onnx")
    session = onnxruntime.InferenceSession(str(done.path))
    for number in (1, 2, 5):
        images = torch.randn(number, 3, size, size)
        (features,) = session.run(["features"], {"images": images.numpy()})
        np.testing.assert_allclose(features, backbone(images).numpy(), atol=1e-5, rtol=1e-3)
