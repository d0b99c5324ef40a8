"""A SOURCE as the user writes it: names, splits, typing mistakes, and labels of two sources."""

import tarfile
from pathlib import Path

import numpy as np
import pytest
from opening import files_of, folder_of, labels_of, pixels_of, problem, write_arrays

from dino_ssl.data import sources
from dino_ssl.data.sources import Source, labels_in, open_source
from dino_ssl.data.tar.shards import Shards
from dino_ssl.errors import UsageError


@pytest.mark.parametrize("held_out", ["val", "test"])
def test_a_root_with_train_and_a_held_out_folder_means_train(tmp_path: Path, held_out: str) -> None:
    folder_of(tmp_path, "train/a/1.png", "train/b/2.png", f"{held_out}/a/3.png", f"{held_out}/b/4.png")
    assert list(files_of(tmp_path).names) == ["a/1.png", "b/2.png"]
    assert files_of(f"{tmp_path}:train").fingerprint() == files_of(tmp_path).fingerprint()
    assert list(files_of(f"{tmp_path}:{held_out}").names) == ["a/3.png", "b/4.png"]
    assert sources.test_source_of(str(tmp_path)) == f"{tmp_path}:{held_out}"
    assert sources.test_source_of(f"{tmp_path}:train") == f"{tmp_path}:{held_out}"
    assert sources.test_source_of(str(tmp_path / "train")) == str(tmp_path / held_out)
    assert sources.test_source_of(f"{tmp_path}:{held_out}") is None


def test_train_alone_is_an_ordinary_folder(tmp_path: Path) -> None:
    folder_of(tmp_path, "train/1.png", "other/2.png")
    assert files_of(tmp_path).classes == ("other", "train")
    assert sources.test_source_of(str(tmp_path)) is None


def test_a_split_that_has_no_folder_is_refused(tmp_path: Path) -> None:
    folder_of(tmp_path, "1.png")
    assert problem(f"{tmp_path}:val").endswith(f"there is no folder '{tmp_path / 'val'}'")


@pytest.mark.parametrize("name", ["digits", "cifar10", "cifar100", "fashion_mnist"])
def test_a_known_name_is_tested_on_its_test_split(name: str) -> None:
    assert sources.test_source_of(name) == f"{name}:test"
    assert sources.test_source_of(f"{name}:train") == f"{name}:test"
    assert sources.test_source_of(f"{name}:test") is None


def test_arrays_are_tested_on_their_test_split_if_they_have_one(tmp_path: Path) -> None:
    write_arrays(tmp_path, np.zeros((2, 4, 4, 3), np.uint8), None)
    assert sources.test_source_of(str(tmp_path)) is None
    write_arrays(tmp_path, np.zeros((2, 4, 4, 3), np.uint8), None, split="test")
    assert sources.test_source_of(str(tmp_path)) == f"{tmp_path}:test"


@pytest.mark.parametrize("spec", ["digits:valid", "digits:", "cifar10:Test"])
def test_an_unknown_split_of_a_known_name_is_refused(spec: str) -> None:
    assert "choose from train, val, test" in problem(spec)


def test_a_known_name_has_no_val() -> None:
    assert problem("digits:val").endswith("there is no val; choose digits:train or digits:test")


def test_a_path_with_a_colon_that_exists_is_a_path(tmp_path: Path) -> None:
    folder_of(tmp_path / "a:test", "1.png")
    folder_of(tmp_path / "a", "test/2.png")
    assert list(files_of(tmp_path / "a:test").names) == ["1.png"]


def test_the_home_folder_may_be_written_as_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    folder_of(tmp_path / "photos", "1.png")
    assert files_of("~/photos").folder == tmp_path / "photos"


@pytest.mark.parametrize(
    ("typo", "meant"),
    [
        ("cifar-10", "cifar10"),
        ("CIFAR10", "cifar10"),
        ("CIFAR-100", "cifar100"),
        ("digit", "digits"),
        ("FashionMNIST", "fashion_mnist"),
        ("cifar-10:test", "cifar10"),
    ],
)
def test_a_misspelt_name_is_recognised(typo: str, meant: str) -> None:
    assert f"'{typo}' does not exist; did you mean {meant}" in problem(typo)


def test_a_misspelt_path_is_compared_with_its_neighbours(tmp_path: Path) -> None:
    folder_of(tmp_path, "photos/1.png", "other/2.png")
    assert problem(tmp_path / "fotos").endswith(f"did you mean {tmp_path / 'photos'}?")
    assert problem(tmp_path / "fotos" / "train").endswith(f"did you mean {tmp_path / 'photos'}?")


def test_a_path_like_nothing_else_shows_what_is_there(tmp_path: Path) -> None:
    folder_of(tmp_path, *(f"{name}/1.png" for name in "abcdef"))
    assert f"{tmp_path} holds a, b, c, d, e, ...; known names are digits" in problem(tmp_path / "imagenet")


@pytest.mark.parametrize("spec", ["", " ", ":", ":train"])
def test_no_data_at_all_says_what_to_write(spec: str) -> None:
    assert "write --data FOLDER" in problem(spec)


@pytest.mark.parametrize("spec", ["a\0b", "x" * 5000, "a:b:c", "a:train:test"])
def test_nonsense_is_a_usage_error_and_not_a_crash(spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert problem(spec)
    assert sources.test_source_of(spec) is None


def test_labels_are_renumbered_to_the_classes_of_the_bank(tmp_path: Path) -> None:
    bank = files_of(folder_of(tmp_path / "bank", "ape/1.png", "bee/2.png", "cow/3.png"))
    queries = files_of(folder_of(tmp_path / "queries", "bee/1.png", "cow/2.png", "cow/3.png"))
    assert labels_of(queries) == [0, 1, 1]
    assert labels_in(queries, bank.classes).tolist() == [1, 2, 2]
    assert labels_in(bank, bank.classes).tolist() == labels_of(bank)


def test_labels_that_the_bank_does_not_know_are_refused(tmp_path: Path) -> None:
    queries = files_of(folder_of(tmp_path, "ape/1.png", "bee/2.png"))
    with pytest.raises(UsageError, match="class 'bee' is not among the 1 classes"):
        labels_in(queries, ("ape",))
    with pytest.raises(UsageError, match="has no labels"):
        labels_in(files_of(tmp_path / "ape"), ("ape",))


def test_both_kinds_are_sources(tmp_path: Path) -> None:
    assert isinstance(pixels_of("digits"), Source)
    assert isinstance(files_of(folder_of(tmp_path, "1.png")), Source)


# -- shards, as far as it is decided here what is one -----------------------------------------------------------


def shard_of(root: Path, name: str, *samples: str) -> Path:
    """A tar of images; returns the root."""
    folder_of(root / "unpacked", *samples)
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(root / name, "w") as tar:
        for sample in samples:
            tar.add(root / "unpacked" / sample, sample)
    return root


def shards_of(spec: Path | str) -> list[str]:
    source = open_source(str(spec), Path("no data here"))
    assert isinstance(source, Shards)
    return [source.describe(index) for index in range(len(source))]


def test_a_tar_a_pattern_and_a_folder_of_tars_are_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    shard_of(tmp_path, "set/a-0.tar", "1.png", "2.png")
    shard_of(tmp_path, "set/a-1.tar", "3.png")
    both = ["a-0.tar: 1.png", "a-0.tar: 2.png", "a-1.tar: 3.png"]
    assert shards_of(tmp_path / "set/a-0.tar") == both[:2]
    for spec in ("set", "set/a-{0..1}.tar", "set/*.tar"):
        assert shards_of(tmp_path / spec) == both
        assert sources.test_source_of(str(tmp_path / spec)) is None


def test_splits_may_be_folders_of_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    shard_of(tmp_path / "a", "set/train/0.tar", "1.png")
    shard_of(tmp_path / "a", "set/val/0.tar", "2.png", "3.png")
    place = tmp_path / "a/set"
    assert shards_of(place) == shards_of(f"{place}:train") == shards_of(place / "train") == ["0.tar: 1.png"]
    assert sources.test_source_of(str(place)) == f"{place}:val"
    assert sources.test_source_of(str(place / "train")) == str(place / "val")
    assert shards_of(f"{place}:val") == ["0.tar: 2.png", "0.tar: 3.png"]


def test_a_tar_beside_images_is_no_shard(tmp_path: Path) -> None:
    shard_of(tmp_path, "set/0.tar", "1.png")
    folder_of(tmp_path / "set", "2.png")
    assert list(files_of(tmp_path / "set").names) == ["2.png"]


def test_a_known_name_wins_over_a_folder_of_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shard_of(tmp_path, "digits/0.tar", "1.png")
    monkeypatch.chdir(tmp_path)
    assert pixels_of("digits").name == "digits:train"


def test_a_url_has_no_split_and_no_neighbour(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "s3:").mkdir()
    (tmp_path / "s3").mkdir()
    monkeypatch.chdir(tmp_path)
    assert sources.test_source_of("s3://bucket/train/{000..099}.tar") is None
