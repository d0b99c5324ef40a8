"""The statistics of a data set as a table for people and as files."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from dino_ssl.data.decoding import escaped, printable
from dino_ssl.data.sources import Source, problems_of
from dino_ssl.data.statistics import Statistics

SHOWN = 3  # examples of each kind in the table; the files hold all
WIDTH = 15  # columns of a row's name
BROKEN, COPIES = "broken_images.txt", "copies.txt"


def files_of(source: Source, found: Statistics) -> dict[str, str]:
    """File name -> content: everything as JSON, the broken images (`image<tab>reason`), the groups of copies."""
    broken = [_line(image.name, image.reason) for image in found.broken]
    groups = [("equal", group) for group in found.copies] + [("similar", group) for group in found.lookalikes]
    copies = [_line(kind, *map(source.describe, group)) for kind, group in groups]
    return {
        "stats.json": json.dumps(summary(source, found), indent=2) + "\n",
        BROKEN: "".join(broken),
        COPIES: "".join(copies),
    }


def summary(source: Source, found: Statistics) -> dict[str, Any]:
    """All numbers, with names; lists of images are in the other files."""
    about = asdict(found)
    for name in ("readable", "broken", "copies", "lookalikes"):
        del about[name]
    return {
        "source": source.name,
        "fingerprint": source.fingerprint(),
        "num_images": len(source),
        **about,
        "broken": len(found.broken),
        "copies": _surplus(found.copies),
        "listed_again": _listed_again(source, found.copies),
        "lookalikes": _surplus(found.lookalikes),
        "problems": list(problems_of(source)),
        "classes": class_counts(source),
    }


def class_counts(source: Source) -> dict[str, int]:
    """Images in each class of the whole set; empty without labels."""
    if source.labels is None:
        return {}
    counts = np.bincount(source.labels, minlength=len(source.classes)).tolist()
    return dict(zip(source.classes, counts, strict=True))


def describe(source: Source, found: Statistics, folder: Path) -> str:
    """The table, and where the files lie."""
    looked = "all" if found.num_seen == len(source) else f"{found.num_seen:,} of them, spread over the set,"
    rows = [
        ("source", source.name),
        ("images", f"{len(source):,}; {looked} were looked at"),
        *_size_rows(found),
        ("formats", _counts(found.encodings)),
        ("channels", _counts(found.modes)),
        *_colour_rows(found),
        ("broken", _broken(found, folder)),
        ("copies", _copies(source, found, folder)),
        ("look-alikes", _lookalikes(source, found, folder)),
        *_class_rows(source),
        *(("problem", problem) for problem in problems_of(source)[:SHOWN]),
        ("numbers", str(folder / "stats.json")),
    ]
    return printable("".join(f"{name:<{WIDTH}}{text}\n" for name, text in rows))


def _size_rows(found: Statistics) -> list[tuple[str, str]]:
    rows = [
        (name, f"{size.smallest:,} / {size.median:,.0f} / {size.largest:,} pixels (smallest / median / largest)")
        for name, size in (("width", found.width), ("height", found.height))
    ]
    shares = ", ".join(f"{share:.1%} below {side}" for side, share in found.share_below.items())
    return [*rows, ("shorter side", f"{shares} pixels")]


def _colour_rows(found: Statistics) -> list[tuple[str, str]]:
    mean, std = (" ".join(f"{value:.3f}" for value in values) for values in (found.mean, found.std))
    return [("mean, std", f"--crops.mean {mean} --crops.std {std}")]


def _broken(found: Statistics, folder: Path) -> str:
    if not found.broken:
        return "none"
    few = [f"{image.name}: {image.reason}" for image in found.broken[:SHOWN]]
    return _listed(f"{len(found.broken):,}, listed in {folder / BROKEN}", few)


def _copies(source: Source, found: Statistics, folder: Path) -> str:
    if not found.copies:
        return "none"
    again = _listed_again(source, found.copies)
    text = f"{_surplus(found.copies):,} images have the pixels of another"
    text += f", {again:,} of them are listed again" if again else ""
    return _listed(f"{text}; groups in {folder / COPIES}", _examples(source, found.copies, " = "))


def _lookalikes(source: Source, found: Statistics, folder: Path) -> str:
    if not found.lookalikes:
        return "none"
    text = f"{_surplus(found.lookalikes):,} images look like another (equal difference hash); {folder / COPIES}"
    return _listed(text, _examples(source, found.lookalikes, " ~ "))


def _class_rows(source: Source) -> list[tuple[str, str]]:
    counts = class_counts(source)
    if not counts:
        return [("classes", "no labels")]
    few, many = min(counts, key=counts.__getitem__), max(counts, key=counts.__getitem__)
    text = f"{len(counts):,}; the smallest '{few}' with {counts[few]:,}, the largest '{many}' with {counts[many]:,}"
    return [("classes", text if counts[few] < counts[many] else f"{len(counts):,}, {counts[few]:,} images each")]


def _examples(source: Source, groups: list[list[int]], sign: str) -> list[str]:
    return [sign.join(source.describe(index) for index in group[:SHOWN]) for group in groups[:SHOWN]]


def _listed(text: str, lines: list[str]) -> str:
    return "\n".join([text, *(" " * WIDTH + line for line in lines)])


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items())


def _line(*cells: str) -> str:
    """Cells with tabs between them."""
    return "\t".join(map(escaped, cells)) + "\n"


def _surplus(groups: list[list[int]]) -> int:
    return sum(len(group) - 1 for group in groups)


def _listed_again(source: Source, groups: list[list[int]]) -> int:
    return sum(len(group) - len({source.describe(index) for index in group}) for group in groups)
