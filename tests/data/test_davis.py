import shutil

import numpy as np
import pytest

from dino_ssl.data.davis import open_davis
from dino_ssl.data.masks import Mask, default_palette, write_mask
from dino_ssl.errors import UsageError


def mask(number):
    return np.full((2, 3), number, np.uint8)


def add_clip(root, name, num_frames, num_masks):
    images, annotations = root / "JPEGImages" / "480p" / name, root / "Annotations" / "480p" / name
    images.mkdir(parents=True)
    annotations.mkdir(parents=True)
    for place in range(num_frames):
        (images / f"{place:05d}.jpg").touch()
    for place in range(num_masks):
        write_mask(annotations / f"{place:05d}.png", Mask(mask(1 + place), default_palette()))


@pytest.fixture
def root(tmp_path):
    (tmp_path / "DAVIS" / "ImageSets" / "2017").mkdir(parents=True)
    (tmp_path / "DAVIS" / "ImageSets" / "2017" / "val.txt").write_text("boxes\ntwo\n")
    add_clip(tmp_path / "DAVIS", "boxes", 4, 4)
    add_clip(tmp_path / "DAVIS", "two", 3, 1)
    return tmp_path / "DAVIS"


def test_sequences_come_in_the_order_of_the_list_with_frames_and_masks_by_name(root):
    found = open_davis(root)
    assert [clip.name for clip in found.clips] == ["boxes", "two"]
    boxes, two = found.clips
    assert [frame.name for frame in boxes.frames] == [f"0000{n}.jpg" for n in range(4)]
    assert [mask.name for mask in boxes.masks] == [f"0000{n}.png" for n in range(4)]
    assert boxes.annotated and not two.annotated
    assert np.array_equal(boxes.first_mask().numbers, mask(1))


def test_sequences_can_be_chosen_and_wrong_ones_are_named(root):
    assert [clip.name for clip in open_davis(root, sequences=["two"]).clips] == ["two"]
    with pytest.raises(UsageError, match=r"sequences=boxs is not in .*val.txt; it has boxes"):
        open_davis(root, sequences=["boxs"])


@pytest.mark.parametrize(
    ("gone", "said"),
    [
        ("ImageSets/2017/val.txt", "there is no .*val.txt"),
        ("JPEGImages", "there is no .*JPEGImages/480p"),
        ("JPEGImages/480p/two", r"there is no frame .*480p/two/\*.jpg"),
        ("Annotations/480p", "there is no .*Annotations/480p"),
        ("Annotations/480p/two", "the first frame has no mask .*two/00000.png"),
    ],
)
def test_another_layout_is_an_error_that_shows_the_tree(root, gone, said):
    path = root / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(UsageError, match=said) as caught:
        open_davis(root)
    assert "DIR/Annotations/480p/SEQUENCE/00000.png" in str(caught.value)


def test_the_fingerprint_stays_when_the_folder_moves_and_changes_with_a_mask(root, tmp_path):
    before = open_davis(root).fingerprint()
    moved = root.rename(tmp_path / "elsewhere")
    assert open_davis(moved).fingerprint() == before
    shutil.copy(moved / "Annotations/480p/boxes/00003.png", moved / "Annotations/480p/boxes/00002.png")
    assert open_davis(moved).fingerprint() != before
