"""What `dino-ssl stats` counts equals a naive count, and its contact sheet shows what training renders."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from opening import folder_of, pixels_of, write_arrays
from PIL import Image

from dino_ssl.commands.stats import run as stats
from dino_ssl.data.contact_sheet import contact_sheet
from dino_ssl.data.crops import MultiCrop, dino_recipe
from dino_ssl.data.render_pil import render
from dino_ssl.data.sources import open_source
from dino_ssl.data.statistics import Statistics, difference_hash, examine, spread, summarise
from dino_ssl.data.streams import Purpose, stream
from dino_ssl.errors import UsageError

RNG = np.random.default_rng(0)
CROPS = MultiCrop(
    dino_recipe(global_size=224, global_scale=(0.4, 1.0), num_local_crops=3, local_size=96, local_scale=(0.05, 0.4))
)


def statistics_of(spec: Path | str, channels: int = 3, threads: int = 2) -> Statistics:
    source = open_source(str(spec), Path("no data here"))
    return summarise(examine(source, range(len(source)), channels=channels, threads=threads), channels)


def save(path: Path, pixels: np.ndarray, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def noise(height: int, width: int, channels: int = 3) -> np.ndarray:
    return RNG.integers(0, 256, (height, width, channels), np.uint8)


# -- numbers ---------------------------------------------------------------------------------------------------


def test_mean_and_deviation_are_over_all_pixels_of_images_of_several_sizes(tmp_path: Path) -> None:
    images = [noise(5, 7), noise(40, 30) // 2, noise(1, 1)]
    for number, image in enumerate(images):
        save(tmp_path / f"{number}.png", image)
    pixels = np.concatenate([image.reshape(-1, 3) for image in images]) / 255
    found = statistics_of(tmp_path)
    np.testing.assert_allclose(found.mean, pixels.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(found.std, pixels.std(axis=0), rtol=1e-12)


@pytest.mark.parametrize("channels", [1, 2, 4, 7])
def test_arrays_of_any_channels_have_their_moments(tmp_path: Path, channels: int) -> None:
    images = RNG.integers(0, 256, (6, 5, 4, channels), np.uint8)
    found = statistics_of(write_arrays(tmp_path, images, None), channels)
    np.testing.assert_allclose(found.mean, images.mean(axis=(0, 1, 2)) / 255, rtol=1e-12)
    np.testing.assert_allclose(found.std, images.std(axis=(0, 1, 2)) / 255, rtol=1e-12)


def test_images_of_one_colour_have_no_deviation(tmp_path: Path) -> None:
    save(tmp_path / "a.png", np.full((9, 9, 3), 77, np.uint8))
    assert statistics_of(tmp_path).std == [0.0, 0.0, 0.0]


def test_sizes_are_those_of_the_upright_images(tmp_path: Path) -> None:
    for number, (height, width) in enumerate([(95, 300), (224, 500), (96, 100), (400, 50), (600, 700)]):
        save(tmp_path / f"{number}.png", np.zeros((height, width), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    save(tmp_path / "5.jpg", np.zeros((1000, 20, 3), np.uint8), exif=exif.tobytes())
    found = statistics_of(tmp_path)
    assert (found.width.smallest, found.width.median, found.width.largest) == (50, 400.0, 1000)
    assert (found.height.smallest, found.height.median, found.height.largest) == (20, 160.0, 600)
    assert found.share_below == {224: 4 / 6, 96: 3 / 6}


def test_formats_and_modes_are_counted(tmp_path: Path) -> None:
    kinds = [("RGB", "png"), ("L", "png"), ("L", "jpg"), ("RGBA", "png"), ("P", "gif")]
    for number, (mode, suffix) in enumerate(kinds):
        Image.fromarray(noise(8, 8)).convert(mode).save(tmp_path / f"{number}.{suffix}")
    found = statistics_of(tmp_path)
    assert found.encodings == {"PNG": 3, "JPEG": 1, "GIF": 1}
    assert found.modes == {"L": 2, "RGB": 1, "RGBA": 1, "P": 1}


def test_broken_images_are_listed_and_do_not_count(tmp_path: Path) -> None:
    save(tmp_path / "0.png", noise(8, 8))
    (tmp_path / "1.jpg").write_bytes(b"")
    (tmp_path / "2.jpg").write_text("hello")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "3.jpg").symlink_to(tmp_path / "pipe")
    (tmp_path / "caf\udce9.jpg").symlink_to("nowhere")
    found = statistics_of(tmp_path)
    assert [image.reason.partition(" ")[0] for image in found.broken] == ["empty", "not", "no", "the"]
    assert found.broken[3].name == f"{tmp_path}/caf\\xe9.jpg"
    assert (found.num_seen, found.readable.tolist()) == (5, [0])


def test_files_that_vanish_while_they_are_looked_at_are_broken(tmp_path: Path) -> None:
    folder_of(tmp_path, *(f"{number:02d}.png" for number in range(40)))
    source = open_source(str(tmp_path), tmp_path)
    seen = []
    for image in examine(source, range(40), channels=3, threads=1):
        seen.append(image)
        if len(seen) == 1:
            for path in tmp_path.iterdir():
                path.unlink()
    found = summarise(iter(seen), 3)
    assert found.num_seen == 40
    assert len(found.readable) + len(found.broken) == 40
    assert found.broken[-1].reason == "the file does not exist (any more)"


def test_a_set_without_a_readable_image_has_no_statistics(tmp_path: Path) -> None:
    (tmp_path / "1.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match=r"none of the 1 images could be read; the first: empty file"):
        statistics_of(tmp_path)


# -- copies ----------------------------------------------------------------------------------------------------


def test_copies_have_equal_pixels_however_they_are_encoded(tmp_path: Path) -> None:
    one, other = noise(20, 30), noise(20, 30)
    for name, pixels in (("a.png", one), ("b.bmp", one), ("c.png", other), ("d.tiff", one), ("e.ppm", other)):
        save(tmp_path / name, pixels)
    save(tmp_path / "f.png", one.reshape(30, 20, 3))  # the same bytes in another shape
    save(tmp_path / "g.png", one ^ 1)
    assert statistics_of(tmp_path).copies == [[0, 1, 3], [2, 4]]


def test_look_alikes_are_smaller_brighter_or_reencoded_and_copies_are_not_counted_again(tmp_path: Path) -> None:
    steps = np.cumsum(RNG.choice([-1, 1], (8, 9)), axis=1)  # every place clearly brighter or darker than its left
    scene = np.kron(120 + 12 * steps, np.ones((30, 40))).astype(np.uint8)
    image = Image.fromarray(np.stack([scene, scene // 2, 255 - scene // 2], axis=-1))
    image.save(tmp_path / "0.png")
    image.save(tmp_path / "1.png")
    image.save(tmp_path / "2.jpg", quality=80)
    image.resize((180, 120)).save(tmp_path / "3.png")
    image.point(lambda value: value * 0.9 + 20).save(tmp_path / "4.png")
    image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(tmp_path / "5.png")
    found = statistics_of(tmp_path)
    assert (found.copies, found.lookalikes) == ([[0, 1]], [[0, 2, 3, 4]])


def test_the_difference_hash_is_one_bit_per_rising_edge() -> None:
    grey = RNG.integers(0, 256, (8, 9), np.uint8)
    bits = "".join("1" if grey[row, column + 1] > grey[row, column] else "0" for row in range(8) for column in range(8))
    assert difference_hash(Image.fromarray(grey)) == int(bits, 2)
    assert difference_hash(Image.fromarray(np.kron(grey, np.ones((11, 7), np.uint8)))) == int(bits, 2)


def test_threads_change_nothing(tmp_path: Path) -> None:
    for number in range(50):
        save(tmp_path / f"{number}.png", noise(4 + number % 7, 5))
    one, four = (statistics_of(tmp_path, threads=threads) for threads in (1, 4))
    assert (one.mean, one.std, one.copies, one.lookalikes) == (four.mean, four.std, four.copies, four.lookalikes)
    assert one.readable.tolist() == four.readable.tolist() == list(range(50))


@pytest.mark.parametrize(("length", "most"), [(10, 3), (10, 10), (3, 10), (1_000_003, 1000), (1, 1), (7, 6)])
def test_the_images_looked_at_are_spread_over_the_set(length: int, most: int) -> None:
    places = list(spread(length, most))
    assert len(set(places)) == len(places) == min(length, most)
    assert places == sorted(places)
    assert places[0] == 0
    assert places[-1] == length - 1
    gaps = np.diff(places)
    assert not len(gaps) or gaps.max() - gaps.min() <= 1


# -- contact sheet ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_the_sheet_shows_the_views_of_the_first_epoch(tmp_path: Path, channels: int) -> None:
    images = RNG.integers(0, 256, (2, 60, 80, channels), np.uint8)
    source = pixels_of(write_arrays(tmp_path, images, None))
    sheet = np.asarray(contact_sheet(source, [1], CROPS, channels=channels, seed=3))
    views = CROPS.draw(stream(3, Purpose.CROPS, 0, 1), 80, 60)
    for which, size in CROPS.groups:
        out = np.empty((len(views[which]), channels, size, size), np.uint8)
        render(images[1], views[which], out)
        for view in out:
            shown = view[:3] if channels >= 3 else np.repeat(view[:1], 3, axis=0)
            assert contains(sheet, shown.transpose(1, 2, 0))


def contains(sheet: np.ndarray, picture: np.ndarray) -> bool:
    """Whether a picture lies somewhere on the sheet, pixel by pixel."""
    height, width, _ = picture.shape
    for top, left in np.argwhere((sheet == picture[0, 0]).all(axis=-1)):
        if np.array_equal(sheet[top : top + height, left : left + width], picture):
            return True
    return False


@pytest.mark.parametrize("size", [(1, 1), (3000, 2), (2, 3000), (8, 8)])
def test_images_of_any_shape_have_their_row(tmp_path: Path, size: tuple[int, int]) -> None:
    save(tmp_path / ("a very long name " * 8 + ".png"), noise(*size))
    source = open_source(str(tmp_path), tmp_path)
    one, two = (contact_sheet(source, [0] * rows, CROPS, channels=3, seed=0) for rows in (1, 2))
    assert one.width == two.width
    assert one.height < two.height


# -- the command -----------------------------------------------------------------------------------------------


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The present folder, with photographs in two classes, two of them broken and one there twice."""
    monkeypatch.chdir(tmp_path)
    for number in range(6):
        save(tmp_path / f"photos/{'ab'[number % 2]}/{number}.png", noise(100 + number, 120))
    (tmp_path / "photos/a/0.png").rename(tmp_path / "photos/b/0.png")
    save(tmp_path / "photos/a/copy.png", np.asarray(Image.open(tmp_path / "photos/b/1.png")))
    (tmp_path / "photos/a/empty.jpg").write_bytes(b"")
    (tmp_path / "photos/a/text.jpg").write_text("x")
    (tmp_path / "list.txt").write_text("photos/b/1.png\n")
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, str]:
    """The table's rows by their names; a row without one goes on."""
    capsys.readouterr()
    stats(words)
    rows: dict[str, str] = {}
    for line in capsys.readouterr().out.splitlines():
        name = line[:15].strip() or name
        rows[name] = f"{rows[name]}\n{line[15:]}" if name in rows else line[15:]
    return rows


def test_the_table_says_what_is_there(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = run(capsys, "photos")
    assert rows["images"] == "9; all were looked at"
    assert rows["width"].startswith("120 / 120 / 120 pixels")
    assert rows["height"].startswith("100 / 102 / 105 pixels")
    assert rows["formats"] == "PNG 7"
    assert rows["broken"].splitlines() == [
        "2, listed in stats/photos/broken_images.txt",
        "photos/a/empty.jpg: empty file (0 bytes)",
        next(line for line in rows["broken"].splitlines() if line.startswith("photos/a/text.jpg: not an image")),
    ]
    assert rows["copies"].startswith("1 images have the pixels of another; groups in stats/photos/copies.txt")
    assert rows["copies"].endswith("photos/a/copy.png = photos/b/1.png")
    assert rows["look-alikes"] == "none"
    assert rows["classes"] == "2; the smallest 'b' with 4, the largest 'a' with 5"


def test_the_table_can_be_pasted_into_a_configuration(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from dino_ssl.config_flags import configure  # noqa: PLC0415
    from dino_ssl.config_kinds import PRETRAIN  # noqa: PLC0415

    words = run(capsys, "photos")["mean, std"].split()
    config, _ = configure(["--data", "photos", *words], PRETRAIN)
    about = json.loads((here / "stats/photos/stats.json").read_text())
    np.testing.assert_allclose([config.crops.mean, config.crops.std], [about["mean"], about["std"]], atol=5e-4)


def test_the_files_lie_beside_each_other(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, "photos", "--output-dir", "out/deep")
    about = json.loads((here / "out/deep/stats.json").read_text())
    assert (about["num_images"], about["num_seen"], about["broken"], about["copies"]) == (9, 9, 2, 1)
    assert about["classes"] == {"a": 5, "b": 4}
    broken = (here / "out/deep/broken_images.txt").read_text().splitlines()
    assert [line.split("\t")[0] for line in broken] == ["photos/a/empty.jpg", "photos/a/text.jpg"]
    assert (here / "out/deep/copies.txt").read_text() == "equal\tphotos/a/copy.png\tphotos/b/1.png\n"
    with Image.open(here / "out/deep/contact_sheet.png") as sheet:
        assert sheet.height > 7 * 224


def test_a_list_with_repeated_and_missing_lines_says_so(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "list.txt").write_text("photos/b/1.png\nphotos/b/1.png\nphotos/a/2.png\ngone.png\nphotos/a/copy.png\n")
    rows = run(capsys, "list.txt")
    assert rows["copies"].startswith("2 images have the pixels of another, 1 of them are listed again;")
    assert "gone.png: the file does not exist" in rows["broken"]


def test_names_in_any_encoding_can_be_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("caf\udce9/\udcff.png", "\u0142\U0001f600/\u4e2d.png", "line\nbreak/tab\t.png"):
        save(tmp_path / "caf\udce9s" / name, noise(9, 9))
    rows = run(capsys, "caf\udce9s")
    assert rows["source"] == r"caf\xe9s"
    json.loads((tmp_path / "stats/caf-s/stats.json").read_text())
    (tmp_path / "caf\udce9s/line\nbreak/tab\t.png").write_bytes(b"")
    run(capsys, "caf\udce9s")
    listed = (tmp_path / "stats/caf-s/broken_images.txt").read_text()
    assert listed == "caf\\xe9s/line\\nbreak/tab\\t.png\tempty file (0 bytes)\n"


@pytest.mark.parametrize(("most", "seen"), [(4, 4), (0, 9), (100, 9)])
def test_fewer_images_may_be_looked_at(here: Path, capsys: pytest.CaptureFixture[str], most: int, seen: int) -> None:
    rows = run(capsys, "photos", "--max-images", str(most))
    looked = "all were" if seen == 9 else f"{seen} of them, spread over the set, were"
    assert rows["images"] == f"9; {looked} looked at"


@pytest.mark.parametrize(
    ("images", "words", "num_values"),
    [
        (noise(9, 9)[None], [], 3),
        (noise(9, 9, 1)[None], [], 3),
        (noise(9, 9, 1)[None], ["--channels", "1"], 1),
        (noise(9, 9, 6)[None], [], 6),
    ],
)
def test_there_is_a_mean_for_each_channel(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], images: np.ndarray, words: Sequence[str], num_values: int
) -> None:
    write_arrays(tmp_path / "set", images, None)
    rows = run(capsys, str(tmp_path / "set"), "--output-dir", str(tmp_path / "out"), *words)
    assert len(rows["mean, std"].split()) == 2 + 2 * num_values
    assert rows["contact sheet"].endswith("(crops of preset small_images)")
    assert rows["classes"] == "no labels"


def test_the_preset_whose_crops_are_drawn_may_be_chosen(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "photos")["contact sheet"].endswith("(crops of the defaults)")
    assert run(capsys, "photos", "--preset", "digits")["contact sheet"].endswith("(crops of preset digits)")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "SOURCE"),
        (["gone"], "does not exist"),
        (["photos", "--max-images", "-1"], "--max-images"),
        (["photos", "--max-images", "many"], "--max-images: 'many' must be a whole number from 0 on"),
        (["photos", "--channels", "0"], "--channels: '0' must be a whole number from 1 on"),
        (["photos", "--preset", "nothing"], "--preset"),
        (["photos", "--chanels", "1"], "unknown flag --chanels; did you mean '--channels'?"),
        (["photos", "--output-dir", "photos/stats"], "lies in the folder of images, photos"),
        (["photos", "--output-dir", "list.txt/x"], "cannot be written (Not a directory)"),
        (["photos", "--channels", "7"], "none of the 9 images could be read"),
    ],
)
def test_a_mistake_is_named_and_nothing_is_written(
    here: Path, words: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(here.rglob("*"))
    with pytest.raises(UsageError) as caught:
        stats(words)
    assert expected in str(caught.value)
    written = set(here.rglob("*")) - set(before)
    assert not [path for path in written if path.is_file()]


def test_help_lists_every_flag(capsys: pytest.CaptureFixture[str]) -> None:
    stats(["--help"])
    text = capsys.readouterr().out
    for flag in ("SOURCE", "--data-root", "--output-dir", "--max-images", "--channels", "--preset"):
        assert flag in text
