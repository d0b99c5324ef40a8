"""Lists of images: a .txt with a path per line, a .csv or .tsv with a header, a .parquet."""

import csv
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dino_ssl.data.compact_names import CompactNames
from dino_ssl.data.folders import Files
from dino_ssl.data.numbering import Numbering
from dino_ssl.errors import UsageError

SUFFIXES = (".txt", ".csv", ".tsv")
PATH_COLUMNS = ("path", "file", "filename", "image")
LABEL_COLUMNS = ("label", "class")


@dataclass(frozen=True)
class Row:
    """An image of a list: where it stands, its path, and its class or nothing."""

    place: str
    path: str
    label: str


def read_list(file: Path) -> Files:
    """Read a list of images; paths are relative to the list's folder.

    .txt: a path per line, optionally a tab and a class. .csv and .tsv: the first line names the columns, one of
    them of `PATH_COLUMNS`, perhaps one of `LABEL_COLUMNS`. Empty lines are left out. Classes are numbered in the
    order of their names. Whether the files exist shows when they are read.

    Raises:
        UsageError: no image, no such column, a line that is damaged, or a class on some lines only.
    """
    try:
        rows = _lines(file) if file.suffix.lower() == ".txt" else _records(file)
        return from_rows(file, rows, Numbering())
    except OSError as error:
        raise UsageError(f"data source '{file}' cannot be opened: {error.strerror}") from None


def from_rows(file: Path, rows: Iterable[Row], numbering: Numbering) -> Files:
    """The images of a list, read row by row.

    Raises:
        UsageError: no row, or a class on some rows only.
    """
    names = CompactNames.of(noting_labels(file, rows, numbering))
    if not names:
        raise UsageError(f"data source '{file}' is empty; write one image per line")
    labels, classes = numbering.result()
    return Files(file.parent, names, labels, classes, str(file))


def noting_labels(file: Path | str, rows: Iterable[Row], numbering: Numbering) -> Iterator[str]:
    """The rows' paths; their labels go into `numbering`.

    Raises:
        UsageError: a class on some rows only.
    """
    unlabelled: Row | None = None
    for row in rows:
        if row.label:
            numbering.add(row.label)
        else:
            unlabelled = unlabelled or row
        if unlabelled and len(numbering):
            raise UsageError(
                f"data source '{file}', {unlabelled.place}: no class, where other images have one; add it, or take "
                "the classes out of the whole list"
            )
        yield row.path


def _lines(file: Path) -> Iterator[Row]:
    with file.open(encoding="utf-8-sig", errors="surrogateescape") as lines:
        for number, line in enumerate(lines, 1):
            path, _, label = line.rstrip("\n").partition("\t")
            if line.strip():
                yield Row(f"line {number}", path, label)


def _records(file: Path) -> Iterator[Row]:
    delimiter = "\t" if file.suffix.lower() == ".tsv" else ","
    with file.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as lines:
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
        try:
            header = next(reader, [])
            path, label = path_column(file, header), label_column(file, header)
            for values in filter(None, reader):
                place = f"line {reader.line_num}"
                record = _record(file, place, header, values)
                if not record[path].strip():
                    raise UsageError(f"data source '{file}', {place}: column '{path}' is empty; write a path")
                yield Row(place, record[path], record[label].strip() if label is not None else "")
        except csv.Error as error:
            raise UsageError(f"data source '{file}', line {reader.line_num}: {error}; mend the quotes there") from None


def _record(file: Path, place: str, header: list[str], values: list[str]) -> dict[str, str]:
    if len(values) != len(header):
        raise UsageError(
            f"data source '{file}', {place}: {len(values)} columns where the header has {len(header)}; "
            "put quotes around a value that holds the separator"
        )
    return dict(zip(header, values, strict=True))


def path_column(file: Path, header: Sequence[str]) -> str:
    """The column of paths, by its name in either case.

    Raises:
        UsageError: there is none, or several could be meant.
    """
    column = _column(file, header, PATH_COLUMNS)
    if column is None:
        found = ", ".join(f"'{name}'" for name in header) or "nothing"
        raise UsageError(
            f"data source '{file}', header: no column is called {' or '.join(PATH_COLUMNS)}; it has {found}: "
            "name the column of paths 'path'"
        )
    return column


def label_column(file: Path, header: Sequence[str]) -> str | None:
    """The column of classes, if there is one.

    Raises:
        UsageError: several could be meant.
    """
    return _column(file, header, LABEL_COLUMNS)


def _column(file: Path, header: Sequence[str], known: tuple[str, ...]) -> str | None:
    columns = [name for name in header if name.strip().lower() in known]
    if len(columns) > 1:
        several = " and ".join(f"'{name}'" for name in columns)
        raise UsageError(f"data source '{file}', header: columns {several} could be meant; rename all but one")
    return columns[0] if columns else None
