"""A grid of knobs -> its points: GRID.yaml has a list for each knob, and a point is one value of each."""

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dino_ssl.config_kinds import KINDS
from dino_ssl.config_schema import convert, did_you_mean, nearest, shown, to_flag
from dino_ssl.config_yaml import Entry, read_entries
from dino_ssl.errors import UsageError

# Of every command: that of the recipe refuses those that it lacks.
KNOBS = {knob: kind for command in reversed(KINDS) for knob, kind in command.knobs.items()}


@dataclass(frozen=True)
class Point:
    """One point of a grid: its number, and its values as the file has them."""

    number: int
    values: dict[str, Any]

    @property
    def name(self) -> str:
        """A folder's name, such as 003-optim.lr=0.001-seed=1."""
        parts = [f"{self.number:03d}", *(f"{knob}={_short(value)}" for knob, value in self.values.items())]
        return re.sub(r"[^\w.=,+-]", "_", "-".join(parts))[:120]

    def flags(self) -> list[str]:
        """The values as flags of the training."""
        return [word for knob, value in self.values.items() for word in (to_flag(knob), *_words(value))]


def read_grid(file: Path) -> list[Point]:
    """Every point, the last knob turning fastest.

    Raises:
        UsageError: every mistake in the file.
    """
    entries, problems = read_entries(file)
    problems += [problem for entry in entries for problem in _mistakes(entry)]
    if not entries and not problems:
        problems.append(f"{file}: names no knob; write such as `optim.lr: [1e-3, 5e-4]`")
    if problems:
        raise UsageError(*problems)
    knobs = [entry.key for entry in entries]
    combinations = itertools.product(*(entry.value for entry in entries))
    return [Point(i, dict(zip(knobs, values, strict=True))) for i, values in enumerate(combinations)]


def _mistakes(entry: Entry) -> list[str]:
    knob = entry.key
    if knob not in KNOBS:
        return [f"{entry.where}unknown key '{knob}'{did_you_mean(nearest(knob, KNOBS))}"]
    if knob == "output_dir":
        return [f"{entry.where}output_dir is chosen for each point; write --output-dir for the sweep's folder"]
    if not isinstance(entry.value, list) or not entry.value:
        return [f"{entry.where}{knob}={shown(entry.value)} must be a list of values in brackets"]
    found = [_mistake(value, knob) for value in entry.value]
    twice = [value for i, value in enumerate(entry.value) if value in entry.value[:i]]
    return [f"{entry.where}{problem}" for problem in found if problem] + [
        f"{entry.where}{knob} has {shown(value)} twice; keep one" for value in twice
    ]


def _mistake(value: object, knob: str) -> str | None:
    try:
        convert(value, KNOBS[knob])
    except ValueError as rule:
        return f"{knob}={shown(value)} {rule}"
    return None


def _words(value: object) -> Sequence[str]:
    match value:
        case None:
            return ["None"]
        case bool():
            return [str(value).lower()]
        case list():
            return [str(item) for item in value]
        case _:
            return [str(value)]


def _short(value: object) -> str:
    return ",".join(_words(value))
