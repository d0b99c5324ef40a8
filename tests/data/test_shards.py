"""WebDataset shards: which samples are found, how they are read, and what happens to damaged ones."""

import gzip
import json
import os
import pickle
import random
import shutil
import subprocess
import tarfile
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
from tars import contents, opened, picture, pictures, read_naively, write_tar

from dino_ssl.data.decoding import BrokenImage
from dino_ssl.data.sources import Source, load
from dino_ssl.data.tar import shards as shards_module
from dino_ssl.data.tar.shard_names import expand_braces
from dino_ssl.data.tar.shards import Shards, is_shards
from dino_ssl.errors import UsageError


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache, empty before each test."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


def problem(spec: Path | str) -> str:
    with pytest.raises(UsageError) as caught:
        opened(spec)
    return str(caught.value)


def reason(source: Shards, index: int) -> str:
    with pytest.raises(BrokenImage) as caught:
        source.raw(index)
    assert caught.value.path == source.describe(index)
    return caught.value.reason


# -- samples ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_samples_are_those_of_the_standard_library_and_webdatasets_rule(tmp_path: Path, tar_format: int) -> None:
    rng = random.Random(0)
    entries = []
    for number in range(200):
        folder = rng.choice(["", "a/", "./a.b/", "deep/er/" + "x" * 60 + "/", "long/" + "y" * 90 + "/"])
        key = f"{folder}{'z' * rng.choice([0, 0, 80])}{number}"
        members = [
            (f"{key}.{rng.choice(['jpg', 'PNG', 'webp', 'tiff'])}", rng.randbytes(rng.choice([0, 1, 511, 2000])))
        ]
        members += [(f"{key}.cls", str(rng.randrange(5)).encode()), (f"{key}.txt", rng.randbytes(700)), (key, b"no")]
        rng.shuffle(members)
        entries += members
    path = write_tar(tmp_path / "a.tar", entries, tar_format)
    source = opened(path)
    expected = read_naively(path)
    assert len(source) == 200
    assert contents(source) == [data for _, data, _ in expected]
    assert [source.describe(index) for index in range(200)] == [f"a.tar: {name}" for name, _, _ in expected]
    assert source.labels is not None
    assert [source.classes[label] for label in source.labels] == [label.decode() for _, _, label in expected]
    assert source.problems == ()


def test_shards_are_a_source_that_can_be_decoded(tmp_path: Path) -> None:
    source = opened(write_tar(tmp_path / "train-000003.tar", pictures([7])))
    assert isinstance(source, Source)
    assert load(source, 0).pixels[0, 0].tolist() == [7, 0, 0]
    assert (source.describe(0), source.name) == ("train-000003.tar: 000007.png", str(tmp_path / "train-000003.tar"))
    assert (source.labels, source.classes) == (None, ())


def test_shards_follow_each_other_and_say_where_they_end(tmp_path: Path) -> None:
    for shard, numbers in enumerate([range(3), [], range(3, 4), range(4, 9)]):
        write_tar(tmp_path / f"{shard}.tar", pictures(numbers))
    source = opened(tmp_path)
    assert contents(source) == [picture(n) for n in range(9)]
    assert source.shard_sizes.tolist() == [3, 1, 5]
    assert [source.describe(index).partition(":")[0] for index in (0, 2, 3, 4, 8, -1)] == [
        "0.tar", "0.tar", "2.tar", "3.tar", "3.tar", "3.tar"
    ]  # fmt: skip
    with pytest.raises(IndexError):
        source.raw(9)


def test_an_image_with_one_extension_comes_before_others(tmp_path: Path) -> None:
    entries = [("1.mask.png", b"mask"), ("1.jpg", b"image"), ("2.left.jpg", b"left"), ("2.txt", b"")]
    source = opened(write_tar(tmp_path / "a.tar", entries))
    assert contents(source) == [b"image", b"left"]
    assert source.problems == ()


def test_what_is_no_sample_is_left_out(tmp_path: Path) -> None:
    entries = [("__meta__", b""), ("README", b"x"), (".hidden.png", b"x"), ("a/._1.png", b"x"), ("a/1.png", b"y")]
    path = write_tar(tmp_path / "a.tar", entries)
    with tarfile.open(path, "a") as tar:
        for kind in (tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE):
            folder = tarfile.TarInfo("folder.png")
            folder.type = kind
            tar.addfile(folder)
    assert contents(opened(path)) == [b"y"]


def test_two_samples_with_one_key_count_once_and_are_listed(tmp_path: Path) -> None:
    entries = [("1.png", b"first"), ("2.png", b"other"), ("1.png", b"second"), ("3.png", b"x"), ("1.cls", b"4")]
    source = opened(write_tar(tmp_path / "a.tar", entries))
    assert contents(source) == [b"first", b"other", b"x"]
    (line,) = source.problems
    assert line.startswith("a.tar: 2 samples whose key came before; the first counts")
    assert line.endswith("'1' is the first")


def test_samples_without_or_with_several_images_and_links_are_listed(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", [("1.png", b"a"), ("1.jpg", b"b"), ("2.txt", b"words"), ("3.cls", b"3")])
    with tarfile.open(path, "a") as tar:
        link = tarfile.TarInfo("4.png")
        link.type, link.linkname = tarfile.LNKTYPE, "1.png"
        tar.addfile(link)
    source = opened(path)
    assert contents(source) == [b"a"]
    assert source.problems == (
        "a.tar: 1 sample with several images; the first counts: '1'",
        "a.tar: 2 samples without an image: '2' is the first",
        "a.tar: 1 sample that are links, which hold no image: '4.png'",
    )


def test_names_in_any_encoding_are_kept_and_can_be_written(tmp_path: Path) -> None:
    entries = [("caf\udce9/\udcff.png", b"one"), ("π.png", b"two"), ("caf\udce9.cls", b"")]
    path = write_tar(tmp_path / "\udce4.tar", entries)
    source = opened(path)
    assert contents(source) == [b"one", b"two"]
    assert source.describe(0) == r"\xe4.tar: caf\xe9/\xff.png"
    assert source.describe(1) == r"\xe4.tar: π.png"
    source.problems[0].encode()


def test_members_of_more_than_eight_gibibytes_are_stepped_over(tmp_path: Path) -> None:
    path, giant = tmp_path / "a.tar", tarfile.TarInfo("giant.png")
    giant.size = 9 * 2**30
    after = tarfile.TarInfo("after.png")
    after.size = 3
    with path.open("wb") as file:  # the giant's contents are a hole
        file.write(giant.tobuf(tarfile.GNU_FORMAT))
        file.seek(giant.size, os.SEEK_CUR)
        file.write(after.tobuf(tarfile.PAX_FORMAT) + b"abc" + bytes(509 + 1024))
    source = opened(path)
    assert contents(source) == [b"abc"]
    assert "1 sample of 2 GiB or more, which are left out: 'giant.png'" in source.problems[0]


def test_a_tar_of_1979_is_read(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", [("folder/", b""), ("folder/1.png", b"abc")], tarfile.USTAR_FORMAT)
    data = bytearray(path.read_bytes())
    for start in (0, 512):  # no magic, no type; the sum of signed bytes
        header = data[start : start + 512]
        header[0:4], header[148:156], header[156:157], header[257:265] = b"\xe9\xe8ld", b" " * 8, b"\0", bytes(8)
        header[4:6] = b"er"
        total = sum(byte - 256 if byte > 127 else byte for byte in header)
        header[148:156] = b"%06o\0 " % total
        data[start : start + 512] = header
    path.write_bytes(data)
    assert opened(path).describe(0) == r"a.tar: \xe9\xe8lder/1.png"


# -- labels -------------------------------------------------------------------------------------------------


def labels_of(tmp_path: Path, *texts: tuple[str, str] | None) -> tuple[list[int] | None, tuple[str, ...], Shards]:
    """Labels and classes of samples that have such a (extension, text), in two shards."""
    for shard, group in enumerate([texts[:1], texts[1:]]):
        entries = []
        for number, text in enumerate(group):
            entries += [(f"{shard}{number}.png", b"x")] + (
                [(f"{shard}{number}.{text[0]}", text[1].encode())] if text else []
            )
        write_tar(tmp_path / f"{shard}.tar", entries)
    source = opened(tmp_path)
    return source.labels if source.labels is None else source.labels.tolist(), source.classes, source


def test_integers_are_the_numbers_of_the_classes(tmp_path: Path) -> None:
    labels, classes, _ = labels_of(tmp_path, ("cls", "10"), ("cls", " 2\n"), ("cls", "007"))
    assert (labels, classes) == ([10, 2, 7], tuple(map(str, range(11))))


def test_names_are_numbered_in_their_order_as_class_folders_are(tmp_path: Path) -> None:
    labels, classes, _ = labels_of(tmp_path, ("cls", "dog"), ("cls", "cat"), ("cls", "Zebra"), ("cls", "10"))
    assert (labels, classes) == ([3, 2, 1, 0], ("10", "Zebra", "cat", "dog"))


@pytest.mark.parametrize(
    ("text", "label"),
    [('{"label": 3}', 3), ('{"class": "3"}', 3), ('{"caption": "x", "label": 3, "class": 5}', 3), ("{}", None)]
    + [(text, None) for text in ('{"label": true}', '{"label": -1}', '{"label": null}', "[1]", "no json", "[" * 10**5)],
)
def test_a_json_may_hold_the_label(tmp_path: Path, text: str, label: int | None) -> None:
    labels, _, source = labels_of(tmp_path, ("cls", "1"), ("json", text))
    assert labels == (None if label is None else [1, label])
    assert source.problems == (() if label is not None else ("1 of 2 samples have no label: no labels are used",))


def test_a_cls_comes_before_a_json_wherever_it_stands(tmp_path: Path) -> None:
    entries = [
        ("1.json", b'{"label": 5}'),
        ("1.cls", b"1"),
        ("1.png", b""),
        ("2.cls", b"2"),
        ("2.json", b'{"label": 5}'),
    ]
    source = opened(write_tar(tmp_path / "a.tar", [*entries, ("2.png", b"")]))
    assert source.labels is not None
    assert source.labels.tolist() == [1, 2]


def test_without_any_label_nothing_is_said(tmp_path: Path) -> None:
    assert labels_of(tmp_path, None, None)[2].problems == ()


# -- which shards -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "pattern",
    [
        "a-{000..012}.tar",
        "{8..11}",
        "{08..11}",
        "{3..1}",
        "{a,b}/{0..2}.tar",
        "{a,b{1,2}}",
        "x{,y}",
        "{x}",
        "a{b",
        "{}",
        "p",
    ],
)
def test_braces_stand_for_what_they_stand_for_in_a_shell(pattern: str) -> None:
    bash = subprocess.run(["bash", "-c", f"printf '%s\\n' {pattern}"], capture_output=True, text=True, check=True)
    assert set(expand_braces(pattern)) == set(bash.stdout.split("\n")[:-1])


def test_braces_wildcards_and_a_folder_name_the_same_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(12):
        write_tar(tmp_path / f"data/train-{number:02d}.tar", pictures([number]))
    monkeypatch.chdir(tmp_path)
    expected = [picture(n) for n in range(12)]
    for spec in ("data/train-{00..11}.tar", "data/*.tar", "data", "data/", "**/train-*.tar", str(tmp_path / "data")):
        assert is_shards(spec)
        assert contents(opened(spec)) == expected
    assert contents(opened("data/{train-03,train-0[1-3]}.tar")) == [picture(n) for n in (3, 1, 2)]


def test_a_shard_whose_name_looks_like_a_pattern_is_itself(tmp_path: Path) -> None:
    write_tar(tmp_path / "a{1..3}[x].tar", pictures([5]))
    assert contents(opened(tmp_path / "a{1..3}[x].tar")) == [picture(5)]


def test_missing_shards_are_named(tmp_path: Path) -> None:
    for number in (0, 2):
        write_tar(tmp_path / f"{number}.tar", pictures([number]))
    message = problem(tmp_path / "{0..9}.tar")
    assert f"8 of 10 shards do not exist as files: {tmp_path / '1.tar'}, {tmp_path / '3.tar'}" in message
    assert message.endswith(", ...")
    assert problem(tmp_path / "no.tar").endswith(f"does not exist as a file: {tmp_path / 'no.tar'}")


def test_a_pattern_that_fits_nothing_is_refused(tmp_path: Path) -> None:
    assert problem(tmp_path / "x*.tar").endswith(f"no .tar fits '{tmp_path / 'x*.tar'}'")


def test_a_range_of_too_many_shards_is_refused_at_once(tmp_path: Path) -> None:
    assert "names more than 100,000 shards" in problem(tmp_path / "{0..99999999999999}.tar")


@pytest.mark.parametrize("name", ["a.tar.gz", "a.tgz", "A.TAR.ZST"])
def test_compressed_shards_are_refused_with_what_to_do(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(gzip.compress(b"x"))
    for spec in (tmp_path, tmp_path / name):
        assert is_shards(str(spec))
        assert problem(spec).endswith("is compressed, so that no single image can be read; decompress the shards")


@pytest.mark.parametrize(
    ("names", "is_one"),
    [
        (["a.tar"], True),
        (["a.tar", "index.json", "notes.md"], True),
        (["a.tar", "1.jpg"], False),
        (["a.tar", "x/1"], False),
        (["notes.md"], False),
        ([".a.tar"], False),
        ([], False),
    ],
)
def test_a_folder_is_shards_if_it_holds_tars_and_neither_images_nor_folders(
    tmp_path: Path, names: list[str], is_one: bool
) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert is_shards(str(tmp_path)) == is_one


@pytest.mark.parametrize("spec", ["photos", "cifar10:test", "list.txt", "", "a\0b", "x" * 5000])
def test_other_sources_are_no_shards(spec: str) -> None:
    assert not is_shards(spec)


# -- damage -------------------------------------------------------------------------------------------------


def test_of_a_shard_cut_anywhere_the_whole_samples_are_used_and_the_cut_is_named(tmp_path: Path) -> None:
    entries = [(f"{n}.{extension}", b"%d" % n * 700) for n in range(3) for extension in ("png", "cls")]
    data = write_tar(tmp_path / "whole.tar", entries).read_bytes()
    write_tar(tmp_path / "b.tar", [("good.png", b"good")])
    # Each member takes 512 + 1024 bytes. A sample counts once the contents of both are there.
    for cut in range(0, 7 * 1536, 96):
        (tmp_path / "a.tar").write_bytes(data[:cut])
        source = opened(tmp_path / "{a,b}.tar")
        whole = [n for n in range(3) if cut >= (2 * n + 1) * 1536 + 512 + 700]
        # A cut between a sample's members cannot be told from the end of a sample with one member.
        halves = [n for n in range(3) if (2 * n + 1) * 1536 - 324 <= cut < (2 * n + 1) * 1536 + 512]
        assert contents(source) == [*(b"%d" % n * 700 for n in sorted({*whole, *halves})), b"good"]
        (line,) = [line for line in source.problems if line.startswith("a.tar: ")] or [""]
        assert line or cut >= 6 * 1536 + 512


def test_what_is_no_tar_is_listed_beside_the_others(tmp_path: Path) -> None:
    write_tar(tmp_path / "good.tar", pictures([1]))
    (tmp_path / "empty.tar").touch()
    (tmp_path / "html.tar").write_text("<html>not found</html>" * 100)
    (tmp_path / "gzip.tar").write_bytes(gzip.compress(bytes(10_000)))
    (tmp_path / "folder.png.tar").write_bytes(b"x")
    source = opened(tmp_path)
    assert contents(source) == [picture(1)]
    assert sorted(source.problems) == [
        "empty.tar: empty file (0 bytes); the 0 samples before that are used",
        "folder.png.tar: not a tar file; the 0 samples before that are used",
        "gzip.tar: compressed with gzip, so that no single image can be read; decompress it;"
        " the 0 samples before that are used",
        "html.tar: not a tar file; the 0 samples before that are used",
    ]


def test_shards_without_any_image_are_refused_with_what_was_found(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [("1.txt", b"x"), ("2.txt", b"x")])
    (tmp_path / "b.tar").touch()
    message = problem(tmp_path)
    assert "no image in 2 shards: a.tar: 2 samples without an image" in message
    assert "b.tar: empty file" in message


def test_two_tars_joined_by_cat_are_listed(tmp_path: Path) -> None:
    one, two = (write_tar(tmp_path / f"{n}" / "x.tar", [(f"{n}.png", bytes(20_000))]) for n in range(2))
    (tmp_path / "a.tar").write_bytes(one.read_bytes() + two.read_bytes())
    source = opened(tmp_path / "a.tar")
    assert len(source) == 1
    assert "bytes follow its end mark and are not read" in source.problems[0]


def test_flipped_bytes_give_samples_or_a_problem_and_never_another_end(tmp_path: Path) -> None:
    entries = [("n" * 150 + ".png", b"a" * 600), ("2.png", b"b"), ("2.cls", b"1"), ("3.png", b"c")]
    rng = random.Random(0)
    for tar_format in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        data = write_tar(tmp_path / "a.tar", entries, tar_format).read_bytes()
        for attempt in range(200):
            damaged = bytearray(data)
            start = rng.randrange(0, 7) * 512
            damaged[start + rng.randrange(512)] = rng.randrange(256)
            if attempt % 2:  # a lie with the right check sum
                header = damaged[start : start + 512]
                damaged[start + 148 : start + 156] = b"%06o\0 " % (sum(header) - sum(header[148:156]) + 256)
            path = tmp_path / f"{attempt}.tar"
            path.write_bytes(damaged)
            try:
                assert all(len(image) <= len(data) for image in contents(opened(path)))
            except UsageError as error:
                assert "no image in 1 shards" in str(error)


def test_a_shard_that_vanishes_while_it_is_read_is_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards_module, "MAX_OPEN", 1)
    for number in range(2):
        write_tar(tmp_path / f"{number}.tar", pictures([number]))
    source = opened(tmp_path)
    (tmp_path / "0.tar").unlink()
    assert reason(source, 0) == "the shard does not exist any more"
    assert source.raw(1) == picture(1)
    write_tar(tmp_path / "0.tar", pictures([0]))
    assert source.raw(0) == picture(0)


def test_a_shard_that_shrinks_while_it_is_read_is_a_reason(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", pictures([0, 1]))
    source = opened(path)
    assert source.raw(0) == picture(0)
    os.truncate(path, 600)
    assert reason(source, 1) == "the shard has become shorter since it was indexed"
    assert "changed from 10,240 to 600 bytes" in reason(opened_again(source), 1)


def opened_again(source: Shards) -> Shards:
    """As another process sees it."""
    return pickle.loads(pickle.dumps(source))


def test_a_shard_that_cannot_be_opened_is_listed(tmp_path: Path) -> None:
    write_tar(tmp_path / "good.tar", pictures([1]))
    os.mkfifo(tmp_path / "pipe.tar")
    (tmp_path / "loop.tar").symlink_to(tmp_path / "loop.tar")
    assert "1 of 2 shards do not exist as files" in problem(tmp_path / "{good,loop}.tar")
    assert "pipe.tar" in problem(tmp_path / "{good,pipe}.tar")


# -- reading at once ----------------------------------------------------------------------------------------


def hundred_shards(tmp_path: Path) -> Shards:
    for shard in range(100):
        write_tar(tmp_path / f"{shard:03d}.tar", pictures(range(3 * shard, 3 * shard + 3)))
    return opened(tmp_path)


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts descriptors in /proc")
def test_a_bounded_number_of_shards_stays_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards_module, "MAX_OPEN", 8)
    source = hundred_shards(tmp_path)
    before = open_descriptors()
    assert contents(source) == [picture(n) for n in range(300)]
    assert open_descriptors() <= before + 8


def test_threads_and_forked_processes_read_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards_module, "MAX_OPEN", 4)
    source = hundred_shards(tmp_path)
    order = np.random.default_rng(0).permutation(300).tolist()
    expected = [picture(n) for n in order]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(source.raw, order)) == expected
        queue = get_context("fork").SimpleQueue()
        children = [
            get_context("fork").Process(target=lambda: queue.put(list(map(source.raw, order)))) for _ in range(2)
        ]
        for child in children:
            child.start()
        assert list(pool.map(source.raw, order)) == expected
    assert [queue.get() for _ in children] == [expected, expected]
    for child in children:
        child.join()
        assert child.exitcode == 0


def test_a_source_survives_the_way_to_another_process(tmp_path: Path) -> None:
    source = opened(write_tar(tmp_path / "a.tar", pictures(range(5), label=True)))
    source.raw(0)
    copy = opened_again(source)
    assert contents(copy) == contents(source)
    assert copy.fingerprint() == source.fingerprint()


# -- the index ----------------------------------------------------------------------------------------------


def test_the_index_takes_24_bytes_and_a_name_for_each_sample(tmp_path: Path) -> None:
    index = opened(write_tar(tmp_path / "a.tar", pictures(range(1000)))).index
    arrays = [index.starts, index.sizes, index.labels, index.name_starts, index.names]
    assert sum(array.nbytes for array in arrays) == 1000 * (24 + len("000000.png")) + 8


def overwrite_quietly(path: Path, data: bytes) -> None:
    """Other contents of the same length, without a new time of change."""
    times = path.stat()
    assert len(data) == times.st_size
    path.write_bytes(data)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def test_an_index_is_kept_and_found_stale_when_a_shard_changed(tmp_path: Path, cache: Path) -> None:
    path = write_tar(tmp_path / "a.tar", pictures([1], label=True))
    first = opened(path)
    overwrite_quietly(path, write_tar(tmp_path / "b.tar", pictures([2], label=True)).read_bytes())
    again = opened(path)
    assert again.describe(0) == first.describe(0) == "a.tar: 000001.png"  # nobody looked into the tar
    os.utime(path)
    assert opened(path).describe(0) == "a.tar: 000002.png"
    assert len(list((cache / "dino_ssl" / "shards").iterdir())) == 2


def test_a_kept_index_says_all_that_a_new_one_says(tmp_path: Path) -> None:
    entries = [("1.png", b"x"), ("1.cls", b"caf\xe9"), ("2.png", b"y"), ("2.cls", b"b"), ("3.txt", b""), ("1.png", b"")]
    for name in ("a", "b"):
        write_tar(tmp_path / f"{name}.tar", entries)
    new, kept = opened(tmp_path), opened(tmp_path)
    assert (new.problems, new.classes, new.fingerprint()) == (kept.problems, kept.classes, kept.fingerprint())
    assert new.labels is not None
    assert kept.labels is not None
    assert new.labels.tolist() == kept.labels.tolist() == [1, 0, 1, 0]
    assert [new.describe(i) for i in range(4)] == [kept.describe(i) for i in range(4)]


@pytest.mark.parametrize("damage", [b"", b"nothing", None])
def test_a_damaged_index_is_made_anew(tmp_path: Path, cache: Path, damage: bytes | None) -> None:
    path = write_tar(tmp_path / "a.tar", pictures([1]))
    opened(path)
    (kept,) = (cache / "dino_ssl" / "shards").iterdir()
    whole = kept.read_bytes()
    kept.write_bytes(whole[:-3] if damage is None else damage)
    assert contents(opened(path)) == [picture(1)]
    assert kept.read_bytes() == whole


def test_arbitrary_damage_of_an_index_breaks_images_at_most(tmp_path: Path, cache: Path) -> None:
    path = write_tar(tmp_path / "a.tar", pictures(range(4), label=True))
    opened(path)
    (kept,) = (cache / "dino_ssl" / "shards").iterdir()
    whole, rng = kept.read_bytes(), random.Random(0)
    for _ in range(200):
        damaged = bytearray(whole)
        damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        kept.write_bytes(damaged)
        source = opened(path)
        for index in range(len(source)):
            source.describe(index)
            try:
                source.raw(index)
            except BrokenImage as error:
                assert error.reason


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert contents(opened(write_tar(tmp_path / "a.tar", pictures([1])))) == [picture(1)]


def test_several_ranks_may_index_at_once(tmp_path: Path) -> None:
    hundred_shards(tmp_path / "first")
    shutil.copytree(tmp_path / "first", tmp_path / "second")
    with ThreadPoolExecutor(8) as pool:
        sources = list(pool.map(opened, [tmp_path / "second"] * 8))
    assert len({source.fingerprint() for source in sources}) == 1
    assert all(len(source) == 300 for source in sources)


def test_the_fingerprint_stays_when_shards_move_and_differs_for_others(tmp_path: Path) -> None:
    write_tar(tmp_path / "one/a.tar", pictures([1, 2]))
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    (tmp_path / "two/a.tar").rename(tmp_path / "two/renamed.tar")
    write_tar(tmp_path / "three/a.tar", pictures([1, 3]))
    write_tar(tmp_path / "four/a.tar", [("000001.png", picture(1)), ("000002.png", picture(2) + b"x")])
    fingerprints = [opened(tmp_path / name).fingerprint() for name in ("one", "two", "three", "four")]
    assert fingerprints[0] == fingerprints[1]
    assert len(set(fingerprints)) == 3
    assert len(fingerprints[0]) == 16


def test_a_strange_index_json_beside_the_shards_does_no_harm(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", pictures([1], label=True))
    for text in ("{}", "[]", "no json", '{"made_by": "me"}'):
        (tmp_path / "index.json").write_text(text)
        assert contents(opened(tmp_path)) == [picture(1)]
    (tmp_path / "index.json").write_text(json.dumps({"made_by": "dino-ssl pack"}))
    assert "index.json cannot be read" in opened(tmp_path).problems[0]
