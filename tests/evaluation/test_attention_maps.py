import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from dino_ssl.evaluation.attention import MAX_HEADS, WIDTH, attention_figure, cls_attention
from dino_ssl.models.attention_map import AttentionMap


def attention_of(num_images, heads, queries, keys, **shape):
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(num_images, heads, n, 8, generator=generator) for n in (queries, keys))
    return AttentionMap(query, key, **shape)


def draw(path, *, num_images=2, heads=3, side=(16, 16), grid=(4, 4)):
    images = torch.randint(256, (num_images, 3, *side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    maps = torch.rand(num_images, heads, *grid, generator=torch.Generator().manual_seed(1))
    attention_figure(images, maps, path)
    return images, maps, np.array(Image.open(path).convert("RGB"))


@pytest.mark.parametrize("num_prefix_tokens", [1, 5])
def test_class_attention_is_the_first_row_over_the_patches(num_prefix_tokens):
    tokens = num_prefix_tokens + 6
    attention = attention_of(2, 3, tokens, tokens, grid=(2, 3), num_prefix_tokens=num_prefix_tokens)
    maps = cls_attention(attention)
    for row in range(2):
        for column in range(3):
            key = num_prefix_tokens + 3 * row + column
            torch.testing.assert_close(maps[:, :, row, column], attention.weights[:, :, 0, key])


def test_rows_of_attention_are_the_softmax_of_its_logits_with_their_bias():
    plain = attention_of(2, 3, 5, 7, grid=(2, 3), num_prefix_tokens=1)
    bias = torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(2))
    attention = dataclasses.replace(plain, bias=bias)
    logits = torch.einsum("bhqe,bhke->bhqk", plain.query, plain.key) + bias
    expected = logits.exp() / logits.exp().sum(-1, keepdim=True)
    torch.testing.assert_close(attention.weights, expected)
    torch.testing.assert_close(attention.rows(torch.tensor([4, 0])), expected[:, :, [4, 0]])


def test_without_prefix_tokens_attention_is_the_mean_over_queries():
    attention = attention_of(2, 3, 24, 6, grid=(2, 3), num_prefix_tokens=0)
    expected = sum(attention.weights[:, :, query] for query in range(24)) / 24
    torch.testing.assert_close(cls_attention(attention).flatten(2), expected)


def test_every_pixel_of_a_tiny_image_becomes_a_square(tmp_path):
    images, _, picture = draw(tmp_path / "maps.png")
    side = 11  # five columns of 176 pixels
    tile = picture[28 : 28 + 176, 8 : 8 + 176].reshape(16, side, 16, side, 3)
    assert (tile == images[0].permute(1, 2, 0).numpy()[:, None, :, None]).all()


def test_each_map_runs_from_dark_at_its_smallest_to_bright_at_its_largest(tmp_path):
    _, maps, picture = draw(tmp_path / "maps.png")
    head = maps[1, 2]
    tile = picture[28 + 184 : 28 + 184 + 176, 8 + 4 * 184 : 8 + 4 * 184 + 176]
    patches = tile.reshape(4, 44, 4, 44, 3).astype(int)
    assert (patches == patches[:, :1, :, :1]).all()
    brightness = torch.from_numpy(patches[:, 0, :, 0].sum(-1))
    assert brightness.flatten().argsort().tolist() == head.flatten().argsort().tolist()


@pytest.mark.parametrize("heads", [1, 6, 16])
@pytest.mark.parametrize("side", [(8, 8), (32, 32), (96, 96), (224, 224), (384, 512)])
def test_a_picture_has_the_width_of_a_page_and_a_row_for_each_image(tmp_path, heads, side):
    _, _, picture = draw(tmp_path / "new" / "maps.png", num_images=3, heads=heads, side=side)
    columns = 2 + (min(heads, MAX_HEADS) if heads > 1 else 0)
    assert picture.shape[1] <= WIDTH
    tile = (picture.shape[1] - 8) // columns - 8
    assert picture.shape[0] == 28 + 3 * (round(tile * side[0] / side[1]) + 8)


def test_a_uniform_map_is_drawn_too(tmp_path):
    attention_figure(
        torch.zeros(1, 3, 8, 8, dtype=torch.uint8), torch.full((1, 2, 4, 4), 1 / 16), tmp_path / "maps.png"
    )
    assert (tmp_path / "maps.png").stat().st_size > 0
