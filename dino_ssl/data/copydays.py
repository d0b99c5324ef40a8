"""INRIA Copydays in the layout of its archives, as DINO's evaluation has it: originals, and altered copies of them."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from dino_ssl.data.compact_names import CompactNames
from dino_ssl.data.folder_scan import EXTENSIONS
from dino_ssl.data.folders import Files
from dino_ssl.data.published_layout import not_laid_out
from dino_ssl.errors import UsageError

STRONG = "strong"
FAMILY = 4
"""So many first letters of a name are those of the original: 2000 of 200001.jpg."""
TREE = """\
  DIR/original/200000.jpg           157 images
  DIR/strong/200001.jpg             229 printed, scanned, painted on, ...; the first four digits name the original
  DIR/jpegqual/3/200000.jpg         compressed; optional, as are 5, 8, 10, 15, 20, 30, 50, 75
  DIR/crops/10/200000.jpg           cut, percent of the area; optional, as are 15, 20, 30, 40, 50, 60, 70, 80
"""


@dataclass(frozen=True)
class Block:
    """Images altered in one way.

    Attributes:
        originals: of each, its place among the originals.
    """

    images: Files
    originals: Int64[np.ndarray, " n"]


@dataclass(frozen=True)
class Copydays:
    """Originals, and by name the blocks that are there: `strong`, `jpegqual/3`, ..."""

    originals: Files
    blocks: dict[str, Block]


def open_copydays(root: Path) -> Copydays:
    """Find the originals and every block of altered images.

    Raises:
        UsageError: the folder is laid out otherwise, or an altered image has no original.
    """
    for name in ("original", STRONG):
        if not (root / name).is_dir():
            raise not_laid_out(root, "Copydays", f"there is no folder {root / name}", TREE)
    originals = _files(root, "original")
    places = {name[:FAMILY]: place for place, name in enumerate(originals.names)}
    folders = [STRONG]
    folders += [f"{kind}/{level}" for kind in ("jpegqual", "crops") for level in _levels(root / kind)]
    return Copydays(originals, {name: _block(root, name, places) for name in folders})


def _levels(folder: Path) -> list[str]:
    names = [entry.name for entry in folder.iterdir() if entry.is_dir()] if folder.is_dir() else []
    return sorted(names, key=lambda name: (len(name), name))


def _block(root: Path, name: str, places: dict[str, int]) -> Block:
    images = _files(root, name)
    lost = [image for image in images.names if image[:FAMILY] not in places]
    if lost:
        raise UsageError(f"{root / name / lost[0]} has no original {root / 'original' / lost[0][:FAMILY]}*")
    return Block(images, np.array([places[image[:FAMILY]] for image in images.names], np.int64))


def _files(root: Path, name: str) -> Files:
    folder = root / name
    names = sorted(entry.name for entry in folder.iterdir() if entry.suffix.lower().removeprefix(".") in EXTENSIONS)
    if not names:
        raise not_laid_out(root, "Copydays", f"there is no image in {folder}", TREE)
    return Files(folder, CompactNames.of(names), None, (), f"copydays:{name}")
