"""Data sets of Hugging Face's `datasets` (extra `datasets`): `hf:` and a folder or a name, perhaps `:` and a split.

A folder is one that `save_to_disk` wrote; everything else is left to `load_dataset`, which reads folders of Parquet
files and the like, and fetches what it does not have from the hub.
"""

import hashlib
import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int64

from dino_ssl.data.decoding import BrokenImage, Raw
from dino_ssl.data.numbering import Numbering
from dino_ssl.data.parquet import class_name, image_in
from dino_ssl.data.tables import LABEL_COLUMNS, Row, noting_labels
from dino_ssl.errors import UsageError

if TYPE_CHECKING:
    import datasets

PREFIX = "hf:"
HELD_OUT = ("validation", "val", "test")
FINGERPRINT_IMAGES = 256


@dataclass(frozen=True, eq=False)
class HuggingFace:
    """Images of a split, as they are encoded there."""

    table: "datasets.Dataset"
    """One column, not decoded."""
    column: str
    labels: Int64[np.ndarray, " n"] | None
    """Indices into `classes`; None where nothing is known."""
    classes: tuple[str, ...]
    name: str

    def __len__(self) -> int:
        return len(self.table)

    @property
    def shard_sizes(self) -> None:
        """Arrow files are mapped into memory: any order reads equally fast."""

    def raw(self, index: int) -> Raw:
        """The image's bytes, or those of the file that the row names.

        Raises:
            BrokenImage: an empty row, or a file that cannot be read.
        """
        return image_in(self.table[index][self.column], Path(), self.describe(index))

    def describe(self, index: int) -> str:
        """`hf:beans:train[12]`."""
        return f"{self.name}[{index}]"

    def fingerprint(self) -> str:
        """16 hexadecimal digits over the number of images and the bytes of up to 256."""
        digest = hashlib.sha256(str(len(self)).encode())
        for index in np.linspace(0, len(self) - 1, min(len(self), FINGERPRINT_IMAGES)).astype(np.int64).tolist():
            with suppress(BrokenImage):
                digest.update(bytes(self.raw(index)))
        return digest.hexdigest()[:16]


def open_hugging_face(spec: str) -> HuggingFace:
    """Open `hf:PLACE[:SPLIT]`; without a split the one called train, or the only one.

    Raises:
        UsageError: `datasets` is not installed, the data set or the split does not exist, or it holds no images.
    """
    place, split = _parse(spec)
    try:
        import datasets  # noqa: PLC0415
    except ImportError:
        raise UsageError(f"data source '{spec}' needs datasets: pip install 'dino-ssl[datasets]'") from None
    try:
        folder = Path(place).expanduser()
        # Versions before 4 run a script that lies beside the data, if the user says y, or a variable does.
        datasets.config.HF_DATASETS_TRUST_REMOTE_CODE = False
        saved = (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()
        found = datasets.load_from_disk(folder) if saved else datasets.load_dataset(place)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise UsageError(f"data source '{spec}' cannot be loaded: {error}") from None
    table = _split(found, spec, split) if isinstance(found, dict) else found
    return _images(table, spec)


def test_split_of(spec: str) -> str | None:
    """The held-out split of a folder that `save_to_disk` wrote, as a SOURCE; of others None: asking would load them."""
    place, split = _parse(spec)
    try:
        about = json.loads((Path(place).expanduser() / "dataset_dict.json").read_text(encoding="utf-8"))
        held_out = [name for name in HELD_OUT if name in about["splits"]]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return f"{PREFIX}{place}:{held_out[0]}" if held_out and split not in HELD_OUT else None


def _parse(spec: str) -> tuple[str, str | None]:
    """Place and split; a path that exists as it is written has no split, whatever colons it has."""
    place = spec.removeprefix(PREFIX)
    before, colon, split = place.rpartition(":")
    if not place.strip():
        raise UsageError(f"data source '{spec}' names no data set; write hf:FOLDER or hf:NAME, perhaps with :SPLIT")
    return (before, split) if colon and not Path(place).expanduser().exists() else (place, None)


def _split(found: "datasets.DatasetDict", spec: str, split: str | None) -> "datasets.Dataset":
    if split is None:
        split = next(iter(found)) if len(found) == 1 else "train"
    if split not in found:
        raise UsageError(f"data source '{spec}': there is no split '{split}'; choose from {', '.join(found)}")
    return found[split]


def _images(table: "datasets.Dataset", spec: str) -> HuggingFace:
    import datasets  # noqa: PLC0415

    images = [name for name, feature in table.features.items() if isinstance(feature, datasets.Image)]
    if len(images) != 1 or not len(table):
        found = ", ".join(f"{name}: {type(feature).__name__}" for name, feature in table.features.items())
        raise UsageError(f"data source '{spec}' has {len(table)} rows of {found}; it must have one column of Image")
    raw = table.select_columns(images).cast_column(images[0], datasets.Image(decode=False))
    labels, classes = _labels(table, spec)
    return HuggingFace(raw, images[0], labels, classes, spec)


def _labels(table: "datasets.Dataset", spec: str) -> tuple[Int64[np.ndarray, " n"] | None, tuple[str, ...]]:
    """Of the column called label or class, or of the only one of ClassLabel; of several, none is meant."""
    import datasets  # noqa: PLC0415

    named = [name for name in table.features if name.lower() in LABEL_COLUMNS]
    typed = [name for name, feature in table.features.items() if isinstance(feature, datasets.ClassLabel)]
    columns = named or typed
    if len(columns) != 1:
        return None, ()
    feature = table.features[columns[0]]
    names = feature.names if isinstance(feature, datasets.ClassLabel) else []
    values = table.select_columns(columns).with_format("arrow")[:].column(0).to_pylist()
    numbering = Numbering(as_integers=not names and all(isinstance(value, int | None) for value in values))
    rows = (Row(f"row {number}", "", class_name(value, names)) for number, value in enumerate(values))
    for _ in noting_labels(spec, rows, numbering):
        pass
    return numbering.result()
