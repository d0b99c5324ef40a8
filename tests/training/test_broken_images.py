import logging
from pathlib import Path

import pytest

from dino_ssl.training.broken_images import BrokenImages

ODD = [("new\nline.jpg", "damaged"), ("tab\t.jpg", "damaged"), ("u\u2028.jpg", "gone"), ("a\udce9.jpg", "gone")]


def test_a_name_with_any_characters_is_one_line_and_is_listed_once_however_often_a_run_resumes(tmp_path: Path) -> None:
    path = tmp_path / "broken.txt"
    for _ in range(3):
        BrokenImages(path, 100, 1.0).add(ODD)
    lines = path.read_text(encoding="utf-8").split("\n")
    assert lines[-1] == "" and len(lines) == 1 + len(ODD)
    assert lines[0] == "new\\nline.jpg\tdamaged"
    assert len(BrokenImages(path, 100, 1.0)) == len(ODD)


def test_the_first_broken_image_is_announced_and_no_other(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    broken = BrokenImages(tmp_path / "broken.txt", 100, 1.0)
    with caplog.at_level(logging.WARNING, "dino_ssl"):
        for number in range(3):
            broken.add([(f"{number}.jpg", "damaged")])
            broken.add([])
    assert len(caplog.messages) == 1 and str(tmp_path / "broken.txt") in caplog.messages[0]
