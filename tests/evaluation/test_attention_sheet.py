import numpy as np
import pytest
import torch

from dino_ssl.evaluation.attention_sheet import Look, heads_sheet, layers_sheet
from dino_ssl.evaluation.heat import coloured, unit_range
from dino_ssl.evaluation.tiles import GAP, MARGIN, Row, Tile, fitted, page


def look(height, width, **fields):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    return Look(pixels, "folder/image.jpg", ["vit_small/16 and so on"], **fields)


def maps(*shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


def places(sheet, tile):
    """Left and top corner of every place where a picture stands on a sheet, pixel for pixel."""
    pixels = np.asarray(sheet)
    height, width, _ = tile.shape
    corners = np.argwhere((pixels[: -height + 1, : -width + 1] == tile[0, 0]).all(-1))
    return [(x, y) for y, x in corners.tolist() if (pixels[y : y + height, x : x + width] == tile).all()]


@pytest.mark.parametrize("grid", [(30, 40), (40, 30), (5, 90)])
def test_each_head_stands_on_the_sheet_with_squares_of_one_size(grid):
    weights = maps(6, *grid)
    sheet = heads_sheet(look(14 * grid[0], 14 * grid[1]), weights, range(6))
    corners = []
    for head in weights[[0, 1, 5]]:
        colours = coloured(unit_range(head))
        scale = max(1, 213 // grid[1])
        corners += places(sheet, colours.repeat(scale, 0).repeat(scale, 1))
    left, top = corners[0]
    step = scale * grid[1] + GAP
    assert corners == [(left, top), (left + step, top), (left + 5 * step, top)]


@pytest.mark.parametrize("heads", [1, 2, 3, 6, 12, 16])
@pytest.mark.parametrize("threshold", [None, 0.6])
@pytest.mark.parametrize("side", [(420, 560), (560, 420), (64, 64), (16, 1600), (1600, 16)])
def test_a_sheet_has_the_width_of_a_screen_for_any_image(heads, threshold, side):
    sheet = heads_sheet(look(*side, threshold=threshold), maps(heads, side[0] // 16, side[1] // 16), range(heads))
    assert sheet.width <= 1500
    layers = layers_sheet(
        look(*side), list(maps(3, heads, side[0] // 16, side[1] // 16)), [0, 1, 2], [range(heads)] * 3
    )
    assert layers.width <= 2500


def test_the_layers_stand_below_each_other_with_all_their_heads():
    weights = maps(3, 2, 6, 8)
    sheet = layers_sheet(look(96, 128), list(weights), [1, 5, 11], [[0, 1]] * 3)
    corners = []
    for block in weights:
        tiles = [coloured(unit_range(each)).repeat(40, 0).repeat(40, 1) for each in (*block, block.mean(0))]
        corners.append([places(sheet, tile)[0] for tile in tiles])
    tops = [{y for _, y in block} for block in corners]
    assert all(len(top) == 1 for top in tops) and tops == sorted(tops, key=max)
    assert len({tuple(x for x, _ in block) for block in corners}) == 1  # one column for each head


def test_a_layer_with_fewer_heads_leaves_their_places_empty():
    first, second = maps(3, 6, 8).split((1, 2))
    sheet = layers_sheet(look(96, 128), [first, second], [0, 1], [[0], [0, 1]])
    tiles = [coloured(unit_range(each)).repeat(40, 0).repeat(40, 1) for each in (first[0], *second)]
    (alone, below, last) = (places(sheet, tile)[-1] for tile in tiles)
    assert alone[0] == below[0] < last[0]
    beside = np.asarray(sheet)[alone[1] : alone[1] + 240, last[0] : last[0] + 320]
    assert (beside == 255).all()


def test_the_patch_that_looks_is_framed():
    plain, framed = (heads_sheet(look(96, 128, patch=patch), maps(1, 6, 8), [0]) for patch in (None, (2, 3)))
    width = (1400 + GAP) // 3 - GAP
    changed = np.argwhere((np.asarray(plain) != np.asarray(framed)).any(-1))
    changed = changed[changed[:, 0] < changed[:, 0].min() + 2 * width // 8]  # the frame, not the words below
    middle = (changed.max(0) + changed.min(0)) / 2 - np.array([0, MARGIN])
    assert abs(middle[1] - 3.5 * width / 8) <= 2


def test_few_pixels_are_enlarged_as_squares():
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
    assert (fitted(pixels, 40, 60) == pixels.repeat(10, 0).repeat(10, 1)).all()


@pytest.mark.parametrize("title", ["x" * 4000, "a\nb\t\x00", "\udcff odd", "中文 ünï <b>"])
def test_any_title_fits_on_the_page(title):
    tile = Tile(np.zeros((50, 700, 3), np.uint8), title)
    sheet = page(title, [title], [Row([tile, tile], heading="heads", label="block 3")], legend=("low", "high"))
    assert np.asarray(sheet)[:, -MARGIN:].min() == 255
