"""Folders and class folders: what counts as an image, in which order, with which label; and their index."""

import hashlib
import multiprocessing
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from opening import files_of, folder_of, labels_of, problem
from torchvision.datasets import ImageFolder

from dino_ssl.data import folder_index
from dino_ssl.data.compact_names import CompactNames
from dino_ssl.data.decoding import BrokenImage
from dino_ssl.data.folders import Files
from dino_ssl.data.sources import load


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where indices are kept; nothing of the person who runs the tests is touched."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


def red(source: Files, index: int) -> int:
    """The red channel of the first pixel, which `folder_of` sets to the image's position."""
    return int(load(source, index).pixels[0, 0, 0])


def test_a_folder_is_read_recursively_in_the_order_of_the_names(tmp_path: Path) -> None:
    folder_of(tmp_path, "b.png", "a/z.JPG", "a/deep/er/y.jpeg", "a-b/x.Webp", "c.tiff")
    (tmp_path / "notes.md").write_text("no image")
    source = files_of(tmp_path)
    assert list(source.names) == ["a-b/x.Webp", "a/deep/er/y.jpeg", "a/z.JPG", "b.png", "c.tiff"]
    assert (source.labels, source.classes, source.name) == (None, (), str(tmp_path))
    assert [red(source, index) for index in range(5)] == [3, 2, 1, 0, 4]
    assert source.describe(1) == str(tmp_path / "a/deep/er/y.jpeg")


@pytest.mark.parametrize("extension", ["jpg", "jpeg", "png", "bmp", "webp", "tif", "tiff", "gif", "ppm", "pgm", "PnG"])
def test_every_extension_counts_in_either_case(tmp_path: Path, extension: str) -> None:
    assert len(files_of(folder_of(tmp_path, f"a.{extension}"))) == 1


def test_hidden_files_and_folders_are_left_out(tmp_path: Path) -> None:
    folder_of(tmp_path, "a.png", ".b.png", ".cache/c.png", "__MACOSX/._d.png", "e/f.png")
    assert list(files_of(tmp_path).names) == ["a.png", "e/f.png"]


def test_class_folders_are_labelled_as_torchvision_does(tmp_path: Path) -> None:
    folder_of(tmp_path, "dog/2.png", "cat/1.png", "cat/kitten/0.png", "Zebra/a.png", "10/b.png", "9/c.png")
    oracle = ImageFolder(tmp_path)
    source = files_of(tmp_path)
    assert list(source.classes) == oracle.classes
    ours = {(str(source.path(i)), label) for i, label in enumerate(labels_of(source))}
    assert ours == set(oracle.samples)


@pytest.mark.parametrize("names", [("a/1.png", "b/2.png", "3.png"), ("a/1.png", "a/b/2.png"), ("1.png", "2.png")])
def test_images_at_the_top_or_in_one_folder_only_have_no_labels(tmp_path: Path, names: tuple[str, ...]) -> None:
    assert files_of(folder_of(tmp_path, *names)).labels is None


def test_linked_folders_are_followed_and_loops_end(tmp_path: Path) -> None:
    folder_of(tmp_path / "elsewhere", "far.png", "deep/er.png")
    inside = folder_of(tmp_path / "set", "a/1.png", "b/2.png")
    (inside / "a" / "up").symlink_to(inside)
    (inside / "b" / "itself").symlink_to(inside / "b" / "itself")
    (inside / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(inside)
    assert list(files_of(inside).names) == ["a/1.png", "b/2.png", "linked/deep/er.png", "linked/far.png"]


def test_a_folder_that_a_link_reaches_too_keeps_its_real_class(tmp_path: Path) -> None:
    folder_of(tmp_path, "a/1.png", "b/2.png")
    (tmp_path / "a" / "all_of_b").symlink_to(tmp_path / "b")
    (tmp_path / "aa").symlink_to(tmp_path / "b")
    assert list(files_of(tmp_path).names) == ["a/1.png", "b/2.png"]


def test_linked_images_count_and_a_dangling_link_is_a_broken_image(tmp_path: Path) -> None:
    folder_of(tmp_path / "far", "1.png")
    folder_of(tmp_path / "set", "2.png")
    (tmp_path / "set" / "1.png").symlink_to(tmp_path / "far" / "1.png")
    (tmp_path / "set" / "0.png").symlink_to(tmp_path / "gone.png")
    source = files_of(tmp_path / "set")
    assert list(source.names) == ["0.png", "1.png", "2.png"]
    assert load(source, 1).pixels.shape == (4, 4, 3)
    with pytest.raises(BrokenImage, match=r"0\.png: the file does not exist"):
        source.raw(0)


def test_what_is_no_regular_file_is_left_out(tmp_path: Path) -> None:
    folder_of(tmp_path, "a.png")
    os.mkfifo(tmp_path / "pipe.png")
    assert list(files_of(tmp_path).names) == ["a.png"]


def test_a_folder_named_like_an_image_is_a_folder(tmp_path: Path) -> None:
    assert files_of(folder_of(tmp_path, "a.png/1.png", "b.png/2.png")).classes == ("a.png", "b.png")


def test_scanning_asks_about_folders_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder_of(tmp_path, *(f"{group}/{number}.png" for group in "ab" for number in range(50)))
    asked: list[str] = []
    original = os.stat
    monkeypatch.setattr(os, "stat", lambda path, **options: asked.append(str(path)) or original(path, **options))
    assert len(files_of(tmp_path)) == 100
    assert asked
    assert not [path for path in asked if path.endswith(".png")]


def test_names_that_are_no_utf_8_work(tmp_path: Path) -> None:
    source = files_of(folder_of(tmp_path, "caf\udce9.png", "b.png"))
    assert load(source, 1).pixels.shape == (4, 4, 3)
    assert source.describe(1).encode().endswith(rb"caf\xe9.png")
    assert source.fingerprint()


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    assert "no image among 0 files" in problem(tmp_path)


def test_a_folder_without_images_says_what_was_seen_and_what_is_read(tmp_path: Path) -> None:
    for name in ("a.txt", "b.tar", "c/d.npy"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    message = problem(tmp_path)
    assert "no image among 3 files" in message
    assert "jpg, jpeg, png" in message


def test_the_fingerprint_follows_names_and_number_but_not_the_place(tmp_path: Path) -> None:
    one, same, more = (tmp_path / name for name in ("one", "same", "more"))
    folder_of(one, "a.png", "b.png")
    folder_of(same, "a.png", "b.png")
    folder_of(more, "a.png", "b.png", "c.png")
    assert files_of(one).fingerprint() == files_of(same).fingerprint()
    assert files_of(one).fingerprint() != files_of(more).fingerprint()
    assert len(files_of(one).fingerprint()) == 16


def test_the_fingerprint_is_that_of_the_joined_names(tmp_path: Path) -> None:
    """Checkpoints of earlier versions know it."""
    names = ["b/caf\udce9.png", "b/\u0142.png", "c/1.png"]
    joined = "\0".join(["3", *sorted(names)]).encode("utf-8", "surrogateescape")
    assert files_of(folder_of(tmp_path, *names)).fingerprint() == hashlib.sha256(joined).hexdigest()[:16]


@pytest.mark.parametrize(
    "names",
    [
        ["a/b.png", "a-b.png", "a.png", "a0.png", "a/c/d.png", "a-/e.png", "A.png"],
        ["x/y/z.png", "x/y.png", "x/y-1/z.png", "x/y0/z.png", "w.png", "z/\u00e9.png", "z/\udce9.png", "z/\uffff.png"],
    ],
)
def test_the_order_is_that_of_the_whole_names(tmp_path: Path, names: list[str]) -> None:
    assert list(files_of(folder_of(tmp_path, *names)).names) == sorted(names)


def test_classes_are_right_where_one_name_begins_with_another(tmp_path: Path) -> None:
    names = ["a/1.png", "a-b/2.png", "a0/3.png", "a/0/4.png", "a!/5.png"]
    source = files_of(folder_of(tmp_path, *names))
    assert source.classes == ("a", "a!", "a-b", "a0")
    found = {name: source.classes[label] for name, label in zip(source.names, labels_of(source), strict=True)}
    assert found == {name: name.partition("/")[0] for name in names}


def test_a_named_pipe_behind_a_link_is_a_broken_image_and_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "a.png").symlink_to(tmp_path / "pipe")
    (tmp_path / "b.png").symlink_to("/dev/zero")
    source = files_of(tmp_path)
    for index in range(2):
        with pytest.raises(BrokenImage, match="no file but a folder, a pipe or a device"):
            source.raw(index)


def test_files_that_vanish_after_the_scan_are_broken_images(tmp_path: Path) -> None:
    source = files_of(folder_of(tmp_path / "set", "a/1.png", "b/2.png"))
    (tmp_path / "set").rename(tmp_path / "elsewhere")
    for index in range(2):
        with pytest.raises(BrokenImage, match="does not exist"):
            source.raw(index)


# -- the index -------------------------------------------------------------------------------------------------


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that counts as large, last changed a while ago."""
    monkeypatch.setattr(folder_index, "LEAST_IMAGES", 3)
    folder = folder_of(tmp_path / "set", "b/1.png", "b/deep/caf\udce9.png", "c/3.png")
    (folder / "notes.md").write_text("no image")
    age(folder)
    return folder


def age(folder: Path) -> None:
    """Let every folder below have been changed a minute ago."""
    for inside in (folder, *(path for path in folder.rglob("*") if path.is_dir())):
        os.utime(inside, (time.time() - 60,) * 2)


def indices(cache: Path) -> list[Path]:
    """The files that are kept, whole or not."""
    return [path for path in cache.rglob("*") if path.is_file()]


def scanned(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders that are scanned from now on."""
    folders: list[Path] = []
    original = folder_index.scan
    monkeypatch.setattr(folder_index, "scan", lambda folder: folders.append(folder) or original(folder))
    return folders


def test_an_unchanged_large_folder_is_listed_once(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, scans = files_of(large), scanned(monkeypatch)
    again = files_of(large)
    assert not scans
    assert list(again.names) == list(first.names) == sorted(first.names)
    assert (again.classes, labels_of(again)) == (first.classes, labels_of(first)) == (("b", "c"), [0, 0, 1])
    assert again.fingerprint() == first.fingerprint()
    assert load(again, 1).pixels.shape == (4, 4, 3)


def test_one_folder_in_two_spellings_has_one_index(large: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files_of(large)
    monkeypatch.chdir(large.parent)
    scans = scanned(monkeypatch)
    assert len(files_of("set")) == 3
    assert not scans
    assert len(indices(cache)) == 1


def changes() -> Iterator[tuple[str, object]]:
    yield "a new image", lambda folder: folder_of(folder, "b/deep/new.png")
    yield "an image that has gone", lambda folder: (folder / "c/3.png").unlink()
    yield "a new folder", lambda folder: folder_of(folder, "d/4.png")
    yield "a renamed folder", lambda folder: (folder / "c").rename(folder / "e")


@pytest.mark.parametrize("change", [pytest.param(change, id=name) for name, change in changes()])
def test_a_change_anywhere_is_seen(large: Path, change: object) -> None:
    before = list(files_of(large).names)
    change(large)
    found = list(files_of(large).names)
    assert found != before
    assert found == sorted(str(path.relative_to(large)) for path in large.rglob("*.png"))


def test_a_folder_that_has_just_changed_is_not_indexed_as_its_time_might_not_show_the_next_change(
    large: Path, cache: Path
) -> None:
    os.utime(large / "c")
    files_of(large)
    assert not indices(cache)
    age(large)
    files_of(large)
    assert len(indices(cache)) == 1


def test_a_small_folder_is_not_indexed(tmp_path: Path, cache: Path) -> None:
    age(folder_of(tmp_path / "set", "a.png"))
    files_of(tmp_path / "set")
    assert not indices(cache)


@pytest.mark.parametrize("keep", [0, 7, 8, 100, 500, -1])
def test_a_damaged_index_is_made_anew(large: Path, cache: Path, keep: int, monkeypatch: pytest.MonkeyPatch) -> None:
    files_of(large)
    (index,) = indices(cache)
    index.write_bytes(index.read_bytes()[:keep])
    scans = scanned(monkeypatch)
    assert [len(files_of(large)) for _ in range(2)] == [3, 3]
    assert scans == [large]


def test_a_cache_folder_that_cannot_be_written_is_no_error(large: Path, cache: Path) -> None:
    (cache / "dino_ssl").write_text("a file in its place")
    assert len(files_of(large)) == 3
    assert len(files_of(large)) == 3


def test_without_xdg_the_index_lies_in_the_home_folder(
    large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    files_of(large)
    assert len(indices(tmp_path / "home/.cache/dino_ssl")) == 1


def test_several_processes_may_write_the_index_at_once(large: Path, cache: Path) -> None:
    with multiprocessing.get_context("fork").Pool(4) as pool:
        assert pool.map(_count_images, [large] * 16) == [3] * 16
    assert [path.suffix for path in indices(cache)] == [".safetensors"]


def _count_images(folder: Path) -> int:
    return len(files_of(folder))


# -- names -----------------------------------------------------------------------------------------------------


def test_compact_names_behave_as_the_list(tmp_path: Path) -> None:
    names = ["", "a", "caf\udce9", "\u0142\U0001f600", "with\0zero", "x" * 5000, ""]
    compact = CompactNames.of(iter(names))
    assert list(compact) == names
    assert [compact[-1 - i] for i in range(7)] == names[::-1]
    assert compact[1:4] == names[1:4]
    assert compact[::-2] == names[::-2]
    assert (len(compact), "a" in compact, "b" in compact, compact.index("a")) == (7, True, False, 1)
    for outside in (7, -8):
        with pytest.raises(IndexError):
            compact[outside]


def test_compact_names_take_their_characters_and_five_bytes_each() -> None:
    names = CompactNames.of(f"{number:040d}" for number in range(1000))
    assert names.nbytes == 1000 * (40 + 1 + 4) + 4
