"""Every readable image becomes the pixels that a viewer shows; every other one is named with its reason."""

import io
import os
import pickle
import random
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps

from dino_ssl.data import decoding
from dino_ssl.data.decoding import BrokenImage, decode, read, shrink_factor

NOISE = np.random.default_rng(0).integers(0, 256, (24, 16, 3), np.uint8)
Y, X = np.mgrid[0:203, 0:301]
SMOOTH = np.stack([X * 0.8, Y * 1.2, (X + Y) % 256], axis=-1).astype(np.uint8)
FORMATS = ["JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF", "PPM"]


def encoded(image: Image.Image, file_format: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, file_format, **options)
    return stream.getvalue()


def by_pil(data: bytes, mode: str = "RGB") -> np.ndarray:
    """The oracle."""
    with Image.open(io.BytesIO(data)) as image:
        pixels = np.asarray(image.convert(mode))
    return pixels if pixels.ndim == 3 else pixels[..., None]


def pixels_of(data: bytes, channels: int = 3) -> np.ndarray:
    decoded = decode(data, "x", channels=channels)
    assert decoded.pixels.shape == (decoded.height, decoded.width, channels)
    return decoded.pixels


def reason(data: bytes, channels: int = 3) -> str:
    with pytest.raises(BrokenImage) as caught:
        decode(data, "x.jpg", channels=channels)
    assert caught.value.path == "x.jpg"
    return caught.value.reason


# -- formats and modes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("file_format", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_formats_give_back_their_pixels(file_format: str) -> None:
    np.testing.assert_array_equal(pixels_of(encoded(Image.fromarray(NOISE), file_format)), NOISE)


@pytest.mark.parametrize("file_format", ["JPEG", "WEBP", "GIF", "MPO"])
def test_lossy_formats_equal_pil(file_format: str) -> None:
    data = encoded(Image.fromarray(NOISE), file_format)
    np.testing.assert_array_equal(pixels_of(data), by_pil(data))


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize(("channels", "mode"), [(3, "RGB"), (1, "L")])
def test_every_kind_of_jpeg_equals_pil(subsampling: str, progressive: bool, channels: int, mode: str) -> None:
    data = encoded(Image.fromarray(SMOOTH), "JPEG", subsampling=subsampling, progressive=progressive)
    with Image.open(io.BytesIO(data)) as image:
        image.draft(mode, None)  # luma as it is stored, not from the colours
        expected = np.asarray(image.convert(mode)).reshape(203, 301, channels)
    np.testing.assert_array_equal(pixels_of(data, channels), expected)


@pytest.mark.parametrize(
    ("mode", "file_format"),
    [("L", "PNG"), ("L", "JPEG"), ("1", "PNG"), ("P", "GIF"), ("P", "PNG"), ("CMYK", "JPEG"), ("CMYK", "TIFF")],
)
@pytest.mark.parametrize(("channels", "wanted"), [(3, "RGB"), (1, "L")])
def test_other_modes_are_converted_as_pil_converts_them(
    mode: str, file_format: str, channels: int, wanted: str
) -> None:
    data = encoded(Image.fromarray(NOISE).convert(mode), file_format)
    np.testing.assert_array_equal(pixels_of(data, channels), by_pil(data, wanted))


@pytest.mark.parametrize(
    ("mode", "num_bands"), [("L", 1), ("LA", 2), ("RGB", 3), ("RGBA", 4), ("CMYK", 4), ("P", 3), ("1", 1)]
)
@pytest.mark.parametrize("channels", [2, 4, 5])
def test_more_channels_than_three_have_to_be_there(mode: str, num_bands: int, channels: int) -> None:
    image = Image.fromarray(NOISE).convert(mode)
    data = encoded(image, "TIFF")
    if channels == num_bands:
        np.testing.assert_array_equal(pixels_of(data, channels), np.asarray(image))
    else:
        assert reason(data, channels) == f"{num_bands} channels where crops.channels={channels}"


def test_pixels_of_arrays_keep_their_channels_or_are_grey_or_colour() -> None:
    grey = NOISE[..., :1]
    np.testing.assert_array_equal(decode(grey, "x", channels=1).pixels, grey)
    np.testing.assert_array_equal(decode(grey, "x").pixels, np.repeat(grey, 3, axis=2))
    expected = np.asarray(Image.fromarray(NOISE).convert("L"))[..., None]
    np.testing.assert_array_equal(decode(NOISE, "x", channels=1).pixels, expected)
    with pytest.raises(BrokenImage, match=r"2 channels where crops\.channels=3"):
        decode(NOISE[..., :2], "x")


@pytest.mark.parametrize("file_format", ["PNG", "WEBP"])
@pytest.mark.parametrize("alpha", [0, 100, 255])
def test_transparency_lies_on_white(file_format: str, alpha: int) -> None:
    image = Image.fromarray(NOISE)
    image.putalpha(alpha)
    expected = NOISE * (alpha / 255) + 255 * (1 - alpha / 255)
    found = pixels_of(encoded(image, file_format, lossless=True))
    np.testing.assert_allclose(found, expected, atol=1)


def test_grey_with_transparency_lies_on_white_too() -> None:
    image = Image.fromarray(NOISE).convert("LA")
    image.putalpha(0)
    for channels in (1, 3):
        np.testing.assert_array_equal(pixels_of(encoded(image, "PNG"), channels), 255)


def test_a_palette_with_transparent_entries_lies_on_white_without_a_warning() -> None:
    image = Image.fromarray(NOISE).quantize(8)
    alpha = np.arange(0, 256, 32)
    data = encoded(image, "PNG", transparency=bytes(alpha.tolist()))
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        found = pixels_of(data)
    share = alpha[np.asarray(image)][..., None] / 255
    np.testing.assert_allclose(found, np.asarray(image.convert("RGB")) * share + 255 * (1 - share), atol=1)
    assert not seen


def test_one_transparent_colour_lies_on_white() -> None:
    data = encoded(Image.fromarray(NOISE), "PNG", transparency=tuple(NOISE[0, 0].tolist()))
    expected = NOISE.copy()
    expected[0, 0] = 255
    np.testing.assert_array_equal(pixels_of(data), expected)


@pytest.mark.parametrize("file_format", ["GIF", "PNG", "WEBP", "TIFF"])
def test_of_several_frames_the_first_counts(file_format: str) -> None:
    first, second = (Image.new("RGB", (8, 8), color) for color in ("red", "blue"))
    data = encoded(first, file_format, save_all=True, append_images=[second], lossless=True)
    np.testing.assert_array_equal(pixels_of(data), np.asarray(first))


@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bit_grey_is_scaled_and_not_clipped(file_format: str, channels: int) -> None:
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    expected = np.rint(values * (255 / 65535)).astype(np.uint8)
    found = pixels_of(encoded(Image.fromarray(values), file_format), channels)
    np.testing.assert_array_equal(found, np.stack([expected] * channels, axis=-1))


def test_sixteen_bit_pgm_is_scaled_too() -> None:
    data = b"P5\n4 1\n65535\n" + np.array([0, 257, 32896, 65535], ">u2").tobytes()
    np.testing.assert_array_equal(pixels_of(data)[0, :, 0], [0, 1, 128, 255])


@pytest.mark.parametrize("values", [np.full((2, 2), 0.5, np.float32), np.full((2, 2), 70_000, np.int32)])
def test_pixels_without_a_known_range_are_refused(values: np.ndarray) -> None:
    assert "no known range" in reason(encoded(Image.fromarray(values), "TIFF"))


# -- orientation -----------------------------------------------------------------------------------------------

UPRIGHT = [
    lambda a: a,
    np.fliplr,
    lambda a: np.rot90(a, 2),
    np.flipud,
    lambda a: a.swapaxes(0, 1),
    lambda a: np.rot90(a, -1),
    lambda a: np.rot90(a, 2).swapaxes(0, 1),
    np.rot90,
]
"""What turns an image of orientation 1, 2, ... upright."""


def exif_of(orientation: object, byte_order: str = "<") -> bytes:
    exif = Image.Exif()
    exif.endian = byte_order
    exif[0x010F] = "a maker"
    exif[0x0112] = orientation
    return exif.tobytes()


@pytest.mark.parametrize("file_format", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_as_a_viewer_turns_them(orientation: int, file_format: str) -> None:
    data = encoded(Image.fromarray(NOISE), file_format, exif=exif_of(orientation), lossless=True)
    np.testing.assert_array_equal(pixels_of(data), UPRIGHT[orientation - 1](NOISE))


@pytest.mark.parametrize("byte_order", ["<", ">"])
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("enough_pixels", [float("inf"), 0.0])
def test_jpegs_are_turned_as_pil_turns_them(orientation: int, byte_order: str, enough_pixels: float) -> None:
    data = encoded(Image.fromarray(SMOOTH), "JPEG", exif=exif_of(orientation, byte_order))
    decoded = decode(data, "x", enough_pixels=enough_pixels)
    with Image.open(io.BytesIO(data)) as image:
        if enough_pixels == 0:
            image.draft("RGB", (image.width // 8, image.height // 8))
        expected = np.asarray(ImageOps.exif_transpose(image))
    np.testing.assert_array_equal(decoded.pixels, expected)
    assert (decoded.width, decoded.height) == ((203, 301) if orientation >= 5 else (301, 203))
    assert decoded.pixels.flags.c_contiguous


def test_sixteen_bit_and_palette_images_are_turned_too() -> None:
    grey = Image.fromarray(NOISE[..., 0].astype(np.uint16) * 257)
    np.testing.assert_array_equal(
        pixels_of(encoded(grey, "PNG", exif=exif_of(6)), channels=1), np.rot90(NOISE[..., :1], -1)
    )
    palette = Image.fromarray(NOISE).quantize(8)
    expected = np.rot90(np.asarray(palette.convert("RGB")), -1)
    np.testing.assert_array_equal(pixels_of(encoded(palette, "PNG", exif=exif_of(6))), expected)


def segment(marker: int, content: bytes) -> bytes:
    return bytes([0xFF, marker]) + (len(content) + 2).to_bytes(2, "big") + content


def with_segments(jpeg: bytes, *segments: bytes) -> bytes:
    return jpeg[:2] + b"".join(segments) + jpeg[2:]


def test_the_orientation_may_stand_behind_other_metadata() -> None:
    data = encoded(Image.fromarray(SMOOTH), "JPEG")
    late = with_segments(data, segment(0xED, os.urandom(60_000)), b"\xff", segment(0xE1, exif_of(6)))
    np.testing.assert_array_equal(pixels_of(late), np.rot90(by_pil(data), -1))


@pytest.mark.parametrize(
    "content",
    [
        b"Exif\0\0",
        b"Exif\0\0II*\0",
        b"Exif\0\0garbage that is no TIFF header",
        b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"http://ns.adobe.com/xap/1.0/\0<x/>",
    ],
)
@pytest.mark.parametrize("channels", [3, 1])
def test_damaged_metadata_harm_no_pixel(content: bytes, channels: int) -> None:
    data = encoded(Image.fromarray(SMOOTH), "JPEG")
    expected = pixels_of(data, channels)
    damaged = with_segments(data, segment(0xE1, content))
    np.testing.assert_array_equal(pixels_of(damaged, channels), expected)
    with_warning = damaged.replace(b"\xff\xda", b"\0\0\xff\xda", 1)  # bytes before a marker: left to PIL
    np.testing.assert_array_equal(pixels_of(with_warning, channels).shape, expected.shape)


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_does_not_exist_is_ignored(orientation: int) -> None:
    data = encoded(Image.fromarray(SMOOTH), "JPEG", exif=exif_of(orientation))
    np.testing.assert_array_equal(pixels_of(data), by_pil(data))


def test_a_colour_profile_is_not_applied_as_in_the_original() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    data = encoded(Image.fromarray(NOISE), "PNG", icc_profile=profile)
    np.testing.assert_array_equal(pixels_of(data), NOISE)


# -- smaller ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("enough", "factor"), [(4096.0, 1), (1025.0, 1), (1024.0, 2), (256.0, 4), (64.0, 8), (0.0, 8)])
def test_an_image_is_halved_while_enough_pixels_are_left(enough: float, factor: int) -> None:
    assert shrink_factor(64, 64, enough) == factor
    decoded = decode(encoded(Image.new("RGB", (64, 64)), "JPEG"), "x", enough_pixels=enough)
    assert decoded.pixels.shape == (64 // factor, 64 // factor, 3)
    assert (decoded.width, decoded.height, decoded.scale()) == (64, 64, (1 / factor, 1 / factor))


@pytest.mark.parametrize("factor", [2, 4, 8])
@pytest.mark.parametrize(("channels", "mode"), [(3, "RGB"), (1, "L")])
def test_a_jpeg_is_shrunk_as_pils_draft_shrinks_it(factor: int, channels: int, mode: str) -> None:
    data = encoded(Image.fromarray(SMOOTH), "JPEG")
    decoded = decode(data, "x", channels=channels, enough_pixels=301 * 203 / factor**2)
    with Image.open(io.BytesIO(data)) as image:
        image.draft(mode, (301 // factor, 203 // factor))
        expected = np.asarray(image)
    np.testing.assert_array_equal(decoded.pixels, expected.reshape(decoded.pixels.shape))
    assert decoded.scale() == (-(-301 // factor) / 301, -(-203 // factor) / 203)


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "1", "CMYK", "RGBA"])
@pytest.mark.parametrize("factor", [2, 4])
def test_other_formats_are_shrunk_to_the_means_of_their_blocks(mode: str, factor: int) -> None:
    image = Image.fromarray(SMOOTH[:200, :300]).convert(mode)
    data = encoded(image, "TIFF" if mode == "CMYK" else "PNG")
    blocks = np.asarray(image.convert("RGB"), np.float64).reshape(200 // factor, factor, 300 // factor, factor, 3)
    found = decode(data, "x", enough_pixels=200 * 300 / factor**2).pixels
    np.testing.assert_allclose(found, blocks.mean(axis=(1, 3)), atol=0.51)


def test_arrays_are_not_shrunk() -> None:
    np.testing.assert_array_equal(decode(SMOOTH, "x", enough_pixels=0.0).pixels, SMOOTH)


# -- bad input -------------------------------------------------------------------------------------------------


def test_an_empty_file_is_called_empty() -> None:
    assert reason(b"") == "empty file (0 bytes)"


@pytest.mark.parametrize("data", [b"hello", b"\0" * 1000, b"\xff\xd8\xff", b"%!PS-Adobe-3.0 EPSF-3.0\n"])
def test_what_is_no_image_is_said_to_be_none(data: bytes) -> None:
    assert "not an image" in reason(data)


@pytest.mark.parametrize("file_format", FORMATS)
@pytest.mark.parametrize("channels", [3, 1])
def test_a_truncated_image_is_broken(file_format: str, channels: int) -> None:
    data = encoded(Image.fromarray(np.tile(NOISE, (8, 8, 1))), file_format)
    assert reason(data[: len(data) // 2], channels)


@pytest.mark.parametrize("cut", [2, 3, 20, 500])
def test_a_jpeg_without_its_end_is_broken_as_for_pil(cut: int) -> None:
    data = encoded(Image.fromarray(SMOOTH), "JPEG")[:-cut]
    with pytest.raises(OSError, match="truncated"):
        by_pil(data)
    assert "truncated" in reason(data)


def test_what_follows_the_end_of_a_jpeg_does_not_matter() -> None:
    data = encoded(Image.fromarray(SMOOTH), "JPEG")
    for garbage in (b"\0" * 10, os.urandom(5000), data):
        np.testing.assert_array_equal(pixels_of(data + garbage), by_pil(data))


def test_a_jpeg_at_which_the_decoder_only_warns_is_what_pil_makes_of_it() -> None:
    data = encoded(Image.fromarray(SMOOTH), "JPEG")
    odd = data.replace(b"\xff\xda", b"\0\1\2\xff\xda", 1)  # bytes before a marker
    flipped = bytearray(data)
    middle = len(data) // 2
    flipped[middle : middle + 4] = b"\x12\x34\x56\x78"
    for damaged in (odd, bytes(flipped)):
        np.testing.assert_array_equal(pixels_of(damaged), by_pil(damaged))


def test_postscript_is_never_handed_to_an_interpreter() -> None:
    assert "not an image" in reason(encoded(Image.fromarray(NOISE), "EPS"))


@pytest.mark.parametrize("file_format", FORMATS)
def test_flipped_bytes_give_an_image_or_a_reason(file_format: str) -> None:
    data = encoded(Image.fromarray(NOISE), file_format, exif=exif_of(6))
    rng = random.Random(0)
    for _ in range(150):
        damaged = bytearray(data)
        for _ in range(rng.randint(1, 4)):
            damaged[rng.randrange(min(len(data), 200))] = rng.randrange(256)
        try:
            assert pixels_of(bytes(damaged)).dtype == np.uint8
        except BrokenImage as error:
            assert error.reason


@pytest.mark.parametrize("file_format", ["PNG", "JPEG"])
def test_an_image_above_the_limit_is_not_decoded(monkeypatch: pytest.MonkeyPatch, file_format: str) -> None:
    data = encoded(Image.new("L", (100, 100)), file_format)
    monkeypatch.setattr(decoding, "MAX_PIXELS", 9_999)
    assert reason(data) == "larger than 9,999 pixels"
    monkeypatch.setattr(decoding, "MAX_PIXELS", 10_000)
    assert pixels_of(data).shape == (100, 100, 3)


def giant_jpeg() -> bytes:
    """A header that promises 65,500 x 65,500 pixels."""
    data = bytearray(encoded(Image.new("L", (8, 8)), "JPEG"))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = (65_500).to_bytes(2, "big") * 2
    return bytes(data)


@pytest.mark.parametrize("bomb", [b"P5\n100000 100000\n255\n", giant_jpeg()], ids=["PGM", "JPEG"])
def test_a_decompression_bomb_is_refused_by_its_header_even_where_pil_has_no_limit(
    bomb: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert reason(bomb) == "larger than 178,956,970 pixels"
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert reason(bomb) == "larger than 178,956,970 pixels"


def test_a_size_at_which_pil_only_warns_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 300)  # NOISE has 384
    assert pixels_of(encoded(Image.fromarray(NOISE), "PNG")).shape == (24, 16, 3)


def test_threads_may_decode_at_once() -> None:
    images = [encoded(Image.fromarray(np.roll(NOISE, shift, axis=1)), "PNG") for shift in range(16)] * 8
    with ThreadPoolExecutor(4) as pool:
        for number, pixels in enumerate(pool.map(pixels_of, images)):
            np.testing.assert_array_equal(pixels, np.roll(NOISE, number % 16, axis=1))


# -- files -----------------------------------------------------------------------------------------------------


def test_read_gives_the_bytes_of_a_file(tmp_path: Path) -> None:
    for data in (b"", b"abc", os.urandom(3_000_000)):
        (tmp_path / "a.png").write_bytes(data)
        assert read(tmp_path / "a.png") == data


def test_a_file_that_vanished_is_broken(tmp_path: Path) -> None:
    with pytest.raises(BrokenImage, match=r"gone\.png: the file does not exist"):
        read(tmp_path / "gone.png")


def test_a_folder_named_like_an_image_is_broken(tmp_path: Path) -> None:
    with pytest.raises(BrokenImage, match="cannot be opened: Is a directory"):
        read(tmp_path)


def test_a_pipe_or_a_device_named_like_an_image_is_broken_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "zeros.png").symlink_to("/dev/zero")
    for name in ("pipe.png", "zeros.png"):
        with pytest.raises(BrokenImage, match="no file but a folder, a pipe or a device"):
            read(tmp_path / name)


def test_a_giant_file_is_broken_before_it_is_read(tmp_path: Path) -> None:
    with (tmp_path / "a.png").open("wb") as file:
        file.truncate(2**40)  # a hole, which takes no room
    with pytest.raises(BrokenImage, match="larger than 1,073,741,824 bytes"):
        read(tmp_path / "a.png")


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


@pytest.mark.parametrize("channels", [2, 4])
def test_bands_beyond_three_are_shrunk_each_by_itself(channels: int) -> None:
    """PIL would take the last band for alpha, and weight the others by it."""
    pixels = np.full((400, 400, channels), 200, np.uint8)
    pixels[:200, :, -1] = 0
    data = encoded(Image.fromarray(pixels, {2: "LA", 4: "RGBA"}[channels]), "PNG")
    small = decode(data, "x", channels=channels, enough_pixels=10_000.0).pixels
    assert small.shape == (100, 100, channels)
    expected = pixels.reshape(100, 4, 100, 4, channels).mean((1, 3))
    np.testing.assert_array_equal(small, expected)
