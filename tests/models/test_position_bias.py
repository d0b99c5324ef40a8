"""The bias on another grid against the cubic kernel written out, and against distances that it should keep."""

import copy
import math

import pytest
import torch

from dino_ssl.models.position_bias import FreeBias, RelativeBias, resize_bias


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
    bias = FreeBias(2, (4, 6), (2, 3))
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
    bias = FreeBias(1, (4, 4), (2, 2)).double()
    queries, keys = ((4, 4), (2, 6)), ((2, 2), (1, 3))
    wanted = torch.randn(1, 12, 3, dtype=torch.float64)
    (bias(queries[1], keys[1]) * wanted).sum().backward()
    torch.testing.assert_close(bias.weight.grad, plane(*queries).mT @ wanted @ plane(*keys))


RELATIVE = [((4, 6), (2, 3)), ((8, 8), (1, 1)), ((3, 5), (3, 5)), ((8, 16), (2, 4))]


def ways(queries, keys):
    """Rows and columns from each key's centre to each query, in places, one by one."""
    side = queries[0] // keys[0]
    found = torch.empty(math.prod(queries), math.prod(keys), 2, dtype=torch.float64)
    for i in range(len(found)):
        for j in range(found.shape[1]):
            for axis, place, key in zip((0, 1), divmod(i, queries[1]), divmod(j, keys[1]), strict=True):
                found[i, j, axis] = place - (side * (key + 0.5) - 0.5)
    return found


@pytest.mark.parametrize(("queries", "keys"), RELATIVE)
def test_a_relative_bias_has_one_number_for_each_way_from_a_keys_centre_to_a_query(queries, keys):
    bias = RelativeBias(2, queries, keys).double()
    found = ways(queries, keys)
    assert bias.bias.shape[1:] == tuple(len(found[..., axis].unique()) for axis in (0, 1))
    table = bias(queries, keys)
    for way in found.flatten(0, 1).unique(dim=0):
        row, column = (int(step + (number - 1) / 2) for step, number in zip(way, bias.bias.shape[1:], strict=True))
        numbers = table[:, (found == way).all(-1)]
        torch.testing.assert_close(numbers, bias.bias[:, row, column, None].expand_as(numbers), rtol=0, atol=0)


@pytest.mark.parametrize("size", [(2, 2), (3, 5), (9, 4)])
@pytest.mark.parametrize("side", [1, 2, 4])
def test_on_other_grids_a_way_is_the_same_share_of_the_picture(side, size):
    torch.manual_seed(0)
    made, keys = (4 * side, 6 * side), size
    queries = tuple(side * number for number in size)
    bias, taken = RelativeBias(2, made, (4, 6)).double(), []
    for number, old, new, num_keys in zip(bias.bias.shape[1:], made, queries, keys, strict=True):
        weights = torch.zeros(new, num_keys, number, dtype=torch.float64)
        for query in range(new):
            for key in range(num_keys):
                index = (query - (side * (key + 0.5) - 0.5)) * old / new + (number - 1) / 2
                for place in range(math.floor(index) - 1, math.floor(index) + 3):
                    weights[query, key, min(max(place, 0), number - 1)] += cubic(index - place)
        taken.append(weights)
    expected = torch.einsum("hrc,ijr,klc->hikjl", bias.bias, *taken).flatten(3).flatten(1, 2)
    torch.testing.assert_close(bias(queries, keys), expected)


@pytest.mark.parametrize("size", [96, 384])
@pytest.mark.parametrize("stride", [4, 8, 16, 32])
def test_a_smooth_relative_bias_of_224_pixels_keeps_its_shape_at_other_sizes(stride, size):
    def grids(pixels):
        return (pixels // stride,) * 2, (pixels // 32,) * 2

    bias, places = RelativeBias(1, *grids(224)).double(), 224 // stride
    number = bias.bias.shape[1]
    share = (torch.arange(number) - (number - 1) / 2) / places
    rows, columns = torch.meshgrid(share, share, indexing="ij")
    bias.bias.data[0] = torch.exp(-(rows**2 + columns**2) / 0.1) + rows
    torch.testing.assert_close(bias(*grids(224)), distances(*grids(224)), rtol=1e-5, atol=1e-6)
    expected = distances(*grids(size))
    assert (bias(*grids(size)) - expected).norm() / expected.norm() < 0.1


def test_gradients_of_a_relative_bias_are_those_of_differences_on_its_own_grid_and_on_others():
    bias = RelativeBias(2, (4, 8), (1, 2)).double()

    def table(learnt, *grids):
        return torch.func.functional_call(bias, {"bias": learnt}, grids)

    for queries, keys in (((4, 8), (1, 2)), ((8, 4), (2, 1))):
        assert torch.autograd.gradcheck(table, (bias.bias, queries, keys))


@pytest.mark.parametrize("kind", [FreeBias, RelativeBias])
def test_evaluation_keeps_the_last_table_until_its_weights_change(kind):
    torch.manual_seed(0)
    bias, other = kind(1, (4, 4), (2, 2)).eval(), kind(1, (4, 4), (2, 2))
    (name,) = bias.state_dict()
    wish = ((6, 6), (3, 3))

    def fresh(module):
        return module.table(*wish)

    with torch.no_grad():
        first = bias(*wish)
        assert bias(*wish) is first
        assert torch.equal(bias((2, 2), (1, 1)), bias((2, 2), (1, 1))) and torch.equal(bias(*wish), first)
        for change in (
            lambda: torch._foreach_lerp_([bias.learnt()], [other.learnt()], 0.5),
            lambda: bias.load_state_dict(other.state_dict()),
            lambda: bias.load_state_dict({name: other.learnt() * 2}, assign=True),
            bias.double,
        ):
            before = bias(*wish)
            change()
            torch.testing.assert_close(bias(*wish), fresh(bias), rtol=0, atol=0)
            assert not torch.equal(bias(*wish), before)
        torch.testing.assert_close(copy.deepcopy(bias)(*wish), fresh(bias), rtol=0, atol=0)
        assert bias.train()(*wish) is not bias(*wish)
    assert bias.eval()(*wish).requires_grad
