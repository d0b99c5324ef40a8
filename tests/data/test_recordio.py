"""Records: round trips with the magic in any place; damage is refused with its offset and costs nothing else."""

import pickle
import random
import struct
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from dino_ssl.data import recordio
from dino_ssl.data.recordio import HEADER, MAGIC, MAGIC_BYTES, DamagedRecord, RecordFile, RecordWriter, read_index
from dino_ssl.errors import UsageError


def written(folder: Path, payloads: list[bytes]) -> tuple[RecordFile, list[int]]:
    with RecordWriter(folder / "x.rec") as writer:
        for key, payload in enumerate(payloads):
            writer.add(key, payload)
    records = RecordFile(folder / "x.rec")
    keys, offsets = read_index(folder / "x.idx", records.num_bytes)
    assert keys.tolist() == list(range(len(payloads)))
    return records, offsets.tolist()


def naive(content: bytes, offset: int) -> bytes:
    """The format's definition, byte by byte."""
    payload = b""
    while True:
        magic, word = struct.unpack_from("<II", content, offset)
        assert magic == 0xCED7230A
        kind, length = word >> 29, word % 2**29
        payload += content[offset + 8 : offset + 8 + length]
        if kind in (0, 3):
            return payload
        payload += struct.pack("<I", 0xCED7230A)
        offset += 8 + length + (-length) % 4


def with_magic(rng: random.Random) -> bytes:
    """Bytes in which the magic stands often, at multiples of 4 and elsewhere."""
    pieces = [MAGIC_BYTES if rng.random() < 0.4 else rng.randbytes(rng.randrange(7)) for _ in range(rng.randrange(9))]
    return b"".join(pieces)


PAYLOADS = [
    b"", b"a", b"abcd", MAGIC_BYTES, MAGIC_BYTES * 3, b"abcd" + MAGIC_BYTES, MAGIC_BYTES + b"abcde",
    b"ab" + MAGIC_BYTES + b"ab", MAGIC_BYTES[:3], b"x" * 4 + MAGIC_BYTES + b"y" * 4 + MAGIC_BYTES,
]  # fmt: skip


def test_every_payload_comes_back_and_as_the_format_is_defined(tmp_path: Path) -> None:
    rng = random.Random(0)
    payloads = PAYLOADS + [with_magic(rng) for _ in range(300)]
    records, offsets = written(tmp_path, payloads)
    content = (tmp_path / "x.rec").read_bytes()
    assert [records.read(offset) for offset in offsets] == payloads
    assert [naive(content, offset) for offset in offsets] == payloads
    assert len(content) % 4 == 0


def test_no_part_holds_the_magic_where_a_header_could_stand(tmp_path: Path) -> None:
    rng = random.Random(1)
    _, offsets = written(tmp_path, PAYLOADS + [with_magic(rng) for _ in range(300)])
    words = np.fromfile(tmp_path / "x.rec", "<u4")
    heads, place = 0, 0
    while place < len(words):
        assert words[place] == MAGIC
        heads += 1
        place += 2 + -(-(int(words[place + 1]) % 2**29) // 4)
    assert heads == np.count_nonzero(words == MAGIC)
    assert set(offsets) <= set((4 * np.flatnonzero(words == MAGIC)).tolist())


def test_threads_and_other_processes_read_the_same(tmp_path: Path) -> None:
    payloads = [bytes([number]) * 1000 for number in range(50)]
    records, offsets = written(tmp_path, payloads)
    sent = pickle.loads(pickle.dumps(records))
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(sent.read, offsets * 4)) == payloads * 4


def test_a_file_cut_anywhere_gives_what_is_whole_and_the_offset_of_the_rest(tmp_path: Path) -> None:
    payloads = [b"first", b"abcd" + MAGIC_BYTES + b"efgh" + MAGIC_BYTES, b"last!"]
    _, offsets = written(tmp_path, payloads)
    content = (tmp_path / "x.rec").read_bytes()
    ends = [*offsets[1:], len(content)]
    for length in range(len(content)):
        (tmp_path / "cut.rec").write_bytes(content[:length])
        cut = RecordFile(tmp_path / "cut.rec")
        for payload, offset, end in zip(payloads, offsets, ends, strict=True):
            if (length >= end - 3 and len(payload) == 5) or length >= end:
                assert cut.read(offset) == payload
            else:
                with pytest.raises(DamagedRecord) as caught:
                    cut.read(offset)
                assert offset <= caught.value.offset < end


def test_a_flipped_bit_is_refused_or_changes_this_record_only(tmp_path: Path) -> None:
    payloads = [b"first", b"abcd" + MAGIC_BYTES + b"efgh" + MAGIC_BYTES + b"i", b"last!"]
    _, offsets = written(tmp_path, payloads)
    content = (tmp_path / "x.rec").read_bytes()
    begin, end = offsets[1], offsets[2]
    for bit in range(8 * begin, 8 * end):
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        (tmp_path / "bit.rec").write_bytes(changed)
        records = RecordFile(tmp_path / "bit.rec")
        assert (records.read(offsets[0]), records.read(offsets[2])) == (payloads[0], payloads[2])
        try:
            assert len(records.read(begin)) <= len(content)
        except DamagedRecord as error:
            assert begin <= error.offset <= len(content)
            assert f"byte {error.offset:,}" in str(error)


def record(kind: int, payload: bytes, length: int | None = None) -> bytes:
    length = len(payload) if length is None else length
    return HEADER.pack(MAGIC, kind << 29 | length) + payload + bytes(-len(payload) % 4)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (record(0, b"abcd", 2**29 - 1), "byte 0 is cut: 536,870,907 of its 536,870,911 bytes are missing"),
        (record(5, b"abcd"), "byte 0 is of the kind 5"),
        (record(2, b"abcd"), "byte 0 begins in the middle of another one"),
        (record(3, b"abcd"), "byte 0 begins in the middle of another one"),
        (record(1, b"abcd"), "byte 12 lies beyond the end of the file, at byte 12"),
        (record(1, b"abcd") + record(0, b""), "byte 12 should be a further part of the one at byte 0"),
        (record(1, b"abcd") + record(1, b""), "byte 12 should be a further part of the one at byte 0"),
        (b"\xff" * 12, "byte 0 has no magic number 0xced7230a but 0xffffffff"),
    ],
)
def test_made_up_records_are_refused_by_name_before_memory_is_taken(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "x.rec").write_bytes(content)
    with pytest.raises(DamagedRecord, match=said):
        RecordFile(tmp_path / "x.rec").read(0)


def test_parts_without_end_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.rec").write_bytes(record(1, b"") + record(2, b"abcd") * 50 + record(3, b""))
    records = RecordFile(tmp_path / "x.rec")
    assert len(records.read(0)) == 51 * 4 + 50 * 4
    monkeypatch.setattr(recordio, "MAX_PARTS", 20)
    with pytest.raises(DamagedRecord, match="byte 0 is in more than 20 parts"):
        records.read(0)
    monkeypatch.setattr(recordio, "MAX_BYTES", 100)
    with pytest.raises(DamagedRecord, match="is longer than 100 bytes"):
        records.read(0)


def index(folder: Path, text: bytes, num_bytes: int = 1000) -> tuple[list[int], list[int]]:
    (folder / "x.idx").write_bytes(text)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        keys, offsets = read_index(folder / "x.idx", num_bytes)
    return keys.tolist(), offsets.tolist()


def test_an_index_is_sorted_by_key_whatever_its_line_ends(tmp_path: Path) -> None:
    assert index(tmp_path, b"2\t8\n0\t0\r\n1\t992") == ([0, 1, 2], [0, 992, 8])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"", "line 1: it must be a key"),
        (b"0\t0\n1 8\n", "line 2: it must be a key"),
        (b"0\t0\n\n1\t8\n", "line 2: it must be a key"),
        (b"0\t0\n1\t-8\n", "line 2: it must be a key"),
        (b"0\t0\n1\t8\n9\t" + b"9" * 30 + b"\n", "line 3: it must be a key"),
        (b"0\t0\n1\t0x8\n", "line 2"),
        (b"0\t0\n0\t8\n", "key 0 comes twice"),
        (b"0\t0\n1\t10\n", "key 1 is at byte 10, and records begin at multiples of 4"),
        (b"0\t0\n1\t996\n2\t2000\n", "2 of 3 records lie beyond the end .* from key 1 at byte 996 on"),
        (b"0\t0\n" * 2000, "is longer than an index of 1,000 bytes of records can be"),
    ],
)
def test_a_damaged_index_is_refused_with_its_place(tmp_path: Path, text: bytes, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        index(tmp_path, text)


def test_random_bytes_as_an_index_are_refused_or_read(tmp_path: Path) -> None:
    rng = random.Random(2)
    for _ in range(300):
        text = bytes(rng.choice(b"0123456789\t\n\r -x") for _ in range(rng.randrange(1, 40)))
        try:
            keys, offsets = index(tmp_path, text)
        except UsageError:
            continue
        assert [line.split() for line in text.decode().split("\n") if line] != []
        assert sorted(zip(keys, offsets, strict=True)) == sorted(
            tuple(map(int, line.split())) for line in text.decode().split("\n") if line
        )


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    written(tmp_path, [b"kept"])
    before = (tmp_path / "x.rec").read_bytes()
    with pytest.raises(FileExistsError):
        RecordWriter(tmp_path / "x.rec")
    assert (tmp_path / "x.rec").read_bytes() == before
