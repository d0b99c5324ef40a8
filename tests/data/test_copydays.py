import shutil

import pytest

from dino_ssl.data.copydays import open_copydays
from dino_ssl.errors import UsageError


@pytest.fixture
def root(tmp_path):
    names = {
        "original": ["200100", "200000"], "strong": ["200002", "200001", "200101"], "crops/50": ["200000", "200100"],
        "jpegqual/10": ["200100", "200000"], "jpegqual/5": ["200000", "200100"],
    }  # fmt: skip
    for folder, images in names.items():
        (tmp_path / folder).mkdir(parents=True)
        for name in images:
            (tmp_path / folder / f"{name}.jpg").touch()
    (tmp_path / "crops" / "50" / "list.txt").touch()
    return tmp_path


def test_altered_images_belong_to_the_original_of_their_first_four_digits(root):
    found = open_copydays(root)
    assert list(found.originals.names) == ["200000.jpg", "200100.jpg"]
    assert list(found.blocks) == ["strong", "jpegqual/5", "jpegqual/10", "crops/50"]
    strong = found.blocks["strong"]
    assert list(strong.images.names) == ["200001.jpg", "200002.jpg", "200101.jpg"]
    assert strong.originals.tolist() == [0, 0, 1]
    assert found.blocks["crops/50"].originals.tolist() == [0, 1]


@pytest.mark.parametrize("gone", ["original", "strong"])
def test_another_layout_is_an_error_that_shows_the_tree(root, gone):
    shutil.rmtree(root / gone)
    with pytest.raises(UsageError, match=rf"there is no folder .*{gone}; expected is\n  DIR/original/200000.jpg"):
        open_copydays(root)


def test_an_empty_folder_and_an_image_without_an_original_are_errors(root):
    (root / "strong" / "300001.jpg").touch()
    with pytest.raises(UsageError, match=r"300001.jpg has no original .*original/3000\*"):
        open_copydays(root)
    shutil.rmtree(root / "strong")
    (root / "strong").mkdir()
    with pytest.raises(UsageError, match=r"there is no image in .*strong"):
        open_copydays(root)
