"""Any source as files in class folders: nothing is written over, damage is listed, faces can be aligned on the way."""

import io
from pathlib import Path

import numpy as np
import pytest
from opening import ROOT, labels_of
from PIL import Image

from dino_ssl.commands import pack
from dino_ssl.data.alignment import TEMPLATE, aligned
from dino_ssl.data.faces import write_records
from dino_ssl.data.sources import load, open_source
from dino_ssl.errors import RunError, UsageError


def jpeg(level: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (16, 16), (level,) * 3).save(stream, "JPEG")
    return stream.getvalue()


SAMPLES = [(jpeg(10), 3), (jpeg(20), 3), (jpeg(30), 5), (jpeg(40), 9)]


@pytest.fixture
def records(tmp_path: Path) -> Path:
    (tmp_path / "faces").mkdir()
    write_records(tmp_path / "faces" / "train.rec", SAMPLES)
    return tmp_path / "faces"


def test_records_become_class_folders_with_the_same_bytes(records: Path, tmp_path: Path, capsys) -> None:
    words = [str(records), "--output", str(tmp_path / "out"), "--class-folders", "--threads", "2"]
    pack.run(words)
    assert capsys.readouterr().out.split() == ["images", "4", "classes", "3", "skipped", "0"]
    found = open_source(str(tmp_path / "out"), ROOT)
    assert (found.classes, labels_of(found)) == (("3", "5", "9"), [0, 0, 1, 2])
    assert [found.raw(index) for index in range(4)] == [image for image, _ in SAMPLES]
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.jpg")}
    pack.run(words)
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.jpg")}


def test_records_become_shards(records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    pack.run([str(records), "--output", str(tmp_path / "out")])
    found = open_source(str(tmp_path / "out"), ROOT)
    assert found.classes == ("3", "5", "9")
    images = {(found.raw(index), found.classes[label]) for index, label in enumerate(labels_of(found))}
    assert images == {(image, str(label)) for image, label in SAMPLES}


def test_another_image_is_not_written_over(records: Path, tmp_path: Path) -> None:
    (tmp_path / "out" / "3").mkdir(parents=True)
    (tmp_path / "out" / "3" / "000000.jpg").write_bytes(b"mine")
    with pytest.raises(RunError, match=r"000000\.jpg is another image"):
        pack.run([str(records), "--output", str(tmp_path / "out"), "--class-folders"])
    assert (tmp_path / "out" / "3" / "000000.jpg").read_bytes() == b"mine"


def test_images_that_cannot_be_read_are_listed(records: Path, tmp_path: Path, capsys) -> None:
    write_records(tmp_path / "bad.rec", [*SAMPLES, (b"\xff\xd8 no image", 3)])
    pack.run([str(tmp_path / "bad.rec"), "--output", str(tmp_path / "out"), "--class-folders"])
    assert "skipped  1, listed in" in capsys.readouterr().out
    assert "bad.rec[3]\t" in (tmp_path / "out" / "skipped.txt").read_text()
    assert len(open_source(str(tmp_path / "out"), ROOT)) == 4


def test_a_class_that_leads_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    (tmp_path / "list.txt").write_text("a.png\t../../up\na.png\tok\n")
    with pytest.raises(UsageError, match="cannot be the name of a folder"):
        pack.run([str(tmp_path / "list.txt"), "--output", str(tmp_path / "out"), "--class-folders"])
    with pytest.raises(UsageError, match="--class-folders writes no shards"):
        pack.run([str(tmp_path / "list.txt"), "--output", str(tmp_path / "x.tar"), "--class-folders"])


def test_photographs_with_points_become_aligned_faces(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (150, 200, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    points = TEMPLATE * 1.2 + 10
    header = "path,label," + ",".join(f"{axis}{point}" for point in range(1, 6) for axis in "xy")
    values = ",".join(f"{value:.6f}" for value in points.ravel())
    (tmp_path / "list.csv").write_text(f"{header}\nphoto.png,ada,{values}\nphoto.png,bo,{'1,1,' * 4}1,1\n")
    words = [str(tmp_path / "list.csv"), "--align", "--output", str(tmp_path / "out"), "--class-folders"]
    pack.run(words)
    np.testing.assert_array_equal(
        load(open_source(str(tmp_path / "out"), ROOT), 0).pixels, aligned(pixels, points.round(6))
    )
    assert "two different points" in (tmp_path / "out" / "skipped.txt").read_text()
    (tmp_path / "list.csv").write_text(f"{header}\nphoto.png,ada,{values.replace('.', 'x', 1)}\n")
    with pytest.raises(UsageError, match="image 1: x1 is"):
        pack.run(words)
    (tmp_path / "list.csv").write_text("path,label,x1\nphoto.png,ada,3\n")
    with pytest.raises(UsageError, match="there is no column y1"):
        pack.run(words)
    with pytest.raises(UsageError, match=r"--align needs a \.csv"):
        pack.run([str(tmp_path), *words[1:]])
