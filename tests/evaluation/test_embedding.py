"""`embed`: files to features of length 1, against every step by hand."""

import numpy as np
import pytest
import torch
from PIL import Image

from dino_ssl import embed
from dino_ssl.errors import UsageError
from dino_ssl.models.backbone import build_backbone
from dino_ssl.models.encoder import Encoder
from dino_ssl.models.necks import EmbeddingNetwork


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    network = EmbeddingNetwork(build_backbone("resnet8x4", image_size=16), "flatten", embed_dim=8, image_size=16)
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    return Encoder(network.eval().requires_grad_(False), "resnet8x4", "", "", "", 16, 1.0, mean, std)


@pytest.mark.parametrize("mirrored", [True, False])
def test_an_embedding_is_that_of_the_normalised_pixels_and_of_the_mirror_image_at_length_one(
    tmp_path, encoder, mirrored, monkeypatch
):
    monkeypatch.setattr("dino_ssl.evaluation.embedding.AT_ONCE", 2)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
    paths = [tmp_path / f"{index}.png" for index in range(3)]
    for path, each in zip(paths, pixels, strict=True):
        Image.fromarray(each).save(path)
    mean, std = (torch.tensor(values)[:, None, None] for values in (encoder.mean, encoder.std))
    seen = (torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - mean) / std
    expected = encoder.backbone(seen)
    if mirrored:
        expected = expected + encoder.backbone(seen.flip(3))
    found = embed(encoder, [str(paths[0]), *paths[1:]], mirrored=mirrored)
    torch.testing.assert_close(found, expected / expected.norm(dim=1, keepdim=True))
    assert embed(encoder, []).shape == (0, 8)


def test_a_file_that_is_no_image_is_refused_by_name(tmp_path, encoder):
    (tmp_path / "a.jpg").write_text("no image")
    with pytest.raises(UsageError, match=r"a\.jpg cannot be embedded"):
        embed(encoder, [tmp_path / "a.jpg"])
