"""Pairs of faces: published lists, and pairs drawn so that no person is in two folds."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from opening import ROOT, folder_of

from dino_ssl.data.face_pairs import FacePairs, drawn_pairs, open_pairs
from dino_ssl.data.sources import load, open_source
from dino_ssl.data.tinyface import DISTRACTOR, open_tinyface
from dino_ssl.errors import UsageError


def named(pairs: FacePairs) -> list[tuple[str, str, bool]]:
    names = [Path(pairs.images.describe(place)).name for place in range(len(pairs.images))]
    return [
        (names[left], names[right], bool(same))
        for left, right, same in zip(pairs.left, pairs.right, pairs.is_same, strict=True)
    ]


def refused(spec: Path | str, **options: object) -> str:
    with pytest.raises(UsageError) as caught:
        open_pairs(str(spec), ROOT, **options)  # type: ignore[arg-type]
    return str(caught.value)


LFW = "2\t2\nAda\t1\t2\nBo\t1\t3\nAda\t1\tBo\t2\nAda\t2\tBo\t3\nCy\t1\t2\nBo\t2\t3\nCy\t1\tBo\t1\nCy\t2\tAda\t1\n"


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_the_list_of_lfw_names_photographs_in_folders_of_people(tmp_path: Path, suffix: str) -> None:
    people = [("Ada", 2), ("Bo", 3), ("Cy", 2)]
    folder_of(tmp_path / "lfw", *(f"{n}/{n}_{k:04d}.{suffix}" for n, number in people for k in range(1, number + 1)))
    (tmp_path / "pairs.txt").write_text(LFW)
    pairs = open_pairs(str(tmp_path / "pairs.txt"), ROOT, folder=tmp_path / "lfw")
    names = [(one[:-4], other[:-4], same) for one, other, same in named(pairs)]
    assert names == [
        ("Ada_0001", "Ada_0002", True), ("Ada_0001", "Bo_0002", False),
        ("Bo_0001", "Bo_0003", True), ("Ada_0002", "Bo_0003", False),
        ("Cy_0001", "Cy_0002", True), ("Cy_0001", "Bo_0001", False),
        ("Bo_0002", "Bo_0003", True), ("Cy_0002", "Ada_0001", False),
    ]  # fmt: skip
    assert len(pairs.images) == 7 and load(pairs.images, 0).pixels.shape == (4, 4, 3)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("10\t300\nAda\t1\t2\n", "promises 6,000 pairs and has 1"),
        ("1\nAda\t1\t2\nBo\t1\tx\n", "pair 2: it must be `name i j` or `name i name j`"),
        ("0\t0\n", "promises 0 pairs"),
        ("a.png b.png 1\na.png b.png\n", "pair 2: it must be two paths and 1, 0 or -1"),
        ("a.png b.png 1\na.png b.png 2\n", "pair 2: it must be two paths and 1, 0 or -1"),
        ("a.png ../b.png 1\n", "'../b.png' leads out of the folder"),
        ("a.png /b.png 1\n", "'/b.png' leads out of the folder"),
        ("a.png c.png 1\n", "1 of 2 images are not below"),
    ],
)
def test_a_damaged_list_is_refused_with_its_line(tmp_path: Path, text: str, said: str) -> None:
    folder_of(tmp_path, "a.png", "b.png")
    (tmp_path / "list.txt").write_text(text)
    assert said in refused(tmp_path / "list.txt")


@pytest.mark.parametrize("separator", [" ", "\t", ","])
def test_flat_lists_mark_two_people_by_0_or_minus_1(tmp_path: Path, separator: str) -> None:
    folder_of(tmp_path, "a/1.png", "b/2.png")
    lines = [("a/1.png", "b/2.png", "-1"), ("a/1.png", "a/1.png", "1"), ("b/2.png", "a/1.png", "0")]
    (tmp_path / "list.txt").write_text("\n".join(separator.join(line) for line in lines))
    pairs = open_pairs(str(tmp_path / "list.txt"), ROOT)
    assert named(pairs) == [("1.png", "2.png", False), ("1.png", "1.png", True), ("2.png", "1.png", False)]


def test_pairs_of_insightface_are_neighbours(tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(pickle.dumps(([b"a", b"b", b"c", b"d"], [True, False])))
    pairs = open_pairs(str(tmp_path / "x.bin"), ROOT)
    assert (pairs.left.tolist(), pairs.right.tolist(), pairs.is_same.tolist()) == ([0, 2], [1, 3], [True, False])


def people(root: Path, *numbers: int) -> Path:
    return folder_of(root, *(f"{who:03d}/{k}.png" for who, number in enumerate(numbers) for k in range(number)))


@pytest.mark.parametrize("numbers", [(5,) * 20, (*(7,) * 13, *(3,) * 10, *(1,) * 9), (30, *(2,) * 30)])
def test_drawn_pairs_are_different_halved_and_of_other_people_in_every_fold(
    tmp_path: Path, numbers: tuple[int, ...]
) -> None:
    source = open_source(str(people(tmp_path, *numbers)), ROOT)
    assert source.labels is not None
    pairs = drawn_pairs(source, 400)
    assert len(pairs) % 20 == 0 and 20 <= len(pairs) <= 400
    each = len(pairs) // 10
    owners = source.labels[np.stack([pairs.left, pairs.right])]
    assert ((owners[0] == owners[1]) == pairs.is_same).all() and (pairs.left != pairs.right).all()
    folds = [set(owners[:, start : start + each].ravel().tolist()) for start in range(0, len(pairs), each)]
    assert sum(map(len, folds)) == len(set.union(*folds))
    assert all(pairs.is_same[start : start + each].sum() == each // 2 for start in range(0, len(pairs), each))
    drawn = {tuple(sorted(pair)) for pair in zip(pairs.left.tolist(), pairs.right.tolist(), strict=True)}
    assert len(drawn) == len(pairs)
    again = drawn_pairs(source, 400)
    assert (again.left == pairs.left).all() and (drawn_pairs(source, 400, 1).left != pairs.left).any()


def test_every_pair_of_a_person_can_be_drawn(tmp_path: Path) -> None:
    source = open_source(str(people(tmp_path, *(4,) * 40)), ROOT)
    pairs = drawn_pairs(source, 10**6)
    same = {tuple(sorted(p)) for p in zip(pairs.left[::2].tolist(), pairs.right[::2].tolist(), strict=True)}
    assert len(same) == 40 * 6


@pytest.mark.parametrize("numbers", [(2,) * 19, (1,) * 40, (9, 1, 1)])
def test_too_few_people_for_ten_folds_are_refused(tmp_path: Path, numbers: tuple[int, ...]) -> None:
    assert "10 folds need 2 people each" in refused(people(tmp_path, *numbers))


def test_images_without_labels_give_no_pairs(tmp_path: Path) -> None:
    assert "the images have no labels" in refused(folder_of(tmp_path, "a.png"))
    assert "--images goes with a list of pairs" in refused(tmp_path, folder=tmp_path)


def test_tinyface_is_found_below_its_folder_with_labels_from_names(tmp_path: Path) -> None:
    names = [*(f"Probe/{n}_1.png" for n in (3, 12)), "Gallery_Match/12_9.png", "Gallery_Match/3_2.png"]
    folder_of(tmp_path / "Testing_Set", *names, "Gallery_Distractor/x.png")
    for root in (tmp_path, tmp_path / "Testing_Set"):
        found = open_tinyface(root)
        labels = {Path(found.gallery.describe(place)).name: int(v) for place, v in enumerate(found.gallery_labels)}
        assert labels == {"12_9.png": 12, "3_2.png": 3, "x.png": DISTRACTOR}
        assert sorted(found.probe_labels.tolist()) == [3, 12]
        assert load(found.gallery, 2).pixels.shape == (4, 4, 3)
    (tmp_path / "Testing_Set/Probe/3_1.png").rename(tmp_path / "Testing_Set/Probe/me.png")
    with pytest.raises(UsageError, match=r"me\.png: the name must begin with a label"):
        open_tinyface(tmp_path)
    with pytest.raises(UsageError, match="is not laid out as TinyFace"):
        open_tinyface(tmp_path / "Testing_Set" / "Probe")
