"""List files: text, CSV, TSV and Parquet; every mistake is named with file and line."""

import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from opening import files_of, folder_of, labels_of, problem
from PIL import Image

from dino_ssl.data.decoding import BrokenImage
from dino_ssl.data.sources import Source, load, open_source

needs_pyarrow = pytest.mark.skipif(find_spec("pyarrow") is None, reason="the extra parquet is not installed")


def write(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def reds(source: Source) -> list[int]:
    """The red channel of each image, which `folder_of` sets to its position."""
    return [int(load(source, index).pixels[0, 0, 0]) for index in range(len(source))]


# -- .txt ------------------------------------------------------------------------------------------------------


def test_a_list_file_names_images_relative_to_itself(tmp_path: Path) -> None:
    folder_of(tmp_path, "a b/1.png", "far/2.png")
    source = files_of(write(tmp_path, "list.txt", f"far/2.png\n\na b/1.png\r\n{tmp_path / 'far/2.png'}\n"))
    assert reds(source) == [1, 0, 1]
    assert (source.labels, source.classes) == (None, ())


def test_a_list_file_may_name_classes(tmp_path: Path) -> None:
    source = files_of(write(tmp_path, "list.txt", "1.png\tdog\n2.png\tbig cat\n3.png\tdog\n"))
    assert source.classes == ("big cat", "dog")
    assert labels_of(source) == [1, 0, 1]
    assert list(source.names) == ["1.png", "2.png", "3.png"]


@pytest.mark.parametrize(("text", "line"), [("1.png\tdog\n2.png\n", 2), ("\n1.png\n2.png\n3.png\tdog\n", 2)])
def test_a_list_file_with_classes_on_some_lines_is_refused(tmp_path: Path, text: str, line: int) -> None:
    assert f"list.txt', line {line}: no class" in problem(write(tmp_path, "list.txt", text))


def test_an_empty_list_file_is_refused(tmp_path: Path) -> None:
    assert "is empty" in problem(write(tmp_path, "list.txt", "\n \n"))


@pytest.mark.parametrize("suffix", ["txt", "csv", "parquet"])
def test_a_list_file_has_no_splits(tmp_path: Path, suffix: str) -> None:
    assert "a list file has no splits" in problem(f"{write(tmp_path, f'list.{suffix}', '1.png')}:test")


def test_another_file_is_refused(tmp_path: Path) -> None:
    folder_of(tmp_path, "a.png")
    assert "is a file; give a folder, or a list of images" in problem(tmp_path / "a.png")


def test_a_list_file_that_cannot_be_read_as_text_names_broken_images(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_bytes(b"\xff\xfe\x00a.png\n")
    with pytest.raises(BrokenImage, match="cannot be opened"):
        files_of(tmp_path / "list.txt").raw(0)


def test_names_in_another_encoding_lead_to_their_files(tmp_path: Path) -> None:
    folder_of(tmp_path, "caf\udce9.png")
    (tmp_path / "list.txt").write_bytes(b"caf\xe9.png\n")
    (tmp_path / "list.csv").write_bytes(b"path\ncaf\xe9.png\n")
    for name in ("list.txt", "list.csv"):
        assert reds(files_of(tmp_path / name)) == [0]


def test_missing_and_repeated_lines_are_images_of_their_own(tmp_path: Path) -> None:
    folder_of(tmp_path, "a.png")
    source = files_of(write(tmp_path, "list.txt", "a.png\ngone.png\na.png\n"))
    assert len(source) == 3
    with pytest.raises(BrokenImage, match=r"gone\.png: the file does not exist"):
        source.raw(1)


# -- .csv and .tsv ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("column", ["path", "file", "filename", "image", "Image", " Path "])
def test_a_table_has_its_paths_in_a_column_of_that_name(tmp_path: Path, column: str) -> None:
    folder_of(tmp_path, "0.png", "x/1.png")
    source = files_of(write(tmp_path, "list.csv", f"id,{column}\n7,x/1.png\n8,0.png\n"))
    assert reds(source) == [1, 0]
    assert source.labels is None


@pytest.mark.parametrize("column", ["label", "class", "CLASS"])
def test_a_table_may_have_classes(tmp_path: Path, column: str) -> None:
    source = files_of(write(tmp_path, "list.csv", f"{column},path\ndog ,1.png\ncat,2.png\n\ndog,3.png\n"))
    assert (source.classes, labels_of(source)) == (("cat", "dog"), [1, 0, 1])


def test_a_table_with_an_empty_column_of_classes_has_none(tmp_path: Path) -> None:
    assert files_of(write(tmp_path, "list.csv", "path,label\n1.png,\n2.png,\n")).labels is None


def test_values_may_be_quoted_and_hold_separators_and_line_ends(tmp_path: Path) -> None:
    source = files_of(write(tmp_path, "list.csv", '\ufeffpath,note\r\n"a, ""b"".png","two\r\nlines"\r\n2.png,\r\n'))
    assert list(source.names) == ['a, "b".png', "2.png"]


def test_a_tsv_is_separated_by_tabs(tmp_path: Path) -> None:
    source = files_of(write(tmp_path, "list.tsv", "path\tlabel\na, b.png\tdog\n"))
    assert (list(source.names), source.classes) == (["a, b.png"], ("dog",))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "header: no column is called path or file or filename or image; it has nothing: name the column"),
        ("1.png,dog\n", "header: no column is called path or file or filename or image; it has '1.png', 'dog'"),
        ("path,file\n1,2\n", "header: columns 'path' and 'file' could be meant; rename all but one"),
        ("path,label,class\n1,2,3\n", "header: columns 'label' and 'class' could be meant"),
        ("path,label\n1.png,dog\na,b.png,dog\n", "line 3: 3 columns where the header has 2; put quotes"),
        ("path,label\n1.png\n", "line 2: 1 columns where the header has 2"),
        ("path,label\n1.png,dog\n ,dog\n", "line 3: column 'path' is empty; write a path"),
        ("path,label\n1.png,dog\n2.png,\n", "line 3: no class, where other images have one"),
        ('path\n1.png\n"2.png\n3.png\n', "line 4: unexpected end of data; mend the quotes there"),
        ("path\n", "is empty; write one image per line"),
    ],
)
def test_a_mistake_in_a_table_is_named_with_its_line(tmp_path: Path, text: str, expected: str) -> None:
    message = problem(write(tmp_path, "list.csv", text))
    assert str(tmp_path / "list.csv") in message
    assert expected in message


def test_a_list_without_permission_says_so(tmp_path: Path) -> None:
    (tmp_path / "list.csv").mkdir()
    (tmp_path / "list.csv").rmdir()
    (tmp_path / "list.csv").symlink_to("list.csv")
    assert "does not exist" in problem(tmp_path / "list.csv")


# -- .parquet --------------------------------------------------------------------------------------------------


@pytest.mark.skipif(find_spec("pyarrow") is not None, reason="the extra parquet is installed")
def test_without_pyarrow_a_parquet_says_what_to_install(tmp_path: Path) -> None:
    assert problem(write(tmp_path, "a.parquet", "")).endswith("needs pyarrow: pip install 'dino-ssl[parquet]'")


def write_parquet(file: Path, columns: dict[str, list[object]], rows_per_group: int = 2) -> Path:
    import pyarrow as pa  # noqa: PLC0415
    import pyarrow.parquet as pq  # noqa: PLC0415

    pq.write_table(pa.table(columns), file, row_group_size=rows_per_group)
    return file


def png(red: int) -> bytes:
    import io  # noqa: PLC0415

    stream = io.BytesIO()
    Image.new("RGB", (4, 4), (red, 0, 0)).save(stream, "PNG")
    return stream.getvalue()


@needs_pyarrow
def test_a_parquet_of_paths_is_a_list(tmp_path: Path) -> None:
    folder_of(tmp_path, "0.png", "x/1.png", "2.png")
    columns = {"id": [1, 2, 3], "path": ["x/1.png", "2.png", "0.png"], "label": ["b", "a", "b"]}
    source = files_of(write_parquet(tmp_path / "list.parquet", columns))
    assert reds(source) == [1, 2, 0]
    assert (source.classes, labels_of(source)) == (("a", "b"), [1, 0, 1])


@needs_pyarrow
def test_numbers_as_classes_are_in_the_order_of_the_numbers(tmp_path: Path) -> None:
    columns = {"path": ["a", "b", "c"], "label": [10, 9, 10]}
    source = files_of(write_parquet(tmp_path / "list.parquet", columns))
    assert (source.classes, labels_of(source)) == (("9", "10"), [1, 0, 1])


@needs_pyarrow
@pytest.mark.parametrize("as_struct", [True, False])
def test_a_parquet_of_bytes_holds_the_images(tmp_path: Path, as_struct: bool) -> None:
    cells = [png(red) for red in range(5)]
    images = [{"bytes": cell, "path": "x.png"} for cell in cells] if as_struct else cells
    columns = {"img": images, "label": [1, 0, 1, 1, 0], "filename": list("abcde")}
    source = open_source(str(write_parquet(tmp_path / "a.parquet", columns)), tmp_path)
    assert isinstance(source, Source)
    assert source.shard_sizes.tolist() == [2, 2, 1]
    assert [source.raw(index) for index in (4, 0, 3, 1, 2)] == [cells[index] for index in (4, 0, 3, 1, 2)]
    assert reds(source) == [0, 1, 2, 3, 4]
    assert (source.classes, labels_of(source)) == (("0", "1"), [1, 0, 1, 1, 0])
    assert source.describe(3) == f"{tmp_path / 'a.parquet'}[3]"


@needs_pyarrow
def test_hugging_faces_names_of_classes_are_used(tmp_path: Path) -> None:
    import json  # noqa: PLC0415

    import pyarrow as pa  # noqa: PLC0415
    import pyarrow.parquet as pq  # noqa: PLC0415

    features = {"image": {"_type": "Image"}, "label": {"names": ["zebra", "ape"], "_type": "ClassLabel"}}
    about = {"huggingface": json.dumps({"info": {"features": features}})}
    table = pa.table({"image": [{"bytes": png(0), "path": None}] * 2, "label": [0, 1]}).replace_schema_metadata(about)
    pq.write_table(table, tmp_path / "a.parquet")
    source = open_source(str(tmp_path / "a.parquet"), tmp_path)
    assert (source.classes, labels_of(source)) == (("ape", "zebra"), [1, 0])


@needs_pyarrow
def test_a_row_without_bytes_names_a_file_or_is_broken(tmp_path: Path) -> None:
    folder_of(tmp_path, "0.png", "1.png")
    images = [{"bytes": None, "path": "1.png"}, {"bytes": b"", "path": None}, None, {"bytes": None, "path": "gone.png"}]
    source = open_source(str(write_parquet(tmp_path / "a.parquet", {"image": images})), tmp_path)
    assert load(source, 0).pixels[0, 0, 0] == 1
    for index, expected in ((1, "empty file"), (2, "the row holds no image"), (3, "does not exist")):
        with pytest.raises(BrokenImage, match=expected):
            load(source, index)


@needs_pyarrow
def test_a_table_of_images_works_in_threads_forked_and_sent_processes(tmp_path: Path) -> None:
    cells = [png(red) for red in range(40)]
    source = open_source(str(write_parquet(tmp_path / "a.parquet", {"image": cells}, 3)), tmp_path)
    order = np.random.default_rng(0).permutation(np.repeat(np.arange(40), 5)).tolist()
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(source.raw, order)) == [cells[index] for index in order]
    assert pickle.loads(pickle.dumps(source)).raw(7) == cells[7]
    source.groups._lock.acquire()  # as another thread may hold it at the moment of a fork
    child = os.fork()
    if not child:
        os._exit(source.raw(7) != cells[7])
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@needs_pyarrow
def test_the_memory_of_row_groups_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dino_ssl.data import parquet  # noqa: PLC0415

    monkeypatch.setattr(parquet, "KEPT_BYTES", 5000)
    cells = [bytes([number]) * 1000 for number in range(40)]
    source = open_source(str(write_parquet(tmp_path / "a.parquet", {"image": cells})), tmp_path)
    for index in range(40):
        assert source.raw(index) == cells[index]
    assert 1 <= len(source.groups._kept) <= 2


@needs_pyarrow
def test_a_table_that_vanishes_or_is_cut_leaves_broken_images(tmp_path: Path) -> None:
    file = write_parquet(tmp_path / "a.parquet", {"image": [os.urandom(1000) for _ in range(20)]})
    source, other = (open_source(str(file), tmp_path) for _ in range(2))
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BrokenImage, match="the table cannot be read"):
        source.raw(19)
    file.unlink()
    with pytest.raises(BrokenImage, match=r"a\.parquet\[3\]: the table cannot be read"):
        other.raw(3)


@needs_pyarrow
@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"x": ["a"]}, "no column is called path or file or filename or image; it has 'x'"),
        ({"path": [1]}, "column 'path' holds int64; write text"),
        ({"path": ["a"], "label": [0.5]}, "column 'label' holds double; write text or integer"),
        ({"path": ["a", None]}, "row 1: column 'path' is empty; write a path"),
        ({"path": ["a", "b"], "label": ["x", None]}, "row 1: no class, where other images have one"),
        ({"a": [b"x"], "b": [b"y"]}, "columns a and b hold images; leave one of them"),
        ({"image": [b"x"] * 3, "label": [1, None, 1]}, "row 1: no class"),
    ],
)
def test_a_mistake_in_a_parquet_is_named(tmp_path: Path, columns: dict[str, list[object]], expected: str) -> None:
    message = problem(write_parquet(tmp_path / "a.parquet", columns))
    assert str(tmp_path / "a.parquet") in message
    assert expected in message


@needs_pyarrow
def test_what_is_no_parquet_or_has_no_rows_is_refused(tmp_path: Path) -> None:
    import pyarrow as pa  # noqa: PLC0415

    assert "cannot be read as Parquet" in problem(write(tmp_path, "a.parquet", "hello"))
    for kind, expected in ((pa.binary(), "has no rows"), (pa.string(), "is empty; write one image per line")):
        file = write_parquet(tmp_path / "b.parquet", {"image": pa.array([], kind)})
        assert expected in problem(file)


@needs_pyarrow
def test_the_fingerprint_of_a_table_follows_its_contents_and_not_its_place(tmp_path: Path) -> None:
    def fingerprint(name: str, cells: list[bytes]) -> str:
        (tmp_path / name).mkdir()
        return open_source(str(write_parquet(tmp_path / name / "a.parquet", {"image": cells})), tmp_path).fingerprint()

    one = fingerprint("one", [b"x" * 10, b"y" * 20])
    assert one == fingerprint("same", [b"x" * 10, b"y" * 20])
    assert one != fingerprint("other", [b"x" * 10, b"y" * 21])
