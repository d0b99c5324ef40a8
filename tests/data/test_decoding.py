"""Every readable image becomes RGB as PIL converts it; every other one is named with its reason."""

import io
import pickle
import random
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dino_ssl.data import decoding
from dino_ssl.data.decoding import BrokenImage, decode, read

NOISE = np.random.default_rng(0).integers(0, 256, (24, 16, 3), np.uint8)


def encoded(image: Image.Image, file_format: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, file_format, **options)
    return stream.getvalue()


def reason(data: bytes) -> str:
    with pytest.raises(BrokenImage) as caught:
        decode(data, "x.jpg")
    assert caught.value.path == "x.jpg"
    return caught.value.reason


@pytest.mark.parametrize("file_format", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_formats_give_back_their_pixels(file_format: str) -> None:
    image = decode(encoded(Image.fromarray(NOISE), file_format), "x")
    assert image.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(image), NOISE)


@pytest.mark.parametrize("file_format", ["JPEG", "WEBP", "GIF", "MPO"])
def test_lossy_formats_equal_pil(file_format: str) -> None:
    data = encoded(Image.fromarray(NOISE), file_format)
    expected = Image.open(io.BytesIO(data)).convert("RGB")
    np.testing.assert_array_equal(np.asarray(decode(data, "x")), np.asarray(expected))


@pytest.mark.parametrize(
    ("mode", "file_format"),
    [("L", "PNG"), ("1", "PNG"), ("P", "GIF"), ("CMYK", "JPEG"), ("CMYK", "TIFF"), ("YCbCr", "JPEG")],
)
def test_other_modes_are_converted_as_pil_converts_them(mode: str, file_format: str) -> None:
    data = encoded(Image.fromarray(NOISE).convert(mode), file_format)
    expected = Image.open(io.BytesIO(data)).convert("RGB")
    np.testing.assert_array_equal(np.asarray(decode(data, "x")), np.asarray(expected))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_dropped_without_blending(mode: str) -> None:
    image = Image.fromarray(NOISE).convert(mode)
    image.putalpha(0)
    expected = NOISE if mode == "RGBA" else np.asarray(Image.fromarray(NOISE).convert("L").convert("RGB"))
    np.testing.assert_array_equal(np.asarray(decode(encoded(image, "PNG"), "x")), expected)


def test_a_palette_with_transparent_entries_gives_its_colors_and_no_warning() -> None:
    image = Image.fromarray(NOISE).quantize(8)
    data = encoded(image, "PNG", transparency=bytes(range(8)))
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        decoded = decode(data, "x")
    np.testing.assert_array_equal(np.asarray(decoded), np.asarray(image.convert("RGB")))
    assert not seen


@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
def test_sixteen_bit_grey_is_scaled_and_not_clipped(file_format: str) -> None:
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    grey = np.asarray(decode(encoded(Image.fromarray(values), file_format), "x"))
    expected = np.rint(values * (255 / 65535)).astype(np.uint8)
    np.testing.assert_array_equal(grey, np.stack([expected] * 3, axis=-1))


def test_sixteen_bit_pgm_is_scaled_too() -> None:
    data = b"P5\n4 1\n65535\n" + np.array([0, 257, 32896, 65535], ">u2").tobytes()
    np.testing.assert_array_equal(np.asarray(decode(data, "x"))[0, :, 0], [0, 1, 128, 255])


@pytest.mark.parametrize("values", [np.full((2, 2), 0.5, np.float32), np.full((2, 2), 70_000, np.int32)])
def test_pixels_without_a_known_range_are_refused(values: np.ndarray) -> None:
    assert "no known range" in reason(encoded(Image.fromarray(values), "TIFF"))


def test_the_exif_orientation_is_not_applied_as_in_the_original() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: a quarter turn
    data = encoded(Image.fromarray(NOISE), "JPEG", exif=exif.tobytes())
    assert decode(data, "x").size == (16, 24)


def test_an_empty_file_is_called_empty() -> None:
    assert reason(b"") == "empty file (0 bytes)"


@pytest.mark.parametrize("data", [b"hello", b"\0" * 1000, b"\xff\xd8\xff", b"%!PS-Adobe-3.0 EPSF-3.0\n"])
def test_what_is_no_image_is_said_to_be_none(data: bytes) -> None:
    assert "not an image" in reason(data)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF", "PPM"])
def test_a_truncated_image_is_broken(file_format: str) -> None:
    data = encoded(Image.fromarray(np.tile(NOISE, (8, 8, 1))), file_format)
    assert reason(data[: len(data) // 2])


def test_postscript_is_never_handed_to_an_interpreter() -> None:
    data = encoded(Image.fromarray(NOISE), "EPS")
    assert "not an image" in reason(data)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF", "PPM"])
def test_flipped_bytes_give_an_image_or_a_reason(file_format: str) -> None:
    data = encoded(Image.fromarray(NOISE), file_format)
    rng = random.Random(0)
    for _ in range(150):
        damaged = bytearray(data)
        for _ in range(rng.randint(1, 4)):
            damaged[rng.randrange(min(len(data), 200))] = rng.randrange(256)
        try:
            assert decode(bytes(damaged), "x").mode == "RGB"
        except BrokenImage as error:
            assert error.reason


def test_an_image_above_the_limit_is_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(Image.new("L", (100, 100)), "PNG")
    monkeypatch.setattr(decoding, "MAX_PIXELS", 9_999)
    assert reason(data) == "larger than 9,999 pixels"
    monkeypatch.setattr(decoding, "MAX_PIXELS", 10_000)
    assert decode(data, "x").size == (100, 100)


def test_a_decompression_bomb_is_refused_by_its_header_even_where_pil_has_no_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bomb = b"P5\n100000 100000\n255\n"
    assert reason(bomb) == "larger than 178,956,970 pixels"
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert reason(bomb) == "larger than 178,956,970 pixels"


def test_a_size_at_which_pil_only_warns_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 300)  # NOISE has 384
    assert decode(encoded(Image.fromarray(NOISE), "PNG"), "x").size == (16, 24)


def test_read_decodes_a_file(tmp_path: Path) -> None:
    Image.fromarray(NOISE).save(tmp_path / "a.png")
    np.testing.assert_array_equal(np.asarray(read(tmp_path / "a.png")), NOISE)


def test_a_file_that_vanished_is_broken(tmp_path: Path) -> None:
    with pytest.raises(BrokenImage, match=r"gone\.png: the file does not exist"):
        read(tmp_path / "gone.png")


def test_a_folder_named_like_an_image_is_broken(tmp_path: Path) -> None:
    with pytest.raises(BrokenImage, match="cannot be opened: Is a directory"):
        read(tmp_path)


def test_a_path_with_a_zero_byte_is_broken(tmp_path: Path) -> None:
    with pytest.raises(BrokenImage, match="cannot be opened"):
        read(tmp_path / "a\0.png")


def test_a_name_that_is_no_utf_8_can_still_be_written(tmp_path: Path) -> None:
    with pytest.raises(BrokenImage) as caught:
        read(tmp_path / "caf\udce9.png")
    assert str(caught.value).encode().startswith(bytes(tmp_path) + rb"/caf\xe9.png")


def test_a_broken_image_survives_the_way_from_a_worker_process() -> None:
    copy = pickle.loads(pickle.dumps(BrokenImage("a.jpg", "truncated")))
    assert (copy.path, copy.reason, str(copy)) == ("a.jpg", "truncated", "a.jpg: truncated")
