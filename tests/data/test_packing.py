"""`dino-ssl pack`: every image once, as it was or as PIL would reduce it, whatever happens in between."""

import hashlib
import io
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import fsspec
import numpy as np
import pytest
from opening import folder_of, write_arrays
from PIL import Image
from tars import contents, opened, read_naively, write_tar

from dino_ssl.commands import pack
from dino_ssl.data.decoding import Raw, decode
from dino_ssl.data.sources import Source, load, open_source
from dino_ssl.data.tar import packing
from dino_ssl.data.tar.pack_images import Packing
from dino_ssl.errors import RunError, UsageError

NOISE = np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def chosen(folder: Path, **options: object) -> Packing:
    defaults = Packing(
        folder=folder,
        pattern="shard-%06d.tar",
        shard_bytes=None,
        shard_samples=4,
        short_side=None,
        quality=95,
        seed=0,
        threads=2,
    )
    return replace(defaults, **options)


def packed(source: Source, folder: Path, **options: object) -> packing.PackFile:
    return packing.pack(source, chosen(folder, **options), lambda count: None)


def photos(folder: Path, count: int = 10) -> Source:
    """JPEGs and PNGs of several sizes in two class folders."""
    rng = np.random.default_rng(1)
    for number in range(count):
        path = folder / f"{'ab'[number % 2]}" / f"{number}.{['jpg', 'png'][number % 3 == 2]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        height, width = rng.integers(20, 60, 2)
        Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(path)
    return open_source(str(folder), Path())


def tars(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.tar"))


def checksums(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def jpeg(pixels: np.ndarray, **options: object) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", **options)
    return stream.getvalue()


# -- what is in the shards ----------------------------------------------------------------------------------


def test_every_image_is_there_once_with_its_bytes_and_its_label(tmp_path: Path) -> None:
    source = photos(tmp_path / "photos")
    packed(source, tmp_path / "shards")
    assert source.labels is not None
    expected = {f"{n:06d}": (source.raw(n), str(source.labels[n]).encode()) for n in range(10)}
    samples = [sample for tar in tars(tmp_path / "shards") for sample in read_naively(tar)]
    assert [name[:6] for name, _, _ in samples] != sorted(expected)
    assert {name[:6]: (data, label) for name, data, label in samples} == expected
    assert all(name[7:] == ("png" if data.startswith(b"\x89PNG") else "jpg") for name, data, _ in samples)


def test_packed_shards_are_a_source_with_the_classes_of_the_first(tmp_path: Path) -> None:
    source = photos(tmp_path / "photos")
    packed(source, tmp_path / "shards")
    again = opened(tmp_path / "shards")
    assert again.classes == source.classes == ("a", "b")
    assert again.shard_sizes.tolist() == [4, 4, 2]
    assert again.problems == ()
    assert again.labels is not None
    assert source.labels is not None
    for index, label in enumerate(again.labels):
        number = int(again.describe(index).partition(": ")[2][:6])
        assert again.raw(index) == source.raw(number)
        assert label == source.labels[number]


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_pixels_become_png_and_come_back(tmp_path: Path, channels: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 6, 7, channels), np.uint8)
    packed(open_source(str(write_arrays(tmp_path / "x", images, [0, 3, 1, 1, 0])), Path()), tmp_path / "shards")
    again = opened(tmp_path / "shards")
    numbers = [int(again.describe(index).partition(": ")[2][:6]) for index in range(5)]
    for index, number in enumerate(numbers):
        np.testing.assert_array_equal(load(again, index, channels=channels).pixels, images[number])
    assert again.labels is not None
    assert again.labels.tolist() == [[0, 3, 1, 1, 0][number] for number in numbers]


def test_pixels_with_more_channels_than_a_format_has_are_refused(tmp_path: Path) -> None:
    source = open_source(str(write_arrays(tmp_path / "x", np.zeros((2, 4, 4, 7), np.uint8), None)), Path())
    with pytest.raises(UsageError, match="has 7 channels, PNG has 1 to 4"):
        packed(source, tmp_path / "a")
    with pytest.raises(UsageError, match="has 7 channels, JPEG has 1 or 3: leave --short-side out"):
        packed(source, tmp_path / "b", short_side=2)
    assert not tars(tmp_path / "a")


def test_a_shard_holds_so_many_samples_or_so_many_bytes(tmp_path: Path) -> None:
    source = photos(tmp_path / "photos", 30)
    made = packed(source, tmp_path / "count", shard_samples=7)
    assert [shard.samples for shard in made.shards.values()] == [7, 7, 7, 7, 2]
    made = packed(source, tmp_path / "bytes", shard_samples=None, shard_bytes=40_960)
    sizes = [tar.stat().st_size for tar in tars(tmp_path / "bytes")]
    assert max(sizes) <= 40_960
    assert len(sizes) > 2
    assert made.num_bytes == sum(sizes)
    made = packed(source, tmp_path / "one", shard_samples=None, shard_bytes=1)
    assert [shard.samples for shard in made.shards.values()] == [1] * 30


def test_the_seed_mixes_and_the_number_of_threads_does_not(tmp_path: Path) -> None:
    source = photos(tmp_path / "photos", 30)
    for name, seed, threads in (("a", 0, 1), ("b", 0, 5), ("c", 1, 1)):
        packed(source, tmp_path / name, seed=seed, threads=threads)
    assert checksums(tmp_path / "a") == checksums(tmp_path / "b")
    assert checksums(tmp_path / "a").keys() == checksums(tmp_path / "c").keys()
    assert checksums(tmp_path / "a") != checksums(tmp_path / "c")


def test_shards_are_packed_again_image_by_image(tmp_path: Path) -> None:
    source = photos(tmp_path / "photos", 30)
    packed(source, tmp_path / "first")
    packed(opened(tmp_path / "first"), tmp_path / "second", shard_samples=11)
    assert sorted(contents(opened(tmp_path / "second"))) == sorted(source.raw(n) for n in range(30))
    assert opened(tmp_path / "second").classes == ("a", "b")


# -- reducing -----------------------------------------------------------------------------------------------


def reduced(tmp_path: Path, name: str, data: bytes, short_side: int, quality: int = 95) -> bytes:
    (tmp_path / "in").mkdir(exist_ok=True)
    (tmp_path / "in" / name).write_bytes(data)
    packed(open_source(str(tmp_path / "in"), Path()), tmp_path / "out", short_side=short_side, quality=quality)
    return opened(tmp_path / "out").raw(0)


@pytest.mark.parametrize("quality", [95, 50])
def test_a_larger_image_becomes_the_jpeg_that_pil_would_write(tmp_path: Path, quality: int) -> None:
    smooth = np.asarray(Image.fromarray(NOISE[:9, :12]).resize((120, 90), Image.Resampling.BICUBIC))
    data = jpeg(smooth, quality=95)
    ours = reduced(tmp_path, "x.jpg", data, 30, quality)
    oracle = decode(data, "x").pixels
    small = np.asarray(Image.fromarray(oracle).resize((40, 30), Image.Resampling.BICUBIC))
    assert ours == jpeg(small, quality=quality, subsampling="4:2:0")


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((300, 31), (97, 10)),
        ((11, 10), (11, 10)),
        ((9, 2000), (9, 2000)),
        ((10, 4000), (10, 4000)),
        ((33, 5000), (10, 1515)),
    ],
)
def test_the_short_side_is_reduced_and_never_enlarged(
    tmp_path: Path, size: tuple[int, int], expected: tuple[int, int]
) -> None:
    stream = io.BytesIO()
    Image.new("RGB", size, "red").save(stream, "PNG")
    image = Image.open(io.BytesIO(reduced(tmp_path, "x.png", stream.getvalue(), 10)))
    assert (image.format, image.size) == ("JPEG", expected)


def test_a_small_jpeg_keeps_its_bytes(tmp_path: Path) -> None:
    data = jpeg(NOISE, quality=40)
    assert reduced(tmp_path, "x.jpg", data, 90) == data


def test_a_turned_jpeg_is_stored_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    data = jpeg(np.repeat([[[255, 0, 0]], [[0, 0, 255]]], 30, 0).repeat(90, 1).astype(np.uint8), exif=exif.tobytes())
    image = Image.open(io.BytesIO(reduced(tmp_path, "x.jpg", data, 20)))
    assert (image.size, image.getexif().get(0x0112)) == ((20, 30), None)
    red, _, blue = image.getpixel((1, 15))
    assert (red < 100, blue > 200) == (True, True)


def test_grey_images_become_grey_jpegs(tmp_path: Path) -> None:
    stream = io.BytesIO()
    Image.fromarray(NOISE[..., 0]).save(stream, "PNG")
    image = Image.open(io.BytesIO(reduced(tmp_path, "x.png", stream.getvalue(), 30)))
    assert (image.mode, image.size) == ("L", (40, 30))


# -- broken images ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("short_side", [None, 16])
def test_broken_images_are_left_out_counted_and_listed(tmp_path: Path, short_side: int | None) -> None:
    photos(tmp_path / "photos")
    whole = (tmp_path / "photos/a/0.jpg").read_bytes()
    (tmp_path / "photos/a/cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "photos/b/empty.png").touch()
    (tmp_path / "photos/b/caf\udce9.png").write_bytes(b"no image")
    made = packed(open_source(str(tmp_path / "photos"), Path()), tmp_path / "shards", short_side=short_side)
    assert made.samples == len(opened(tmp_path / "shards")) == 10
    lines = (tmp_path / "shards/skipped.txt").read_text().splitlines()
    assert sorted(line.partition("\t")[0].rpartition("/")[2] for line in lines) == [
        r"caf\xe9.png",
        "cut.jpg",
        "empty.png",
    ]
    assert any(line.endswith("empty.png\tempty file (0 bytes)") for line in lines)
    assert len(made.skipped) == 3


def test_nothing_but_broken_images_is_an_error(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.jpg").write_bytes(b"x")
    with pytest.raises(RunError, match=r"none of 2 images can be read: .*\.jpg: not an image"):
        packed(open_source(str(tmp_path), Path()), tmp_path / "shards")
    assert not tars(tmp_path / "shards")


# -- interrupted and resumed --------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Interrupted:
    """A source that stops the program at its n-th image."""

    inner: Source
    countdown: list[int]

    name = property(lambda self: self.inner.name)
    labels = property(lambda self: self.inner.labels)
    classes = property(lambda self: self.inner.classes)
    shard_sizes = property(lambda self: self.inner.shard_sizes)

    def __len__(self) -> int:
        return len(self.inner)

    def raw(self, index: int) -> Raw:
        self.countdown[0] -= 1
        if self.countdown[0] < 0:
            raise KeyboardInterrupt
        return self.inner.raw(index)

    def describe(self, index: int) -> str:
        return self.inner.describe(index)

    def fingerprint(self) -> str:
        return self.inner.fingerprint()


@pytest.mark.parametrize("limits", [{"shard_samples": 4}, {"shard_samples": None, "shard_bytes": 30_720}])
def test_a_resumed_packing_equals_an_uninterrupted_one_and_keeps_what_was_finished(
    tmp_path: Path, limits: dict[str, int | None]
) -> None:
    photos(tmp_path / "photos", 30)
    (tmp_path / "photos/a/5.jpg").write_bytes(b"broken")
    source = open_source(str(tmp_path / "photos"), Path())
    packed(source, tmp_path / "whole", **limits)
    for stop in (0, 9, 9, 9):
        with pytest.raises(KeyboardInterrupt):
            packed(Interrupted(source, [stop]), tmp_path / "again", threads=1, **limits)
        inodes = {tar.name: tar.stat().st_ino for tar in tars(tmp_path / "again")}
        assert not list((tmp_path / "again").glob("*.tmp"))
        if inodes:
            assert "`dino-ssl pack` did not finish; run it again" in opened(tmp_path / "again").problems[0]
    assert len(inodes) >= 2
    packed(source, tmp_path / "again", **limits)
    assert checksums(tmp_path / "again") == checksums(tmp_path / "whole")
    assert {tar.name: tar.stat().st_ino for tar in tars(tmp_path / "again") if tar.name in inodes} == inodes


def test_a_finished_packing_is_left_as_it_is(tmp_path: Path) -> None:
    source = photos(tmp_path / "photos")
    packed(source, tmp_path / "shards")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "shards").iterdir()}
    counted: list[int] = []
    packing.pack(Interrupted(source, [0]), chosen(tmp_path / "shards"), counted.append)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "shards").iterdir()} == before
    assert sum(counted) == 10


@pytest.mark.parametrize(
    "damage", [lambda tar: tar.unlink(), lambda tar: tar.write_bytes(tar.read_bytes()[:-1] + b"x")]
)
def test_a_damaged_shard_is_found_and_written_anew(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    source = photos(tmp_path / "photos")
    packed(source, tmp_path / "shards")
    before = checksums(tmp_path / "shards")
    kept = (tmp_path / "shards/shard-000000.tar").stat().st_ino
    packing.verify(packing.read(tmp_path / "shards"), lambda count: None)
    damage(tmp_path / "shards/shard-000001.tar")
    with pytest.raises(RunError, match=r"shard-000001\.tar (differs|is missing)"):
        packing.verify(packing.read(tmp_path / "shards"), lambda count: None)
    packed(source, tmp_path / "shards")
    assert checksums(tmp_path / "shards") == before
    assert (tmp_path / "shards/shard-000000.tar").stat().st_ino == kept


def test_a_full_disk_is_one_message_and_leaves_finished_shards(tmp_path: Path) -> None:
    source = photos(tmp_path / "photos")
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards/shard-000001.tar.tmp").symlink_to("/dev/full")
    with pytest.raises(RunError, match=r"cannot use .*shard-000001\.tar: No space left on device; make room"):
        packed(source, tmp_path / "shards")
    assert [tar.name for tar in tars(tmp_path / "shards")] == ["shard-000000.tar"]
    packed(source, tmp_path / "shards")
    packed(source, tmp_path / "whole")
    assert checksums(tmp_path / "shards") == checksums(tmp_path / "whole")


def test_other_options_or_another_source_in_the_same_folder_are_refused(tmp_path: Path) -> None:
    source = photos(tmp_path / "photos")
    packed(source, tmp_path / "shards", short_side=16)
    with pytest.raises(UsageError, match=r"made with --quality 95 \(now 90\), --seed 0 \(now 3\); write the same, or"):
        packed(source, tmp_path / "shards", short_side=16, quality=90, seed=3)
    with pytest.raises(UsageError, match=r"holds shards of another source, .*photos; choose another folder"):
        packed(photos(tmp_path / "others", 12), tmp_path / "shards", short_side=16)


def test_a_folder_with_shards_of_another_program_is_refused(tmp_path: Path) -> None:
    source = photos(tmp_path / "photos")
    write_tar(tmp_path / "a/x.tar", [])
    with pytest.raises(UsageError, match=r"holds shards without index\.json: x\.tar"):
        packed(source, tmp_path / "a")
    (tmp_path / "b").mkdir()
    for text in ("{}", "[]", "no json", '{"made_by": "dino-ssl pack", "format": 1, "shards": [{}]}'):
        (tmp_path / "b/index.json").write_text(text)
        with pytest.raises(UsageError, match=r"index\.json is damaged or of another program; choose another folder"):
            packed(source, tmp_path / "b")


def test_two_packings_into_one_folder_do_not_mix(tmp_path: Path) -> None:
    source = photos(tmp_path / "photos")

    def start_another(count: int) -> None:
        with pytest.raises(RunError, match="another process packs into"):
            packed(source, tmp_path / "shards")

    packing.pack(source, chosen(tmp_path / "shards"), start_another)


# -- the index beside the shards ----------------------------------------------------------------------------


def test_the_index_json_says_how_the_shards_were_made(tmp_path: Path) -> None:
    made = packed(photos(tmp_path / "photos"), tmp_path / "shards", short_side=16, quality=80)
    about = json.loads((tmp_path / "shards/index.json").read_text())
    assert "JPEG quality 80, colours 4:2:0, short side at most 16 pixels" in about["encoding"]
    assert (about["complete"], about["samples"], about["classes"]) == (True, 10, ["a", "b"])
    for shard in about["shards"]:
        assert shard["sha256"] == hashlib.sha256((tmp_path / "shards" / shard["name"]).read_bytes()).hexdigest()
    assert made.num_bytes == sum(shard["num_bytes"] for shard in about["shards"])


def test_the_index_beside_the_shards_is_used_also_for_some_of_them_and_where_they_were_moved(tmp_path: Path) -> None:
    source = photos(tmp_path / "photos", 30)
    packed(source, tmp_path / "shards")
    (tmp_path / "shards").rename(tmp_path / "moved")
    expected = [read_naively(tar) for tar in tars(tmp_path / "moved")]
    for tar in tars(tmp_path / "moved"):  # an index made anew would find nothing
        data = bytearray(tar.read_bytes())
        data[:512] = bytes(512)
        tar.write_bytes(data)
    for spec, shards in (("moved", range(8)), ("moved/shard-{000003,000005,000001}.tar", (3, 5, 1))):
        found = opened(tmp_path / spec)
        assert contents(found) == [image for shard in shards for _, image, _ in expected[shard]]
        assert found.shard_sizes.tolist() == [len(expected[shard]) for shard in shards]
        assert found.labels is not None
        assert found.labels.tolist() == [int(label) for shard in shards for _, _, label in expected[shard]]


def test_the_index_beside_the_shards_is_not_used_when_one_was_replaced(tmp_path: Path) -> None:
    packed(photos(tmp_path / "photos"), tmp_path / "shards")
    replaced = tars(tmp_path / "shards")[1]
    entries = [(f"{n}.{kind}", bytes([n]) * 90) for n in range(3) for kind in ("png", "cls")]
    write_tar(replaced, entries)
    assert [opened(tmp_path / "shards").describe(index) for index in (4, 5, 6)] == [
        f"shard-000001.tar: {n}.png" for n in range(3)
    ]


def test_packed_shards_can_be_served(tmp_path: Path) -> None:
    packed(photos(tmp_path / "photos"), tmp_path / "shards")
    memory = fsspec.filesystem("memory")
    memory.put(str(tmp_path / "shards"), "/packed", recursive=True)
    remote = opened("memory://packed/")
    assert contents(remote) == contents(opened(tmp_path / "shards"))
    assert remote.classes == ("a", "b")
    memory.rm("/packed", recursive=True)


# -- the command --------------------------------------------------------------------------------------------


def test_the_command_packs_verifies_and_says_how_to_train(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder_of(tmp_path / "photos", *(f"{n}.png" for n in range(5)))
    (tmp_path / "photos/broken.png").touch()
    monkeypatch.chdir(tmp_path)
    pack.run(["photos", "--output", "my shards", "--samples-per-shard", "2", "--threads", "2"])
    size = sum(tar.stat().st_size for tar in tars(tmp_path / "my shards"))
    assert capsys.readouterr().out.splitlines() == [
        "images   5",
        "shards   3",
        f"bytes    {size / 1e3:.1f} kB",
        "skipped  1, listed in my shards/skipped.txt",
        "images as they were, pixels as PNG; checksums in my shards/index.json",
        "",
        "next: dino-ssl pretrain --data './my shards'",
    ]
    pack.run(["--verify", "my shards"])
    assert capsys.readouterr().out == "3 shards in my shards are as they were written\n"


def test_a_pattern_names_the_shards_and_the_source(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder_of(tmp_path, "1.png", "2.png")
    pack.run([str(tmp_path), "--output", f"{tmp_path}/train-%03d.tar", "--samples-per-shard", "1"])
    assert [tar.name for tar in tars(tmp_path)] == ["train-000.tar", "train-001.tar"]
    spec = capsys.readouterr().out.split()[-1].strip("'")
    assert spec == f"{tmp_path}/{{train-000.tar,train-001.tar}}"
    assert len(opened(spec)) == 2


def test_help_names_every_flag(capsys: pytest.CaptureFixture[str]) -> None:
    pack.run(["--help"])
    text = capsys.readouterr().out
    for flag in (
        "output",
        "shard-size",
        "samples-per-shard",
        "short-side",
        "quality",
        "threads",
        "data-root",
        "seed",
        "verify",
    ):
        assert f"--{flag}" in text
    assert "dino-ssl pretrain --data" in text


@pytest.mark.parametrize(
    ("words", "problems"),
    [
        (
            [],
            [
                "SOURCE is missing; write what to pack, such as a folder",
                "--output is missing; write a folder for the shards",
            ],
        ),
        (["x"], ["--output is missing; write a folder for the shards"]),
        (["x", "--output"], ["--output: expected one argument"]),
        (["x", "y", "--output", "z"], ["'y' is one argument too many"]),
        (["x", "--outptu", "y"], ["unknown flag --outptu; did you mean '--output'?"]),
        (["x", "--output", "y", "--quality", "0"], ["--quality: '0' must be a whole number from 1 to 100"]),
        (["x", "--output", "y", "--short-side", "1e3"], ["--short-side: '1e3' must be a whole number from 1 on"]),
        (["x", "--output", "y", "--seed", "-1"], ["--seed: '-1' must be a whole number from 0 to 9223372036854775808"]),
        (
            ["x", "--output", "y", "--shard-size", "512"],
            ["--shard-size: '512' must be a number and kB, MB, GB, KiB, MiB or GiB, such as 512MB"],
        ),
        (
            ["x", "--output", "y", "--shard-size", "1GB", "--samples-per-shard", "5"],
            ["--shard-size and --samples-per-shard exclude each other; write one of them"],
        ),
        (["x", "--verify", "y"], ["--verify goes without SOURCE and --output"]),
        (
            ["x", "--output", "train.tar"],
            ["--output train.tar: write a folder, or a name with the place of the number, such as x-%06d.tar"],
        ),
        (
            ["x", "--output", "s3://bucket/x"],
            ["--output s3://bucket/x: shards are written to a folder of this machine; copy that afterwards"],
        ),
        (
            ["--verify", "no/folder"],
            ["no/folder holds no index.json, and so no checksums; it is not a folder that `dino-ssl pack` wrote"],
        ),
    ],
)
def test_a_mistake_is_one_line_that_says_what_to_write(words: list[str], problems: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        pack.run(words)
    assert list(caught.value.problems) == problems


def test_a_packed_shard_that_is_gone_is_named_when_the_rest_is_read(tmp_path: Path) -> None:
    packed(photos(tmp_path / "photos"), tmp_path / "shards")
    (tmp_path / "shards/shard-000001.tar").unlink()
    source = opened(tmp_path / "shards")
    assert source.problems == ("shard-000001.tar is in index.json but not in the folder",)
    assert len(source) == 6
