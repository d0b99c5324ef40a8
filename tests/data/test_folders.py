"""Folders, class folders and list files: what counts as an image, in which order, with which label."""

import os
from pathlib import Path

import pytest
from opening import files_of, folder_of, labels_of, problem
from torchvision.datasets import ImageFolder

from dino_ssl.data.decoding import BrokenImage


def test_a_folder_is_read_recursively_in_the_order_of_the_names(tmp_path: Path) -> None:
    folder_of(tmp_path, "b.png", "a/z.JPG", "a/deep/er/y.jpeg", "a-b/x.Webp", "c.tiff")
    (tmp_path / "notes.md").write_text("no image")
    source = files_of(tmp_path)
    assert source.names == ["a-b/x.Webp", "a/deep/er/y.jpeg", "a/z.JPG", "b.png", "c.tiff"]
    assert (source.labels, source.classes, source.name) == (None, (), str(tmp_path))
    assert [source.image(index).getpixel((0, 0)) for index in range(5)] == [(n, 0, 0) for n in (3, 2, 1, 0, 4)]
    assert source.describe(1) == str(tmp_path / "a/deep/er/y.jpeg")


@pytest.mark.parametrize("extension", ["jpg", "jpeg", "png", "bmp", "webp", "tif", "tiff", "gif", "ppm", "pgm", "PnG"])
def test_every_extension_counts_in_either_case(tmp_path: Path, extension: str) -> None:
    assert len(files_of(folder_of(tmp_path, f"a.{extension}"))) == 1


def test_hidden_files_and_folders_are_left_out(tmp_path: Path) -> None:
    folder_of(tmp_path, "a.png", ".b.png", ".cache/c.png", "__MACOSX/._d.png", "e/f.png")
    assert files_of(tmp_path).names == ["a.png", "e/f.png"]


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
    assert files_of(inside).names == ["a/1.png", "b/2.png", "linked/deep/er.png", "linked/far.png"]


def test_a_folder_that_a_link_reaches_too_keeps_its_real_class(tmp_path: Path) -> None:
    folder_of(tmp_path, "a/1.png", "b/2.png")
    (tmp_path / "a" / "all_of_b").symlink_to(tmp_path / "b")
    (tmp_path / "aa").symlink_to(tmp_path / "b")
    assert files_of(tmp_path).names == ["a/1.png", "b/2.png"]


def test_linked_images_count_and_a_dangling_link_is_a_broken_image(tmp_path: Path) -> None:
    folder_of(tmp_path / "far", "1.png")
    folder_of(tmp_path / "set", "2.png")
    (tmp_path / "set" / "1.png").symlink_to(tmp_path / "far" / "1.png")
    (tmp_path / "set" / "0.png").symlink_to(tmp_path / "gone.png")
    source = files_of(tmp_path / "set")
    assert source.names == ["0.png", "1.png", "2.png"]
    assert source.image(1).size == (4, 4)
    with pytest.raises(BrokenImage, match=r"0\.png: the file does not exist"):
        source.image(0)


def test_what_is_no_regular_file_is_left_out(tmp_path: Path) -> None:
    folder_of(tmp_path, "a.png")
    os.mkfifo(tmp_path / "pipe.png")
    assert files_of(tmp_path).names == ["a.png"]


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
    assert source.image(1).size == (4, 4)
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


def test_a_list_file_names_images_relative_to_itself(tmp_path: Path) -> None:
    folder_of(tmp_path, "a b/1.png", "far/2.png")
    (tmp_path / "list.txt").write_text(f"far/2.png\n\na b/1.png\r\n{tmp_path / 'far/2.png'}\n")
    source = files_of(tmp_path / "list.txt")
    assert [source.image(index).getpixel((0, 0)) for index in range(3)] == [(1, 0, 0), (0, 0, 0), (1, 0, 0)]
    assert (source.labels, source.classes) == (None, ())


def test_a_list_file_may_name_classes(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("1.png\tdog\n2.png\tbig cat\n3.png\tdog\n")
    source = files_of(tmp_path / "list.txt")
    assert source.classes == ("big cat", "dog")
    assert labels_of(source) == [1, 0, 1]
    assert source.names == ["1.png", "2.png", "3.png"]


def test_a_list_file_with_classes_on_some_lines_is_refused(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("1.png\tdog\n2.png\n")
    assert "'2.png' has no class" in problem(tmp_path / "list.txt")


def test_an_empty_list_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("\n \n")
    assert "is empty" in problem(tmp_path / "list.txt")


def test_a_list_file_has_no_splits(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("1.png\n")
    assert "a list file has no splits" in problem(f"{tmp_path / 'list.txt'}:test")


def test_another_file_is_refused(tmp_path: Path) -> None:
    folder_of(tmp_path, "a.png")
    assert "is a file; give a folder" in problem(tmp_path / "a.png")


def test_a_list_file_that_cannot_be_read_as_text_names_broken_images(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_bytes(b"\xff\xfe\x00a.png\n")
    with pytest.raises(BrokenImage, match="cannot be opened"):
        files_of(tmp_path / "list.txt").image(0)
