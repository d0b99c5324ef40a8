"""SOURCE, as it is written after --data, to images: a name, a folder, class folders, arrays, a list or shards.

    digits, cifar10, cifar100, fashion_mnist   a known name: its train split; or cifar10:test
    synthetic_faces                            drawn faces of 64 people; synthetic_faces:test has 32 others
    photos                                     all images below; class folders become labels
    imagenet                                   with train/ and val/ (or test/): its train/; or imagenet:val
    arrays                                     x_train.npy, y_train.npy, x_test.npy, ...; or arrays:test
    list.txt                                   a path per line, optionally a tab and a class
    list.csv, list.tsv, list.parquet           with columns path and perhaps label; a .parquet may hold the images
    hf:FOLDER, hf:NAME                         a data set of Hugging Face's; or hf:NAME:test
    shards, shards/{000..099}.tar              WebDataset shards; see `shards`
    faces.rec, folder of train.rec             InsightFace's records, with their index beside them
    lfw.bin                                    the images of InsightFace's pairs, without labels

A name wins over a folder of that name: write ./cifar10 for the folder.
"""

import difflib
import hashlib
import stat
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int64

from dino_ssl.data.decoding import BrokenImage, Decoded, Raw, decode
from dino_ssl.data.face_bins import read_bin
from dino_ssl.data.faces import Records, read_records
from dino_ssl.data.folders import Files, read_folder
from dino_ssl.data.hugging_face import PREFIX as HUGGING_FACE
from dino_ssl.data.hugging_face import open_hugging_face, test_split_of
from dino_ssl.data.named import NAMES, OPEN_SETS, layout_at, open_named
from dino_ssl.data.parquet import read_parquet
from dino_ssl.data.pixels import Pixels, read_arrays
from dino_ssl.data.tables import SUFFIXES, read_list
from dino_ssl.data.tar.shards import Shards, is_shards, open_shards
from dino_ssl.errors import UsageError

__all__ = ["Files", "Pixels", "Source", "labels_in", "load", "open_source", "problems_of", "test_source_of"]

HELD_OUT = ("val", "test")
SPLITS = ("train", *HELD_OUT)
RECORDS = "train.rec"
"""As InsightFace names the records of a set."""


@runtime_checkable
class Source(Protocol):
    """Images with a length and perhaps labels, and no transforms."""

    @property
    def name(self) -> str:
        """Name or path, for people."""

    @property
    def labels(self) -> Int64[np.ndarray, " n"] | None:
        """Indices into `classes`; None where nothing is known."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the labels; empty without labels."""

    @property
    def shard_sizes(self) -> Int64[np.ndarray, " s"] | None:
        """Lengths of the runs of images that lie together, in order; None where any order reads equally fast."""

    def __len__(self) -> int: ...

    def raw(self, index: int) -> Raw:
        """The image as it is stored; raises decoding.BrokenImage. Called by several threads and processes at once."""

    def describe(self, index: int) -> str:
        """What a person calls this image: a path, or `cifar10:train[12]`."""

    def fingerprint(self) -> str:
        """Short text that differs for another data set and stays when the same one moves."""


CONTAINERS: dict[str, Callable[[Path], Source]] = {
    ".parquet": read_parquet,
    ".rec": read_records,
    ".bin": lambda file: read_bin(file)[0],
}
"""Files that hold images or lists of them, by their suffix; the lists of `tables` beside."""


def load(source: Source, index: int, *, channels: int = 3, enough_pixels: float = float("inf")) -> Decoded:
    """Read and decode one image; arguments and errors as `decoding.decode`."""
    raw = source.raw(index)
    return decode(raw, source.describe(index), channels=channels, enough_pixels=enough_pixels)


def problems_of(source: Source) -> tuple[str, ...]:
    """What is wrong with the source as a whole, a line each; everything else of it is used."""
    return source.problems if isinstance(source, Shards | Records) else ()


def content(source: Source, num_images: int) -> str:
    """16 hexadecimal digits over the bytes of so many images, evenly spaced.

    Two folders whose files are named alike, as train/ and val/ may be, have equal fingerprints; here they differ.
    """
    digest = hashlib.sha256()
    for index in np.linspace(0, len(source) - 1, min(len(source), num_images)).astype(np.int64).tolist():
        with suppress(BrokenImage):
            raw = source.raw(index)
            digest.update(raw if isinstance(raw, bytes) else raw.tobytes())
    return digest.hexdigest()[:16]


def stamp(source: Source, indices: Iterable[int]) -> str:
    """What changes with the bytes of these images, as far as the fingerprint does not tell; nothing is read."""
    return source.stamp(indices) if isinstance(source, Files) else ""


def open_source(spec: str, root: Path) -> Source:
    """Open what the user asked for.

    Args:
        spec: see the module's docstring.
        root: folder in which known names lie, as torchvision lays them out.
    Raises:
        UsageError: it does not exist, is empty, or is not what it says.
    """
    if spec.startswith(HUGGING_FACE):
        return open_hugging_face(spec)
    if _means_shards(spec):
        return open_shards(spec, spec)
    place, split = _parse(spec)
    path = _path(place)
    if place in NAMES or _is_data_set(path):
        if split == "val":
            raise UsageError(f"data source '{spec}': there is no val; choose {place}:train or {place}:test")
        return _open_data_set(place, split or "train", root)
    kind = _kind(path)
    if kind == "folder":
        return _open_folder(path, split)
    if kind == "file":
        return _open_file(path, split)
    raise UsageError(f"data source '{spec}' does not exist; {_nearby(place, path)}")


def test_source_of(spec: str) -> str | None:
    """The held-out part that belongs to a SOURCE to train on, as a SOURCE; None if there is none.

    `cifar10` -> `cifar10:test`; a folder with train/ and val/ (or test/) -> `folder:val`; `folder/train` ->
    its neighbour `folder/val`. A path that does not exist has none: `open_source` is the one that complains.
    """
    if spec.startswith(HUGGING_FACE):
        return test_split_of(spec)
    place, split = _parse(spec)
    path = _path(place)
    if split in HELD_OUT or place in OPEN_SETS:
        return None
    if place in NAMES or _is_data_set(path):
        # Arrays may come without a test split; every other data set is known to have one.
        arrays_alone = place not in NAMES and _kind(path / "x_train.npy") and not _kind(path / "x_test.npy")
        return None if arrays_alone else f"{place}:test"
    if _kind(path / "train") == "folder" and (held_out := _held_out(path)):
        return f"{place}:{held_out.name}"
    if path.absolute().name == "train" and (held_out := _held_out(path.absolute().parent)):
        return str(held_out)
    return None


def labels_in(source: Source, classes: tuple[str, ...]) -> Int64[np.ndarray, " n"]:
    """The source's labels as indices into another source's classes: two folders number theirs independently.

    Raises:
        UsageError: the source has no labels, or a class that is not among `classes`.
    """
    if source.labels is None:
        raise UsageError(f"data source '{source.name}' has no labels; they come from two class folders or more")
    if unknown := [name for name in source.classes if name not in classes]:
        known = f"the {len(classes)} classes of the bank"
        raise UsageError(f"data source '{source.name}': class '{unknown[0]}' is not among {known}")
    renumber = {old: classes.index(name) for old, name in enumerate(source.classes)}
    return np.array([renumber[int(label)] for label in source.labels], np.int64)


def _parse(spec: str) -> tuple[str, str | None]:
    """Place and split; a URL, or a path that exists as it is written, has no split, whatever colons it has."""
    if not spec.partition(":")[0].strip():
        raise UsageError(f"data is not set; write --data FOLDER, or --data with one of {', '.join(NAMES)}")
    place, colon, split = spec.rpartition(":")
    if not colon or "://" in spec or _kind(_path(spec)):
        return spec, None
    if split in SPLITS:
        return place, split
    if place in NAMES or _kind(_path(place)):
        raise UsageError(f"data source '{spec}': '{split}' is no split; choose from {', '.join(SPLITS)}")
    return spec, None


def _path(place: str) -> Path:
    # The shell leaves the ~ of --data=~/photos as it is.
    return Path(place).expanduser() if place.startswith("~/") else Path(place)


def _kind(path: Path) -> Literal["folder", "file"] | None:
    try:
        return "folder" if stat.S_ISDIR(path.stat().st_mode) else "file"
    except PermissionError:
        raise UsageError(f"data source '{path}' cannot be opened: permission denied") from None
    except (OSError, ValueError):  # ValueError: a zero byte in the path
        return None


def _is_data_set(path: Path) -> bool:
    """A folder of arrays or CIFAR batches, which has a train and a test split."""
    return _kind(path) == "folder" and (_kind(path / "x_train.npy") == "file" or layout_at(path) is not None)


def _open_data_set(place: str, split: str, root: Path) -> Source:
    if place in NAMES:
        return open_named(place, split, root)
    name = f"{place}:{split}"
    found = layout_at(_path(place))
    if found is None:
        return read_arrays(_path(place), split, name)
    folder, layout = found
    return layout.read(folder, split, name)


def _means_shards(spec: str) -> bool:
    return bool(spec.strip()) and spec.partition(":")[0] not in NAMES and is_shards(spec)


def _open_folder(path: Path, split: str | None) -> Source:
    if split is None and _kind(path / "train") == "folder" and _held_out(path) is not None:
        split = "train"
    folder = path / split if split else path
    if _kind(folder) != "folder":
        raise UsageError(f"data source '{path}:{split}': there is no folder '{folder}'")
    if _kind(records := folder / RECORDS) == "file":
        return read_records(records)
    return open_shards(str(folder), str(folder)) if is_shards(str(folder)) else read_folder(folder)


def _held_out(path: Path) -> Path | None:
    return next((path / name for name in HELD_OUT if _kind(path / name) == "folder"), None)


def _open_file(path: Path, split: str | None) -> Source:
    suffix = path.suffix.lower()
    if suffix not in (*SUFFIXES, *CONTAINERS):
        raise UsageError(
            f"data source '{path}' is a file; give a folder, or a list of images: .txt with one path per line, "
            ".csv, .tsv or .parquet with a column 'path'; or faces as .rec or .bin"
        )
    if split is not None:
        raise UsageError(f"data source '{path}:{split}': a list file has no splits; write one list for each")
    return CONTAINERS.get(suffix, read_list)(path)


def _nearby(place: str, path: Path) -> str:
    """What could have been meant: a known name, or a neighbour of the first part that does not exist."""
    names = difflib.get_close_matches(place.lower(), NAMES, n=1)
    missing = path.absolute()
    while _kind(missing.parent) != "folder":
        missing = missing.parent
    there = sorted(entry.name for entry in missing.parent.iterdir() if not entry.name.startswith("."))
    close = difflib.get_close_matches(missing.name, there, n=3)
    if names or close:
        return f"did you mean {' or '.join(names + [str(missing.parent / entry) for entry in close])}?"
    shown = ", ".join(there[:5]) + (", ..." if len(there) > 5 else "")
    return f"{missing.parent} holds {shown or 'nothing'}; known names are {', '.join(NAMES)}"
