"""Revisited Oxford and Paris (Radenovic et al., arXiv:1803.11285) in the layout in which they were published."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from dino_ssl.data import unpickling
from dino_ssl.data.compact_names import CompactNames
from dino_ssl.data.folders import Files
from dino_ssl.data.published_layout import not_laid_out
from dino_ssl.errors import UsageError

NAMES = ("roxford5k", "rparis6k")
TREE = """\
  DIR/roxford5k/gnd_roxford5k.pkl       queries, and which images are easy, hard and junk for each
  DIR/roxford5k/jpg/NAME.jpg            4,993 images and 70 queries
  DIR/rparis6k/gnd_rparis6k.pkl
  DIR/rparis6k/jpg/NAME.jpg             6,322 images and 70 queries
"""


@dataclass(frozen=True)
class Truth:
    """What is in the gallery for one query, as places; what is in none of these is wrong.

    Attributes:
        box: the landmark in the query: left, top, right, bottom, pixels.
    """

    easy: Int64[np.ndarray, " e"]
    hard: Int64[np.ndarray, " h"]
    junk: Int64[np.ndarray, " j"]
    box: tuple[float, float, float, float]


@dataclass(frozen=True)
class Revisited:
    """One of the two data sets."""

    gallery: Files
    queries: Files
    truth: tuple[Truth, ...]


def open_revisited(root: Path, name: str) -> Revisited:
    """Read lists and annotation; nothing in the file can run code.

    Args:
        name: one of `NAMES`.
    Raises:
        UsageError: the folder is laid out otherwise, or the annotation is damaged.
    """
    file = root / name / f"gnd_{name}.pkl"
    if not file.is_file():
        raise not_laid_out(root, name, f"there is no {file}", TREE)
    content = unpickling.load(file)
    try:
        names = {key: [_file_name(entry) for entry in content[key]] for key in ("imlist", "qimlist")}
        truth = tuple(_truth(entry, len(names["imlist"])) for entry in content["gnd"])
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise UsageError(
            f"{file} is no annotation of {name} ({type(error).__name__}: {error}); fetch it again"
        ) from None
    if not names["imlist"] or not len(truth) == len(names["qimlist"]) > 0:
        counts = f"{len(names['imlist'])} images, {len(names['qimlist'])} queries and {len(truth)} annotations"
        raise UsageError(f"{file} has {counts}; fetch it again")
    folder = root / name / "jpg"
    missing = [entry for entry in (*names["imlist"], *names["qimlist"]) if not (folder / entry).is_file()]
    if missing:
        raise not_laid_out(root, name, f"{len(missing):,} images are missing, such as {folder / missing[0]}", TREE)
    gallery, queries = (Files(folder, CompactNames.of(names[key]), None, (), f"{name}:{role}") for key, role in ROLES)
    return Revisited(gallery, queries, truth)


ROLES = (("imlist", "gallery"), ("qimlist", "queries"))


def _file_name(entry: Any) -> str:
    name = entry.decode("latin1") if isinstance(entry, bytes) else str(entry)
    if not name or Path(name).name != name:
        raise ValueError(f"'{name}' is no name of an image")
    return f"{name}.jpg"


def _truth(entry: Any, num_images: int) -> Truth:
    easy, hard, junk = (_places(entry[key], num_images) for key in ("easy", "hard", "junk"))
    left, top, right, bottom = (float(side) for side in entry["bbx"])
    return Truth(easy, hard, junk, (left, top, right, bottom))


def _places(values: Any, num_images: int) -> Int64[np.ndarray, " p"]:
    places = np.asarray(values, np.int64).reshape(-1)
    if places.size and not 0 <= places.min() <= places.max() < num_images:
        raise ValueError(f"places {places.min()} to {places.max()} among {num_images} images")
    return places
