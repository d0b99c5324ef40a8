"""The bias on another grid against the cubic kernel written out, and against distances that it should keep."""

import copy
import math

import pytest
import torch

from dino_ssl.models.position_bias import PositionBias, resize_bias


def cubic(x):
    """Keys' kernel with a = -0.75, as PyTorch has it."""
    x, a = abs(x), -0.75
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0


def line(old, new):
    """What each of `new` places on a line takes from `old` ones; beyond the ends the last one goes on."""
    matrix = torch.zeros(new, old, dtype=torch.float64)
    for i in range(new):
        center = (i + 0.5) * old / new - 0.5
        for j in range(math.floor(center) - 1, math.floor(center) + 3):
            matrix[i, min(max(j, 0), old - 1)] += cubic(center - j)
    return matrix


def plane(old, new):
    return torch.kron(line(old[0], new[0]), line(old[1], new[1]))


@pytest.mark.parametrize(
    ("queries", "keys"),
    [
        (((8, 8), (12, 12)), ((2, 2), (3, 3))),
        (((8, 8), (4, 12)), ((4, 4), (2, 6))),
        (((6, 4), (6, 4)), ((3, 2), (5, 2))),
        (((4, 4), (8, 4)), ((1, 1), (2, 1))),
    ],
)
def test_a_bias_is_resampled_over_the_grid_of_queries_and_then_over_that_of_keys(queries, keys):
    torch.manual_seed(0)
    bias = torch.randn(2, math.prod(queries[0]), math.prod(keys[0]), dtype=torch.float64)
    expected = plane(*queries) @ bias @ plane(*keys).mT
    torch.testing.assert_close(resize_bias(bias, queries=queries, keys=keys), expected)


def test_the_size_it_was_made_for_is_the_table_itself():
    bias = PositionBias(2, (4, 6), (2, 3))
    assert bias((4, 6), (2, 3)) is bias.weight


def distances(queries, keys):
    """A smooth table: for each query and key a bump over their offset, in shares of the picture."""

    def places(grid):
        rows, columns = ((torch.arange(n, dtype=torch.float64) + 0.5) / n for n in grid)
        return torch.cartesian_prod(rows, columns)

    offsets = places(queries)[:, None] - places(keys)[None]
    return torch.exp(-(offsets**2).sum(-1) / 0.1)[None] + offsets[None, ..., 0]


@pytest.mark.parametrize("size", [96, 384])
@pytest.mark.parametrize("stride", [4, 8, 16, 32])
def test_a_smooth_bias_of_224_pixels_keeps_its_shape_at_other_sizes(stride, size):
    def grids(pixels):
        return (pixels // stride,) * 2, (pixels // 32,) * 2

    (queries, keys), (new_queries, new_keys) = grids(224), grids(size)
    resized = resize_bias(distances(queries, keys), queries=(queries, new_queries), keys=(keys, new_keys))
    expected = distances(new_queries, new_keys)
    assert (resized - expected).norm() / expected.norm() < 0.1


def test_the_table_learns_from_other_grids():
    bias = PositionBias(1, (4, 4), (2, 2)).double()
    queries, keys = ((4, 4), (2, 6)), ((2, 2), (1, 3))
    wanted = torch.randn(1, 12, 3, dtype=torch.float64)
    (bias(queries[1], keys[1]) * wanted).sum().backward()
    torch.testing.assert_close(bias.weight.grad, plane(*queries).mT @ wanted @ plane(*keys))


def test_evaluation_keeps_the_last_table_until_its_weights_change():
    torch.manual_seed(0)
    bias, other = PositionBias(1, (4, 4), (2, 2)).eval(), PositionBias(1, (4, 4), (2, 2))
    wish = ((6, 6), (3, 3))

    def fresh(module):
        return resize_bias(module.weight, queries=(module.queries, wish[0]), keys=(module.keys, wish[1]))

    with torch.no_grad():
        first = bias(*wish)
        assert bias(*wish) is first
        assert torch.equal(bias((2, 2), (1, 1)), bias((2, 2), (1, 1))) and torch.equal(bias(*wish), first)
        for change in (
            lambda: torch._foreach_lerp_([bias.weight], [other.weight], 0.5),
            lambda: bias.load_state_dict(other.state_dict()),
            lambda: bias.load_state_dict({"weight": other.weight * 2}, assign=True),
            bias.double,
        ):
            change()
            torch.testing.assert_close(bias(*wish), fresh(bias), rtol=0, atol=0)
        torch.testing.assert_close(copy.deepcopy(bias)(*wish), fresh(bias), rtol=0, atol=0)
        assert bias.train()(*wish) is not bias(*wish)
    assert bias.eval()(*wish).requires_grad
