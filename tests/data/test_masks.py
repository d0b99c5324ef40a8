import numpy as np
import pytest
from PIL import Image

from dino_ssl.data.masks import Mask, default_palette, read_mask, write_mask
from dino_ssl.errors import UsageError

NUMBERS = np.array([[0, 1, 2], [2, 7, 0]], np.uint8)


def save(path, values, mode=None):
    image = Image.fromarray(np.array(values, np.uint8))
    (image if mode is None else image.convert(mode)).save(path)
    return path


def test_a_palette_mask_comes_back_as_it_was_written(tmp_path):
    palette = np.random.default_rng(0).integers(0, 256, (256, 3), np.uint8)
    write_mask(tmp_path / "mask.png", Mask(NUMBERS, palette))
    with Image.open(tmp_path / "mask.png") as image:
        assert image.mode == "P"
        assert np.array_equal(np.array(image), NUMBERS)
        assert np.array_equal(np.array(image.convert("RGB")), palette[NUMBERS])
    mask = read_mask(tmp_path / "mask.png")
    assert np.array_equal(mask.numbers, NUMBERS) and np.array_equal(mask.palette, palette)


def test_the_default_palette_is_that_of_davis():
    known = {
        0: (0, 0, 0),
        1: (128, 0, 0),
        2: (0, 128, 0),
        3: (128, 128, 0),
        4: (0, 0, 128),
        8: (64, 0, 0),
        255: (224, 224, 192),
    }
    assert {number: tuple(default_palette()[number].tolist()) for number in known} == known


def test_void_pixels_are_background(tmp_path):
    void = np.where(NUMBERS == 7, 255, NUMBERS)
    write_mask(tmp_path / "mask.png", Mask(void.astype(np.uint8), default_palette()))
    assert read_mask(tmp_path / "mask.png").numbers.tolist() == [[0, 1, 2], [2, 0, 0]]
    assert read_mask(save(tmp_path / "grey.png", void)).numbers.tolist() == [[0, 1, 2], [2, 0, 0]]


@pytest.mark.parametrize("mode", ["1", "L"])
def test_a_black_and_white_drawing_is_one_object(tmp_path, mode):
    path = save(tmp_path / "mask.png", [[0, 255], [255, 0]], mode)
    assert read_mask(path).numbers.tolist() == [[0, 1], [1, 0]]


@pytest.mark.parametrize("black", [True, False])
def test_each_colour_of_a_drawing_is_an_object(tmp_path, black):
    red, green = (200, 0, 0), (0, 90, 3)
    pixels = [[red, green], [green, (0, 0, 0) if black else red]]
    mask = read_mask(save(tmp_path / "mask.png", pixels), colours=True)
    assert mask.numbers.tolist() == [[2, 1], [1, 0 if black else 2]]
    assert mask.palette[1:3].tolist() == [list(green), list(red)]


def test_colours_unasked_or_too_many_of_them_are_refused(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    path = save(tmp_path / "photo.png", noise)
    with pytest.raises(UsageError, match=r"photo.png is a colour image \(RGB\)"):
        read_mask(path)
    with pytest.raises(UsageError, match=r"1,[56]\d\d colours; a mask has black and one colour for each object"):
        read_mask(path, colours=True)


def test_what_is_no_mask_is_refused_by_name(tmp_path):
    (tmp_path / "mask.png").write_bytes(b"\x89PNG\r\n\x1a\n nothing")
    with pytest.raises(UsageError, match=r"mask.png is no mask that can be read"):
        read_mask(tmp_path / "mask.png")
    with pytest.raises(UsageError, match=r"none.png does not exist"):
        read_mask(tmp_path / "none.png")
