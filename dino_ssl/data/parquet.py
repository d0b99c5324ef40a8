"""Parquet files (extra `parquet`): lists of paths, and tables that hold the images themselves."""

import hashlib
import json
import os
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int64

from dino_ssl.data import decoding, tables
from dino_ssl.data.decoding import BrokenImage, Raw
from dino_ssl.data.folders import Files
from dino_ssl.data.numbering import Numbering
from dino_ssl.data.tables import Row
from dino_ssl.errors import UsageError

if TYPE_CHECKING:  # whole names: the tests resolve them
    import pyarrow
    import pyarrow.parquet

KEPT_BYTES = 512 * 2**20
"""Row groups that stay in memory, per process; one does, however large it is."""


class RowGroups:
    """A column, a row group at a time: a row can only be read together with its group. The latest are kept."""

    def __init__(self, file: Path, column: str) -> None:
        self.file = file
        self.column = column
        self._forget()

    def __reduce__(self) -> tuple[type["RowGroups"], tuple[Path, str]]:
        return RowGroups, (self.file, self.column)

    def cell(self, group: int, row: int) -> Any:
        """The value in a row of a group.

        Raises:
            OSError: the file has gone.
            pyarrow.ArrowException: it is damaged.
        """
        if self._process != os.getpid():
            self._forget()  # a forked worker may have been born while another thread held the lock
        with self._lock:
            if group not in self._kept:
                self._kept[group] = self._read(group)
                self._drop_oldest()
            self._kept.move_to_end(group)
            return self._kept[group][row].as_py()

    def _forget(self) -> None:
        self._process = os.getpid()
        self._lock = Lock()
        self._kept: OrderedDict[int, pyarrow.ChunkedArray] = OrderedDict()

    def _read(self, group: int) -> "pyarrow.ChunkedArray":
        import pyarrow.parquet as pq  # noqa: PLC0415

        # Opened each time and without Arrow's own threads: forked workers then share nothing.
        with pq.ParquetFile(self.file) as table:
            return table.read_row_group(group, columns=[self.column], use_threads=False).column(0)

    def _drop_oldest(self) -> None:
        while len(self._kept) > 1 and sum(kept.nbytes for kept in self._kept.values()) > KEPT_BYTES:
            self._kept.popitem(last=False)


@dataclass(frozen=True, eq=False)
class ParquetImages:
    """Encoded images in the cells of a table.

    Rows are read a row group at a time, so that a random order over large groups is slow: write groups of about a
    hundred images, or repack the set into shards.
    """

    groups: RowGroups
    shard_sizes: Int64[np.ndarray, " s"]
    """Rows in each group."""
    labels: Int64[np.ndarray, " n"] | None
    """Indices into `classes`; None where nothing is known."""
    classes: tuple[str, ...]
    name: str
    content: str
    """What `fingerprint` returns."""

    def __len__(self) -> int:
        return int(self.shard_sizes.sum())

    def raw(self, index: int) -> Raw:
        """The image's bytes, or those of the file that the row names.

        Raises:
            BrokenImage: the table cannot be read (any more), or the row is empty.
        """
        import pyarrow as pa  # noqa: PLC0415

        ends = np.cumsum(self.shard_sizes)
        group = int(np.searchsorted(ends, index, side="right"))
        try:
            cell = self.groups.cell(group, int(index - ends[group] + self.shard_sizes[group]))
        except (OSError, pa.ArrowException) as error:
            raise BrokenImage(self.describe(index), f"the table cannot be read: {error}") from None
        return image_in(cell, self.groups.file.parent, self.describe(index))

    def describe(self, index: int) -> str:
        """The file and the row, counted from 0: `train.parquet[12]`."""
        return f"{decoding.printable(self.groups.file)}[{index}]"

    def fingerprint(self) -> str:
        """16 hexadecimal digits over the number of rows and the sizes of their groups."""
        return self.content


def image_in(cell: Any, folder: Path, name: str) -> bytes:
    """The encoded image in a cell: bytes, or a struct of `bytes` and `path`, of which the first that is there.

    Raises:
        BrokenImage: an empty cell, or a file that cannot be read.
    """
    match cell:
        case bytes() | {"bytes": bytes()}:
            return cell if isinstance(cell, bytes) else cell["bytes"]
        case {"path": str(path)}:
            return decoding.read(folder / path)
        case _:
            raise BrokenImage(name, "the row holds no image")


def read_parquet(file: Path) -> Files | ParquetImages:
    """Open a list of paths, or a table of images.

    Images are in the one column of bytes, or of structs as Hugging Face writes them. Without such a column it is a
    list; it and the classes are found by name as in `tables.read_list`.

    Raises:
        UsageError: pyarrow is not installed, the file is damaged or empty, or its columns are others.
    """
    try:
        import pyarrow as pa  # noqa: PLC0415
        import pyarrow.parquet as pq  # noqa: PLC0415
    except ImportError:
        raise UsageError(f"data source '{file}' needs pyarrow: pip install 'dino-ssl[parquet]'") from None
    try:
        with pq.ParquetFile(file) as table:
            return _read(file, table)
    except (OSError, pa.ArrowException) as error:
        raise UsageError(f"data source '{file}' cannot be read as Parquet: {error}") from None


def _read(file: Path, table: "pyarrow.parquet.ParquetFile") -> Files | ParquetImages:
    schema = table.schema_arrow
    images = [field.name for field in schema if _is_kind(field.type, "image")]
    if len(images) > 1:
        raise UsageError(f"data source '{file}': columns {' and '.join(images)} hold images; leave one of them")
    label = tables.label_column(file, schema.names)
    numbers = label is not None and _is_kind(schema.field(label).type, "integer") and not _class_names(schema, label)
    numbering = Numbering(as_integers=numbers)
    if not images:
        path = tables.path_column(file, schema.names)
        return tables.from_rows(file, _rows(file, table, path, label), numbering)
    if not table.metadata.num_rows:
        raise UsageError(f"data source '{file}' has no rows")
    for _ in tables.noting_labels(file, _rows(file, table, None, label), numbering):
        pass
    groups = RowGroups(file, images[0])
    return ParquetImages(groups, _group_sizes(table), *numbering.result(), str(file), _fingerprint(table))


def _rows(file: Path, table: "pyarrow.parquet.ParquetFile", path: str | None, label: str | None) -> Iterator[Row]:
    """The paths and classes of all rows; where neither is asked for, nothing is read."""
    _check_kind(file, table.schema_arrow, path, "text")
    _check_kind(file, table.schema_arrow, label, "text", "integer")
    names = _class_names(table.schema_arrow, label) if label else []
    number = 0
    for batch in table.iter_batches(columns=[name for name in (path, label) if name], use_threads=False):
        paths = batch.column(path).to_pylist() if path else [""] * batch.num_rows
        labels = batch.column(label).to_pylist() if label else [None] * batch.num_rows
        for where, value in zip(paths, labels, strict=True):
            if where is None:
                raise UsageError(f"data source '{file}', row {number}: column '{path}' is empty; write a path")
            yield Row(f"row {number}", where, class_name(value, names))
            number += 1


def class_name(value: str | int | None, names: list[str]) -> str:
    """What a cell says of the class: nothing, its name, or its number; -1 is Hugging Face's nothing if it has names."""
    if value is None or (names and value == -1):
        return ""
    return names[value] if isinstance(value, int) and value < len(names) else str(value)


def _class_names(schema: "pyarrow.Schema", label: str) -> list[str]:
    """The names that Hugging Face keeps for a column of numbers, in the schema's metadata."""
    about: Any = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    try:
        return list(about["info"]["features"][label]["names"])
    except (KeyError, TypeError):
        return []


def _check_kind(file: Path, schema: "pyarrow.Schema", column: str | None, *kinds: str) -> None:
    if column is not None and not any(_is_kind(schema.field(column).type, kind) for kind in kinds):
        wanted = " or ".join(kinds)
        raise UsageError(f"data source '{file}': column '{column}' holds {schema.field(column).type}; write {wanted}")


def _is_kind(kind: "pyarrow.DataType", wanted: str) -> bool:
    """Whether a type is text, integer or image, perhaps by way of a dictionary."""
    from pyarrow import types  # noqa: PLC0415

    if types.is_dictionary(kind):
        return _is_kind(kind.value_type, wanted)
    match wanted:
        case "text":
            return bool(types.is_string(kind) or types.is_large_string(kind))
        case "integer":
            return bool(types.is_integer(kind))
        case _:
            if types.is_struct(kind):
                return kind.get_field_index("bytes") >= 0 and _is_kind(kind.field("bytes").type, wanted)
            return bool(types.is_binary(kind) or types.is_large_binary(kind))


def _group_sizes(table: "pyarrow.parquet.ParquetFile") -> Int64[np.ndarray, " s"]:
    about = table.metadata
    return np.array([about.row_group(group).num_rows for group in range(about.num_row_groups)], np.int64)


def _fingerprint(table: "pyarrow.parquet.ParquetFile") -> str:
    about = table.metadata
    sizes = [about.row_group(group).total_byte_size for group in range(about.num_row_groups)]
    text = f"{about.num_rows} {_group_sizes(table).tolist()} {sizes}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]
