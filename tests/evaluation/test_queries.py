import dataclasses

import pytest
import torch

from dino_ssl.errors import UsageError
from dino_ssl.evaluation.attention import cls_attention, mean_over_patches
from dino_ssl.evaluation.queries import (
    asked_by_patch,
    attention_from,
    attention_or_similarity,
    default_query,
    similarity,
)
from dino_ssl.evaluation.query import Query
from dino_ssl.models.attention_map import AttentionMap
from dino_ssl.models.backbone import build_backbone


def attention_of(grid=(3, 4), prefix=3, **fields):
    generator = torch.Generator().manual_seed(0)
    tokens = prefix + grid[0] * grid[1]
    query, key = (torch.randn(2, 2, tokens, 8, generator=generator) for _ in range(2))
    return AttentionMap(query, key, grid, prefix, **fields)


def patches(attention, query):
    """The row of one query over the patches, from the whole table."""
    return attention.weights[:, :, query, attention.num_prefix_tokens :].unflatten(-1, attention.grid)


@pytest.mark.parametrize(
    ("text", "token"),
    [
        ("cls", 0),
        ("register1", 1),
        ("register2", 2),
        ("0,0", 3),
        ("1,1", 14),
        ("0.25,0.34", 3 + 4 + 1),
        ("0.24,.99", 3 + 8 + 0),
        ("1.,0.", 3 + 3),
    ],
)
def test_a_query_is_its_row_of_the_table(text, token):
    attention = attention_of()
    torch.testing.assert_close(attention_from(attention, Query.of(text)), patches(attention, token))


def finer(grid=(2, 3), side=2):
    """Attention from a grid of `side` times the rows and columns of its keys, with a bias."""
    generator = torch.Generator().manual_seed(0)
    num_keys = grid[0] * grid[1]
    query, key = (torch.randn(2, 2, n, 8, generator=generator) for n in (num_keys * side**2, num_keys))
    bias = torch.randn(2, num_keys * side**2, num_keys, generator=generator)
    return AttentionMap(query, key, grid, 0, bias=bias, has_class_token=False)


def inside(attention, row, column, side):
    """The mean of the rows of all queries in a patch, one by one."""
    across, rows = attention.grid[1] * side, []
    for i in range(side):
        for j in range(side):
            rows.append(attention.weights[:, :, (row * side + i) * across + column * side + j])
    return sum(rows) / side**2


@pytest.mark.parametrize("side", [1, 2, 4])
def test_where_queries_lie_on_a_finer_grid_a_patch_is_the_mean_of_those_in_it(side):
    attention = finer(side=side)
    assert attention.queries_per_patch == side
    expected = inside(attention, 1, 2, side).unflatten(-1, (2, 3))
    torch.testing.assert_close(attention_from(attention, Query.of("0.9,0.6")), expected)


@pytest.mark.parametrize("side", [1, 2, 4])
def test_attention_that_is_asked_by_patch_has_the_same_weights_as_factors_without_a_bias(side):
    attention = finer(side=side)
    asked = asked_by_patch(attention)
    assert asked.bias is None and asked.query.shape == asked.key.shape == (2, 2, 6, 6)
    expected = torch.stack([inside(attention, row, column, side) for row in range(2) for column in range(3)], 2)
    torch.testing.assert_close(asked.weights, expected)
    torch.testing.assert_close(asked.query.amax(-1), -asked.query.amin(-1))


def test_without_a_query_the_class_token_looks_or_else_the_mean_of_all():
    attention = attention_of()
    torch.testing.assert_close(attention_from(attention, default_query(attention)), patches(attention, 0))
    mean = sum(patches(attention, token) for token in range(3, 15)) / 12
    torch.testing.assert_close(attention_from(attention, Query.of("mean")), mean)
    registers = dataclasses.replace(attention, has_class_token=False)
    torch.testing.assert_close(attention_from(registers, default_query(registers)), mean)
    torch.testing.assert_close(cls_attention(registers), mean)
    assert default_query(attention_of(prefix=0)) == Query.of("mean")


def test_the_mean_of_many_queries_is_that_of_the_whole_table():
    attention = attention_of(grid=(20, 30), prefix=1)
    torch.testing.assert_close(mean_over_patches(attention), attention.weights[:, :, 1:].mean(2))


@pytest.mark.parametrize("text", ["", "CLS", "register0", "register", "1.1,0", "0,-1", "0", "0,0,0", "nan,0", "1e0,0"])
def test_what_is_no_query_is_refused_with_the_rule(text):
    with pytest.raises(ValueError, match="must be cls, mean, register1"):
        Query.of(text)


@pytest.mark.parametrize(
    ("attention", "text", "answer"),
    [
        (attention_of(prefix=0), "cls", "no class token and no registers; write mean"),
        (attention_of(prefix=1), "register1", "a class token and no registers"),
        (attention_of(prefix=3), "register3", "registers 1 to 2"),
        (attention_of(prefix=2, has_class_token=False), "cls", "no class token; its registers are 1 to 2"),
    ],
)
def test_a_token_that_is_not_there_is_a_mistake(attention, text, answer):
    with pytest.raises(UsageError, match=f"query={text}: this network has .*{answer}"):
        attention_from(attention, Query.of(text))


def test_a_register_of_a_network_without_a_class_token_is_found():
    attention = attention_of(prefix=2, has_class_token=False)
    torch.testing.assert_close(attention_from(attention, Query.of("register2")), patches(attention, 1))


def test_similarity_is_the_softmax_of_lengths_along_a_place_or_along_the_mean_of_all():
    features = torch.randn(2, 5, 3, 4, generator=torch.Generator().manual_seed(0))
    attention = similarity(features)
    for image, found in zip(features, attention.weights[:, 0], strict=True):
        places = [image[:, row, column] for row in range(3) for column in range(4)]
        tokens = [sum(places) / 12, *places]
        unit = sum(place.norm() for place in places) / 12
        along = torch.stack([torch.stack([key @ query / query.norm() for key in tokens]) / unit for query in tokens])
        torch.testing.assert_close(found, (along / 0.5).exp() / (along / 0.5).exp().sum(1, keepdim=True))
    torch.testing.assert_close(cls_attention(attention).flatten(1), attention.weights[:, 0, 0, 1:])
    torch.testing.assert_close(similarity(7 * features).weights, attention.weights)


def test_a_network_without_attention_shows_its_similarity_and_says_so():
    torch.manual_seed(0)
    images = torch.randn(1, 3, 64, 96)
    attention, note = attention_or_similarity(build_backbone("resnet18", image_size=64).eval(), images, -1)
    assert attention.grid == (2, 3) and "no attention" in note
    backbone = build_backbone("vit_micro", image_size=64).eval()
    attention, note = attention_or_similarity(backbone, images, 2)
    assert note == ""
    torch.testing.assert_close(attention.weights, backbone.attention(images, 2).weights)
    with pytest.raises(UsageError, match="block=4"):
        attention_or_similarity(backbone, images, 4)
    with pytest.raises(UsageError, match="block=1: resnet18 has no attention"):
        attention_or_similarity(build_backbone("resnet18", image_size=64), images, 1)
