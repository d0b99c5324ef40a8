"""The same numbers of several encoders, side by side."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

from dino_ssl.evaluation.results import Evaluation, Measurement, conditions, label


@dataclass(frozen=True)
class Row:
    """One metric, and what each column has of it.

    Attributes:
        title: protocol and data; rows of one title belong together.
        name: the metric with its settings; of a baseline also whose it is.
    """

    title: str
    name: str
    cells: list[Measurement | None]


def side_by_side(columns: Sequence[Sequence[Evaluation]]) -> list[Row]:
    """Every metric that any column has, in the order in which they come; equal protocol and data share a row.

    A column may hold several encoders on the same data, as a run's own table does: the first is the one that is
    compared, and the rows of the others (baselines) carry their names.
    """
    found: dict[tuple[str, ...], list[Measurement | None]] = {}
    for place, evaluations in enumerate(columns):
        for key, measurement in _keyed(evaluations):
            found.setdefault(key, [None] * len(columns))[place] = measurement
    titles = {key[:2]: None for key in found}  # in order
    return [Row(key[0], key[2], cells) for title in titles for key, cells in found.items() if key[:2] == title]


def _keyed(evaluations: Sequence[Evaluation]) -> Iterator[tuple[tuple[str, str, str], Measurement]]:
    """(title, fingerprints, name) of each number."""
    seen: set[tuple[str, str, str]] = set()
    for evaluation in evaluations:
        title, data = f"{evaluation.protocol}: {conditions(evaluation)}", str(fingerprints(evaluation))
        keys = [(title, data, label(measurement)) for measurement in evaluation.measurements]
        baseline = bool(seen.intersection(keys))
        seen.update(keys)
        for key, measurement in zip(keys, evaluation.measurements, strict=True):
            yield (*key[:2], f"{evaluation.encoder['name']}: {key[2]}" if baseline else key[2]), measurement


def fingerprints(evaluation: Evaluation) -> dict[str, object]:
    """Of the data, by the name that people gave it."""
    sets = (value for value in evaluation.data.values() if isinstance(value, dict))
    return {str(value["source"]): value["fingerprint"] for value in sets}


def reservations(columns: Sequence[Sequence[Evaluation]]) -> list[str]:
    """What a reader has to know before comparing, a line each; columns are called A, B, ..."""
    lines = []
    for one, other in combinations(range(len(columns)), 2):
        for mine, yours in _pairs(columns[one], columns[other]):
            here, there = fingerprints(mine), fingerprints(yours)
            lines += [
                f"{mine.protocol}: {name} is not the same data in {letter(one)} and {letter(other)}"
                for name in here.keys() & there.keys()
                if here[name] != there[name]
            ]
            lines += [
                f"{mine.protocol}: {knob} is {mine.encoder[knob]} in {letter(one)} and {yours.encoder[knob]} in "
                f"{letter(other)}"
                for knob in ("size", "center_crop")
                if knob in mine.encoder and knob in yours.encoder and mine.encoder[knob] != yours.encoder[knob]
            ]
    return list(dict.fromkeys(lines))


def _pairs(one: Sequence[Evaluation], other: Sequence[Evaluation]) -> Iterator[tuple[Evaluation, Evaluation]]:
    """The first evaluation of each protocol that both have."""
    first, second = ({e.protocol: e for e in reversed(evaluations)} for evaluations in (one, other))
    return ((first[name], second[name]) for name in first if name in second)


def letter(place: int) -> str:
    """A, B, ... Z, A1, B1, ..."""
    return f"{chr(ord('A') + place % 26)}{place // 26 or ''}"
