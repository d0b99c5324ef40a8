"""Arrays that somebody else wrote become images in memory, or are refused by shape and type."""

from pathlib import Path

import numpy as np
import pytest
from opening import Malicious, pixels_of, problem, write_arrays

from dino_ssl.data.decoding import BrokenImage
from dino_ssl.data.sources import load

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 7])
def test_arrays_keep_their_channels(tmp_path: Path, channels: int) -> None:
    images = RNG.integers(0, 256, (5, 6, 7, channels), np.uint8)
    source = pixels_of(write_arrays(tmp_path, images, None))
    assert (source.labels, source.classes) == (None, ())
    for index in range(5):
        np.testing.assert_array_equal(source.raw(index), images[index])
        np.testing.assert_array_equal(load(source, index, channels=channels).pixels, images[index])


def test_classes_without_names_are_called_by_their_numbers(tmp_path: Path) -> None:
    source = pixels_of(write_arrays(tmp_path, np.zeros((2, 4, 4, 3), np.uint8), [0, 2]))
    assert source.classes == ("0", "1", "2")


def test_grey_arrays_stay_grey_until_colour_is_asked_for(tmp_path: Path) -> None:
    images = RNG.integers(0, 256, (5, 6, 7), np.uint8)
    source = pixels_of(write_arrays(tmp_path, images, None))
    np.testing.assert_array_equal(source.raw(2), images[2][..., None])
    np.testing.assert_array_equal(load(source, 2, channels=1).pixels, images[2][..., None])
    np.testing.assert_array_equal(load(source, 2, channels=3).pixels, np.stack([images[2]] * 3, axis=-1))


def test_other_numbers_of_channels_are_not_converted(tmp_path: Path) -> None:
    source = pixels_of(write_arrays(tmp_path, np.zeros((1, 4, 4, 7), np.uint8), None))
    with pytest.raises(BrokenImage, match=r"7 channels where crops\.channels=3"):
        load(source, 0)


@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_are_mapped_and_not_read(tmp_path: Path, order: str) -> None:
    images = RNG.integers(0, 256, (5, 6, 7, 3), np.uint8)
    source = pixels_of(write_arrays(tmp_path, np.asarray(images, order=order), None))
    assert isinstance(source.images, np.memmap)
    assert not source.images.flags.writeable
    assert source.raw(1).flags.c_contiguous
    np.testing.assert_array_equal(source.raw(1), images[1])


def test_the_test_split_of_arrays(tmp_path: Path) -> None:
    write_arrays(tmp_path, np.zeros((5, 4, 4, 3), np.uint8), None)
    assert f"{tmp_path / 'x_test.npy'} does not exist" in problem(f"{tmp_path}:test")
    write_arrays(tmp_path, np.ones((2, 4, 4, 3), np.uint8), None, "test")
    assert pixels_of(f"{tmp_path}:test").images.tolist() == np.ones((2, 4, 4, 3)).tolist()
    assert "there is no val" in problem(f"{tmp_path}:val")


@pytest.mark.parametrize(
    ("images", "found"),
    [
        (np.zeros((2, 4, 4, 3), np.float32), "float32 [2, 4, 4, 3]"),
        (np.zeros((2, 3, 4, 4, 3), np.uint8), "uint8 [2, 3, 4, 4, 3]"),
        (np.zeros((4, 4), np.uint8), "uint8 [4, 4]"),
        (np.zeros((0, 4, 4, 3), np.uint8), "uint8 [0, 4, 4, 3]"),
    ],
)
def test_arrays_of_another_shape_or_type_are_refused(tmp_path: Path, images: np.ndarray, found: str) -> None:
    message = problem(write_arrays(tmp_path, images, None))
    assert f"x_train.npy: images are {found}; they must be uint8 [N, H, W, C]" in message


@pytest.mark.parametrize("labels", [[0], [0.5, 1.0], [0, -1]])
def test_labels_that_do_not_fit_are_refused(tmp_path: Path, labels: list[int]) -> None:
    assert "labels" in problem(write_arrays(tmp_path, np.zeros((2, 4, 4, 3), np.uint8), labels))


def test_arrays_that_would_run_code_or_are_damaged_are_refused(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    np.save(tmp_path / "x_train.npy", np.array([Malicious(victim)], object), allow_pickle=True)
    assert "x_train.npy is no array" in problem(tmp_path)
    assert not victim.exists()
    (tmp_path / "x_train.npy").write_bytes(b"")
    assert "x_train.npy is no array" in problem(tmp_path)


def test_an_array_that_is_cut_is_refused(tmp_path: Path) -> None:
    file = write_arrays(tmp_path, np.zeros((50, 4, 4, 3), np.uint8), None) / "x_train.npy"
    file.write_bytes(file.read_bytes()[:1000])
    assert "x_train.npy is no array" in problem(tmp_path)


def test_an_archive_in_place_of_an_array_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", a=np.zeros(1))
    (tmp_path / "x.npz").rename(tmp_path / "x_train.npy")
    assert "x_train.npy is no array" in problem(tmp_path)


def test_the_fingerprint_of_pixels_follows_every_pixel(tmp_path: Path) -> None:
    images = RNG.integers(0, 255, (5, 4, 6, 3), np.uint8)
    one = pixels_of(write_arrays(tmp_path / "1", images, None)).fingerprint()
    assert one == pixels_of(write_arrays(tmp_path / "2", images, [0, 1, 2, 3, 4])).fingerprint()
    assert one != pixels_of(write_arrays(tmp_path / "3", images.reshape(5, 6, 4, 3), None)).fingerprint()
    images[4, 3, 5, 2] += 1
    assert one != pixels_of(write_arrays(tmp_path / "4", images, None)).fingerprint()
