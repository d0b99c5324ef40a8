"""InsightFace's records and pairs without MXNet: round trips, several labels, large labels, damage and malice."""

import io
import os
import pickle
import random
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from opening import ROOT, labels_of, problem
from PIL import Image

from dino_ssl.data import face_bins
from dino_ssl.data.decoding import BrokenImage
from dino_ssl.data.face_bins import read_bin
from dino_ssl.data.face_headers import NARROW, PACKED, WIDE, Header
from dino_ssl.data.faces import Records, read_records, write_records
from dino_ssl.data.recordio import MAGIC, MAGIC_BYTES, RecordWriter
from dino_ssl.data.sources import load, open_source, problems_of
from dino_ssl.errors import UsageError


def jpeg(level: int, extra: bytes = b"") -> bytes:
    """An image that can be told by its brightness, with anything behind its end."""
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), (level,) * 3).save(stream, "PNG" if extra else "JPEG")
    data = stream.getvalue()
    return data + extra + bytes(-len(data) % 4)


def records_of(file: Path) -> Records:
    source = open_source(str(file), ROOT)
    assert isinstance(source, Records)
    return source


def level(source: Records, index: int) -> int:
    return int(load(source, index).pixels[0, 0, 0])


SAMPLES = [(jpeg(10), 0), (jpeg(20), 2), (jpeg(30, MAGIC_BYTES * 2 + b"tail"), 2), (jpeg(40), 7)]


@pytest.mark.parametrize("header", [NARROW, WIDE, PACKED])
def test_images_and_identities_come_back_whatever_the_header(tmp_path: Path, header: Header) -> None:
    write_records(tmp_path / "train.rec", SAMPLES, header=header)
    source = records_of(tmp_path / "train.rec")
    assert source.header is header
    assert [source.raw(index) for index in range(len(source))] == [image for image, _ in SAMPLES]
    assert (labels_of(source), source.classes) == ([0, 1, 1, 2], ("0", "2", "7"))
    assert source.keys.tolist() == [1, 2, 3, 4]
    assert source.describe(3).endswith("train.rec[4]")
    assert [abs(level(source, index) - 10 * (index + 1)) <= 1 for index in range(4)] == [True] * 4
    assert problems_of(source) == ()


def test_a_folder_of_records_is_opened_and_a_copy_of_it_has_the_same_fingerprint(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_records(tmp_path / name / "train.rec", SAMPLES)
    sources = [open_source(str(tmp_path / name), ROOT) for name in ("a", "b")]
    assert sources[0].fingerprint() == sources[1].fingerprint()
    write_records(tmp_path / "other.rec", [(image, label + 1) for image, label in SAMPLES[:3]] + SAMPLES[3:])
    assert records_of(tmp_path / "other.rec").fingerprint() != sources[0].fingerprint()
    assert pickle.loads(pickle.dumps(sources[0])).raw(2) == SAMPLES[2][0]


def test_labels_above_what_float32_tells_apart_come_back_exactly(tmp_path: Path) -> None:
    labels = [2**24 - 1, 2**24, 2**24 + 1, 2**24 + 3]
    write_records(tmp_path / "wide.rec", [(jpeg(10 * label), label) for label in range(2)] + [
        (jpeg(100), label) for label in labels
    ])  # fmt: skip
    source = records_of(tmp_path / "wide.rec")
    assert source.header is WIDE
    assert [int(source.classes[label]) for label in labels_of(source)] == [0, 1, *labels]


def test_labels_that_float32_cannot_tell_apart_are_neither_written_nor_believed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="write WIDE headers"):
        NARROW.payload([2**24 + 1], jpeg(1), 0, in_array=False)
    with RecordWriter(tmp_path / "x.rec") as writer:
        writer.add(1, NARROW.payload([0], jpeg(1), 0, in_array=False))
        writer.add(2, NARROW.payload([2**24], jpeg(1), 0, in_array=False))
    offset = int((tmp_path / "x.idx").read_text().split()[-1])
    said = f"the label 16777216 of the record at byte {offset:,} may be another's: float32 tells them apart below"
    assert said in problem(tmp_path / "x.rec")


def test_of_several_labels_the_first_is_the_identity(tmp_path: Path) -> None:
    for header in (NARROW, WIDE, PACKED):
        file = tmp_path / f"{header.size}.rec"
        with RecordWriter(file) as writer:
            writer.add(0, header.payload([3, 4], b"", 0, in_array=True))
            writer.add(1, header.payload([5, 77, 0.25], jpeg(10), 1, in_array=True))
            writer.add(2, header.payload([6], jpeg(20), 2, in_array=True))
            writer.add(3, header.payload([1, 3], b"", 3, in_array=True))
        source = records_of(file)
        assert [source.classes[label] for label in labels_of(source)] == ["5", "6"]
        assert header.labels(source.file.read(int(source.offsets[0]))) == [5, 77, 0.25]
        assert source.raw(1) == jpeg(20)


def test_without_a_record_0_about_the_others_every_record_is_an_image_but_empty_ones(tmp_path: Path) -> None:
    with RecordWriter(tmp_path / "x.rec") as writer:
        writer.add(0, NARROW.payload([3], jpeg(10), 0, in_array=False))
        writer.add(1, NARROW.payload([1], b"", 0, in_array=False))
        writer.add(2, b"")
        writer.add(5, NARROW.payload([1], jpeg(20), 0, in_array=False))
    source = records_of(tmp_path / "x.rec")
    assert (source.keys.tolist(), source.classes, labels_of(source)) == ([0, 5], ("1", "3"), [1, 0])
    assert problems_of(source) == ()


def test_the_magic_may_stand_in_header_and_labels_too(tmp_path: Path) -> None:
    label = struct.unpack("<f", MAGIC_BYTES)[0]
    with RecordWriter(tmp_path / "x.rec") as writer:
        writer.add(0, NARROW.payload([4], jpeg(10), MAGIC, in_array=False))
        writer.add(1, NARROW.payload([9, label], jpeg(20), MAGIC << 32 | MAGIC, in_array=True))
    source = records_of(tmp_path / "x.rec")
    assert ([source.raw(0), source.raw(1)], source.classes) == ([jpeg(10), jpeg(20)], ("4", "9"))


@pytest.mark.parametrize("label", [-1, 0.5, float("nan"), float("inf"), 1e30])
def test_labels_that_are_no_identities_are_refused_with_the_offset(tmp_path: Path, label: float) -> None:
    with RecordWriter(tmp_path / "x.rec") as writer:
        writer.add(1, NARROW.payload([0], jpeg(1), 0, in_array=False))
        payload = struct.pack(NARROW.layout, 0, label, 0, 0) + jpeg(2)
        writer.add(2, payload)
    offset = int((tmp_path / "x.idx").read_text().split()[-1])
    assert f"of the record at byte {offset:,} is no number of an identity" in problem(tmp_path / "x.rec")


def test_labels_are_compared_with_the_number_of_identities_beside_the_records(tmp_path: Path) -> None:
    write_records(tmp_path / "train.rec", SAMPLES)
    (tmp_path / "property").write_text("8,112,112\n")
    assert len(records_of(tmp_path / "train.rec")) == 4
    (tmp_path / "property").write_text("7,112,112\n")
    assert "is not below 7, the number of identities in property" in problem(tmp_path / "train.rec")
    (tmp_path / "property").write_text("many")
    assert "must begin with the number of identities" in problem(tmp_path / "train.rec")


def test_a_file_or_an_index_that_is_cut_is_refused(tmp_path: Path) -> None:
    write_records(tmp_path / "train.rec", SAMPLES)
    content, index = (tmp_path / "train.rec").read_bytes(), (tmp_path / "train.idx").read_text()
    lines = index.splitlines(keepends=True)
    (tmp_path / "train.rec").write_bytes(content[: int(lines[3].split()[1]) + 4])
    assert f"from key 3 at byte {int(lines[3].split()[1]):,} on" in problem(tmp_path / "train.rec")
    (tmp_path / "train.rec").write_bytes(content)
    (tmp_path / "train.idx").write_text("".join(lines[:4]))
    assert "ends with key 3, and record 0 promises keys up to 7: it is cut" in problem(tmp_path / "train.rec")
    (tmp_path / "train.idx").unlink()
    assert "train.idx, the index of the records beside it, cannot be opened" in problem(tmp_path / "train.rec")


def test_a_damaged_record_is_named_with_its_offset_and_all_others_are_used(tmp_path: Path) -> None:
    write_records(tmp_path / "train.rec", SAMPLES)
    offset = int((tmp_path / "train.idx").read_text().splitlines()[2].split()[1])
    content = bytearray((tmp_path / "train.rec").read_bytes())
    content[offset] ^= 1
    (tmp_path / "train.rec").write_bytes(content)
    source = records_of(tmp_path / "train.rec")
    assert (source.keys.tolist(), source.classes, labels_of(source)) == ([1, 3, 4], ("0", "2", "7"), [0, 1, 2])
    assert [source.raw(index) for index in range(3)] == [SAMPLES[place][0] for place in (0, 2, 3)]
    (said,) = problems_of(source)
    assert "1 of 8 records are left out" in said and f"key 2: the record at byte {offset:,} has no magic" in said


def test_a_record_that_is_damaged_later_is_a_broken_image(tmp_path: Path) -> None:
    write_records(tmp_path / "train.rec", SAMPLES)
    source = records_of(tmp_path / "train.rec")
    with (tmp_path / "train.rec").open("r+b") as file:
        file.seek(int(source.offsets[1]) + 8)
        file.write(b"\xff" * 4)  # 4,294,967,295 labels
    with pytest.raises(BrokenImage, match=f"byte {source.offsets[1]:,} promises 4,294,967,295 labels"):
        source.raw(1)
    assert source.raw(2) == SAMPLES[2][0]
    again = records_of(tmp_path / "train.rec")
    assert again.keys.tolist() == [1, 3, 4] and "promises 4,294,967,295 labels" in problems_of(again)[0]


def test_any_changed_byte_is_refused_or_leaves_all_other_images_as_they_were(tmp_path: Path) -> None:
    write_records(tmp_path / "train.rec", SAMPLES)
    content = (tmp_path / "train.rec").read_bytes()
    (tmp_path / "bad.idx").write_bytes((tmp_path / "train.idx").read_bytes())
    starts = [int(line.split()[1]) for line in (tmp_path / "train.idx").read_text().splitlines()]
    rng = random.Random(0)
    for _ in range(200):
        place = rng.randrange(len(content))
        (tmp_path / "bad.rec").write_bytes(content[:place] + bytes([rng.randrange(256)]) + content[place + 1 :])
        hit = max(key for key, start in enumerate(starts) if start <= place)
        try:
            source = read_records(tmp_path / "bad.rec")
        except UsageError as error:
            assert "byte" in str(error) or "record" in str(error)
            continue
        kept = {int(key): source.raw(index) for index, key in enumerate(source.keys) if key != hit}
        assert kept == {key: image for key, (image, _) in enumerate(SAMPLES, 1) if key != hit}


def test_files_of_other_records_are_refused(tmp_path: Path) -> None:
    with RecordWriter(tmp_path / "x.rec") as writer:
        writer.add(0, b"this is text")
        writer.add(1, b"and more text, of forty bytes or a few more")
    assert "holds no faces as InsightFace writes them" in problem(tmp_path / "x.rec")
    with RecordWriter(tmp_path / "y.rec") as writer:
        writer.add(0, NARROW.payload([1], jpeg(1), 0, in_array=False))
        writer.add(1, WIDE.payload([1], jpeg(1), 0, in_array=False))
    assert "headers of several sizes: 24 bytes at byte 0, 32 bytes at byte" in problem(tmp_path / "y.rec")


# -- pairs -----------------------------------------------------------------------------------------------------

IMAGES = [jpeg(10 * place) for place in range(6)]
SAME = [True, False, True]


def python2(images: list[bytes], same: list[bool]) -> bytes:
    """As Python 2 pickled it with protocol 2: texts of bytes, remembered each."""
    parts = [b"\x80\x02]q\x00("]
    for place, image in enumerate(images):
        short = len(image) < 256
        parts.append((b"U" + bytes([len(image)]) if short else b"T" + struct.pack("<i", len(image))) + image)
        parts.append(b"q" + bytes([place + 1]))
    flags = b"".join(b"\x88" if value else b"\x89" for value in same)
    return b"".join([*parts, b"e]q\x64(", flags, b"e\x86q\x65."])


def test_pairs_of_either_python_come_back(tmp_path: Path) -> None:
    contents: list[bytes] = [pickle.dumps((IMAGES, SAME), protocol) for protocol in (3, 4, 5)]
    contents += [pickle.dumps((IMAGES, [int(value) for value in SAME])), pickle.dumps([tuple(IMAGES), tuple(SAME)])]
    contents += [
        pickle.dumps((IMAGES[:1] * 2, [True])),
        python2(IMAGES, SAME),
        python2([b"\xff\x00" * 300] * 2, [True]),
    ]
    for content in contents[:5] + contents[6:7]:
        (tmp_path / "x.bin").write_bytes(content)
        images, is_same = read_bin(tmp_path / "x.bin")
        assert ([images.raw(index) for index in range(6)], is_same.tolist()) == (IMAGES, SAME)
    (tmp_path / "x.bin").write_bytes(contents[5])
    assert len(read_bin(tmp_path / "x.bin")[0]) == 2
    (tmp_path / "x.bin").write_bytes(contents[7])
    assert read_bin(tmp_path / "x.bin")[0].raw(1) == b"\xff\x00" * 300


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_pairs_of_arrays_come_back_without_calling_anything(tmp_path: Path, protocol: int) -> None:
    arrays = [np.frombuffer(image, np.uint8) for image in IMAGES]
    for same in (list(np.array(SAME)), np.array(SAME), SAME):
        (tmp_path / "x.bin").write_bytes(pickle.dumps((arrays, same), protocol))
        images, is_same = read_bin(tmp_path / "x.bin")
        assert ([images.raw(index) for index in range(6)], is_same.tolist()) == (IMAGES, SAME)


def test_the_images_of_pairs_are_a_source_without_labels(tmp_path: Path) -> None:
    (tmp_path / "lfw.bin").write_bytes(pickle.dumps((IMAGES, SAME)))
    source = open_source(str(tmp_path / "lfw.bin"), ROOT)
    assert (len(source), source.labels, source.describe(2)) == (6, None, f"{tmp_path / 'lfw.bin'}[2]")
    assert abs(int(load(source, 2).pixels[0, 0, 0]) - 20) <= 1


class Caller:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch ran",)


@pytest.mark.parametrize("protocol", range(6))
def test_pairs_that_want_to_run_something_are_refused_and_run_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protocol: int
) -> None:
    monkeypatch.chdir(tmp_path)
    for content in ((IMAGES, [Caller()]), Caller(), ([Caller()] * 6, SAME)):
        Path("x.bin").write_bytes(pickle.dumps(content, protocol))
        with pytest.raises(UsageError, match="was not run"):
            read_bin(Path("x.bin"))
    assert not Path("ran").exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (pickle.dumps((IMAGES, SAME[:2])), "6 images and 2 pairs"),
        (pickle.dumps(([], [])), "0 images and 0 pairs"),
        (pickle.dumps(([*IMAGES[:5], 3], SAME)), "image 5 is a int"),
        (pickle.dumps((IMAGES, [True, False, 2])), "pair 2 is marked 2"),
        (pickle.dumps(IMAGES), "holds a list, not images"),
        (pickle.dumps({"a": 1}), "byte 11: EMPTY_DICT, which lists of images and booleans do not need"),
        (b"", "is damaged or no set of pairs, from byte 0"),
        (b"\x80\x04]\x94(B\xff\xff\xff\x7fabc", "from byte 4"),
        (b"\x80\x04]\x94\x8e" + b"\xff" * 7 + b"\x7fabc", "from byte 3"),
        (b"\x80\x02]e.", "from byte 3"),
        (b"\x80\x02h\x07.", "from byte 2"),
        (b"cnumpy\nndarray\nr\xff\xff\xff\x7f.", "at byte 15: place 2,147,483,647 to remember at"),
    ],
)
def test_pairs_that_are_something_else_are_refused_with_their_place(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "x.bin").write_bytes(content)
    with pytest.raises(UsageError, match=said):
        read_bin(tmp_path / "x.bin")


def test_a_set_of_pairs_cut_anywhere_or_with_any_changed_byte_is_refused_or_read(tmp_path: Path) -> None:
    content = pickle.dumps(([bytes(20), bytes(range(20))], [True]))
    for length in range(len(content)):
        (tmp_path / "x.bin").write_bytes(content[:length])
        with pytest.raises(UsageError, match="byte"):
            read_bin(tmp_path / "x.bin")
    rng = random.Random(0)
    for _ in range(300):
        place = rng.randrange(len(content))
        (tmp_path / "x.bin").write_bytes(content[:place] + bytes([rng.randrange(256)]) + content[place + 1 :])
        try:
            images, is_same = read_bin(tmp_path / "x.bin")
        except UsageError:
            continue
        assert len(images) == 2 * len(is_same)


def test_a_set_of_pairs_that_is_too_long_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.bin").write_bytes(pickle.dumps((IMAGES, SAME)))
    monkeypatch.setattr(face_bins, "MAX_BYTES", 100)
    with pytest.raises(UsageError, match="a set of pairs has at most 100"):
        read_bin(tmp_path / "x.bin")
