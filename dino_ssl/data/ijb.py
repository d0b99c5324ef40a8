"""IJB-B and IJB-C (Whitelam et al. 2017, Maze et al. 2018) in the layout in which InsightFace offers them."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float64, Int64

from dino_ssl.data.aligned_faces import AlignedFaces
from dino_ssl.data.compact_names import CompactNames
from dino_ssl.data.folders import Files
from dino_ssl.data.published_layout import not_laid_out
from dino_ssl.errors import UsageError

POINTS, PLACES, PAIRS = "name_5pts_score", "face_tid_mid", "template_pair_label"
TREE = f"""\
  DIR/loose_crop/NAME                      photographs
  DIR/meta/ijbc_{POINTS}.txt     name, five points x y, score of the detector
  DIR/meta/ijbc_{PLACES}.txt        name, template, medium
  DIR/meta/ijbc_{PAIRS}.txt template, template, 1 for one person, else 0
"""


@dataclass(frozen=True)
class Ijb:
    """Images with their templates, and pairs of templates.

    Attributes:
        scores: of the detector, of each image.
        media: a still image, or the video that a frame is of.
        first, second: numbers of templates.
    """

    images: AlignedFaces
    scores: Float64[np.ndarray, " n"]
    templates: Int64[np.ndarray, " n"]
    media: Int64[np.ndarray, " n"]
    first: Int64[np.ndarray, " p"]
    second: Int64[np.ndarray, " p"]
    is_same: Bool[np.ndarray, " p"]


def open_ijb(root: Path) -> Ijb:
    """Read the three lists.

    Raises:
        UsageError: the folder is laid out otherwise, or a list is damaged or about other images.
    """
    points, places, pairs = (_list(root, name) for name in (POINTS, PLACES, PAIRS))
    names, numbers = _table(points, 11)
    others, where = _table(places, 2)
    if names != others:
        raise UsageError(f"{points} and {places} must name the same images in the same order; fetch both again")
    if odd := [name for name in names if Path(name).name != name]:
        raise UsageError(f"{points}: '{odd[0]}' is no name of an image")
    templates, media = _whole(places, where).T
    whole = _whole(pairs, _numbers(pairs, 3))
    if not np.isin(whole[:, 2], (0, 1)).all() or len(np.unique(whole[:, 2])) < 2:
        raise UsageError(f"{pairs}: the third column must hold 1 for one person and 0 for two, and have both")
    if (unknown := np.setdiff1d(whole[:, :2], templates)).size:
        raise UsageError(f"{pairs}: there is no image of template {unknown[0]}; fetch the lists again")
    files = Files(root / "loose_crop", CompactNames.of(names), None, (), f"{root}:images")
    images = AlignedFaces(files, np.ascontiguousarray(numbers[:, :10]).reshape(-1, 5, 2))
    return Ijb(images, numbers[:, 10], templates, media, whole[:, 0], whole[:, 1], whole[:, 2] == 1)


def _list(root: Path, name: str) -> Path:
    found = sorted((root / "meta").glob(f"*_{name}.txt"))
    if len(found) != 1:
        raise not_laid_out(root, "IJB", f"there are {len(found)} files meta/*_{name}.txt", TREE)
    return found[0]


def _table(file: Path, columns: int) -> tuple[list[str], Float64[np.ndarray, "n columns"]]:
    """A name, and so many numbers behind it."""
    with file.open(encoding="utf-8", errors="surrogateescape") as lines:
        names = [line.split(maxsplit=1)[0] for line in lines if line.strip()]
    return names, _numbers(file, columns, skipped=1)


def _numbers(file: Path, columns: int, skipped: int = 0) -> Float64[np.ndarray, "n columns"]:
    try:
        found = np.loadtxt(file, usecols=range(skipped, skipped + columns), ndmin=2, comments=None)
    except (ValueError, IndexError) as error:
        raise UsageError(f"{file} is damaged: {error}; fetch it again") from None
    if not len(found) or not np.isfinite(found).all():
        raise UsageError(f"{file} is empty, or holds numbers that are not finite; fetch it again")
    return found


def _whole(file: Path, numbers: Float64[np.ndarray, "n c"]) -> Int64[np.ndarray, "n c"]:
    if (numbers != np.floor(numbers)).any() or np.abs(numbers).max() > 2**53:
        raise UsageError(f"{file}: numbers of templates and media must be whole")
    return numbers.astype(np.int64)
