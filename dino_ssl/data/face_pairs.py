"""Pairs of faces to compare: lists as they are published, and pairs drawn from any source with labels.

lfw.bin            InsightFace's sets, images included
pairs.txt          LFW's: `10 300`, then for each fold 300 lines `name i j` and 300 lines `name1 i name2 j`
list.txt           a line `path path 1` for each pair; 0 or -1 where they are two people; also with commas
SOURCE             class folders, .rec, ...: pairs drawn at random, in ten folds of other people each
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from jaxtyping import Bool, Int64

from dino_ssl.data.compact_names import CompactNames
from dino_ssl.data.face_bins import read_bin
from dino_ssl.data.folders import Files
from dino_ssl.data.sources import Source, open_source
from dino_ssl.errors import UsageError

NUM_FOLDS = 10
USUAL_PAIRS = 6000
"""As LFW, CALFW, CPLFW and AgeDB-30 have."""
SAME, DIFFERENT = ("1",), ("0", "-1")
MAX_LINES = 2**21


@dataclass(frozen=True, eq=False)
class FacePairs:
    """Images and pairs of them, ten folds one after the other.

    Attributes:
        left, right: places of the images.
        is_same: whether both show one person.
        seed: by which they were drawn; None where they are given.
    """

    images: Source
    left: Int64[np.ndarray, " p"]
    right: Int64[np.ndarray, " p"]
    is_same: Bool[np.ndarray, " p"]
    seed: int | None = None

    def __len__(self) -> int:
        return len(self.is_same)


Named = tuple[str, str, bool]
"""Two paths, and whether both show one person."""


def open_pairs(
    spec: str, data_root: Path, *, folder: Path | None = None, num_pairs: int = USUAL_PAIRS, seed: int = 0
) -> FacePairs:
    """Open what the user asked for; see the module's docstring.

    Args:
        folder: of the images that a list names; None takes the list's own.
        num_pairs, seed: of pairs that are drawn.
    Raises:
        UsageError: it does not exist, is damaged, names images that are not there, or has too few people.
    """
    file = Path(spec).expanduser()
    if file.suffix.lower() == ".bin":
        images, is_same = read_bin(file)
        return FacePairs(images, np.arange(0, len(images), 2), np.arange(1, len(images), 2), is_same)
    if file.suffix.lower() in (".txt", ".csv", ".list") and file.is_file():
        pairs = _listed(file)
        if pairs is not None:
            return _named(file, pairs, folder or file.parent)
    if folder is not None:
        raise UsageError(f"--images goes with a list of pairs; '{spec}' is none")
    return drawn_pairs(open_source(spec, data_root), num_pairs, seed)


def _listed(file: Path) -> list[Named] | None:
    """The pairs of a list; None where it is a list of something else."""
    with file.open(encoding="utf-8", errors="surrogateescape") as text:
        lines = [re.split(r"[\t,]|\s+", line.strip()) for line, _ in zip(text, range(MAX_LINES), strict=False)]
    lines = [fields for fields in lines if fields != [""]]
    if lines and len(lines[0]) <= 2 and all(_is_number(field) for field in lines[0]):
        return _published(file, lines)
    if lines and len(lines[0]) == 3 and lines[0][2] in SAME + DIFFERENT:
        return [_flat(file, number, fields) for number, fields in enumerate(lines, 1)]
    return None


def _published(file: Path, lines: list[list[str]]) -> list[Named]:
    """LFW's layout. Pairs of one and of two people alternate: then other numbers of folds have both, too."""
    *folds, number = (int(field) for field in lines[0])
    each, expected = number, 2 * number * (folds[0] if folds else 1)
    if len(lines) - 1 != expected or not each:
        raise UsageError(f"{file} promises {expected:,} pairs and has {len(lines) - 1:,}; fetch it again")
    found = []
    for start in range(1, len(lines), 2 * each):
        for place in range(start, start + each):
            found += [_person(file, place, lines[place]), _person(file, place + each, lines[place + each])]
    return found


def _person(file: Path, number: int, fields: list[str]) -> Named:
    match fields:
        case [name, first, second] if _is_number(first) and _is_number(second):
            return _photograph(name, first), _photograph(name, second), True
        case [name, first, other, second] if _is_number(first) and _is_number(second):
            return _photograph(name, first), _photograph(other, second), False
        case _:
            raise UsageError(f"{file}, pair {number}: it must be `name i j` or `name i name j`; it has {fields!r:.80}")


def _is_number(text: str) -> bool:
    return re.fullmatch(r"\d{1,9}", text, re.ASCII) is not None


def _photograph(name: str, number: str) -> str:
    return f"{name}/{name}_{int(number):04d}.jpg"


def _flat(file: Path, number: int, fields: list[str]) -> Named:
    if len(fields) != 3 or fields[2] not in SAME + DIFFERENT:
        raise UsageError(f"{file}, pair {number}: it must be two paths and 1, 0 or -1; it has {fields!r:.80}")
    return fields[0], fields[1], fields[2] in SAME


def _named(file: Path, pairs: list[Named], folder: Path) -> FacePairs:
    names = list(dict.fromkeys(name for pair in pairs for name in pair[:2]))
    for name in names:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\0" in name:
            raise UsageError(f"{file}: '{name}' leads out of the folder of the images; write paths below it")
    stored = [_stored(folder, name) for name in names]
    if missing := [name for name, found in zip(names, stored, strict=True) if found is None]:
        where = f"{len(missing):,} of {len(names):,} images are not below {folder}, such as {missing[0]}"
        raise UsageError(f"{file}: {where}; write --images FOLDER")
    places = {name: place for place, name in enumerate(names)}
    left, right = (np.array([places[name] for name in side], np.int64) for side in _sides(pairs))
    images = Files(folder, CompactNames.of(name for name in stored if name), None, (), str(file))
    return FacePairs(images, left, right, np.array([same for *_, same in pairs], bool))


def _sides(pairs: list[Named]) -> tuple[list[str], list[str]]:
    return [one for one, _, _ in pairs], [other for _, other, _ in pairs]


def _stored(folder: Path, name: str) -> str | None:
    """The name as it lies in the folder: aligned copies of photographs are often PNGs."""
    others = (name, str(PurePosixPath(name).with_suffix(".png")))
    return next((other for other in others if (folder / other).is_file()), None)


def drawn_pairs(source: Source, num_pairs: int = USUAL_PAIRS, seed: int = 0) -> FacePairs:
    """Pairs of a source with labels, half of one person, in ten folds; no person is in two folds.

    All pairs of one person are equally likely, so that people with many images come more often. There are fewer pairs
    than asked for where a fold has not so many.

    Raises:
        UsageError: no labels, or a fold would be without two people or two images of one.
    """
    if source.labels is None:
        raise UsageError(f"pairs '{source.name}': the images have no labels, which say who is on them")
    rng = np.random.default_rng(seed)
    images_of = _by_label(source.labels)
    folds = [_People([images_of[person] for person in fold]) for fold in _dealt(images_of, rng)]
    half = min(num_pairs // (2 * NUM_FOLDS), *(fold.most() for fold in folds))
    if half < 1:
        raise UsageError(
            f"pairs '{source.name}': {NUM_FOLDS} folds need 2 people each, one of them with 2 images; the source has "
            f"{len(source):,} images of {len(source.classes):,}; --num-pairs must be {2 * NUM_FOLDS} or more"
        )
    drawn = [np.stack([fold.same(half, rng), fold.different(half, rng)], 1).reshape(-1, 2) for fold in folds]
    left, right = np.concatenate(drawn).T
    is_same = np.arange(len(left)) % 2 == 0
    return FacePairs(source, np.ascontiguousarray(left), np.ascontiguousarray(right), is_same, seed)


def _by_label(labels: Int64[np.ndarray, " n"]) -> list[Int64[np.ndarray, " _"]]:
    """Places of the images of each person who has some."""
    order = np.argsort(labels, kind="stable")
    return np.split(order, 1 + np.flatnonzero(np.diff(labels[order])))


def _dealt(images_of: list[Int64[np.ndarray, " _"]], rng: np.random.Generator) -> list[list[int]]:
    """People, those with most images first, dealt to the folds in turn: they get about as many images each."""
    mixed = rng.permutation(len(images_of)).tolist()
    order = sorted(mixed, key=lambda person: -len(images_of[person]))
    return [order[fold::NUM_FOLDS] for fold in range(NUM_FOLDS)]


class _People:
    """The images of a fold's people."""

    def __init__(self, images: Iterable[Int64[np.ndarray, " _"]]) -> None:
        self.images = list(images)
        self.counts = np.array([len(each) for each in self.images], np.int64)
        self.ends = np.cumsum(self.counts * (self.counts - 1) // 2)

    def most(self) -> int:
        """How many pairs of each kind can be drawn; of all pairs of two people at most half, to find them soon."""
        num_different = (self.counts.sum() ** 2 - np.square(self.counts).sum()) // 2
        return int(min(self.ends[-1], num_different // 2)) if len(self.counts) else 0

    def same(self, number: int, rng: np.random.Generator) -> Int64[np.ndarray, "number 2"]:
        """So many of the pairs of one person."""
        chosen = rng.choice(int(self.ends[-1]), number, replace=False)
        people = np.searchsorted(self.ends, chosen, side="right")
        rest = chosen - np.where(people > 0, self.ends[people - 1], 0)
        # Pair k of a person: the larger place is the largest j with j (j - 1) / 2 <= k.
        larger = ((1 + np.sqrt(1 + 8.0 * rest)) // 2).astype(np.int64)
        larger += (larger * (larger + 1) // 2 <= rest).astype(np.int64) - (larger * (larger - 1) // 2 > rest)
        smaller = rest - larger * (larger - 1) // 2
        pairs = zip(people.tolist(), smaller.tolist(), larger.tolist(), strict=True)
        return np.array([(self.images[who][one], self.images[who][other]) for who, one, other in pairs], np.int64)

    def different(self, number: int, rng: np.random.Generator) -> Int64[np.ndarray, "number 2"]:
        """So many pairs of two people."""
        images = np.concatenate(self.images)
        owner = np.repeat(np.arange(len(self.counts)), self.counts)
        found: dict[tuple[int, int], None] = {}
        while len(found) < number:
            one, other = sorted(rng.integers(0, len(images), 2).tolist())
            if owner[one] != owner[other]:
                found[one, other] = None
        return images[np.array(list(found), np.int64)]
