"""The words of a command line: those for the launcher and those for the training."""

from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, get_args

from dino_ssl import config_kinds
from dino_ssl.original_flags import REPLACEMENTS
from launch.profiles import KINDS, SINGLE, take


@dataclass
class Words:
    """A command line taken apart.

    Attributes:
        switches: those that stand there, such as "dry_run".
        values: such as {"cluster": "gpu"}.
        changes: keys of the profile.
        rest: everything else, in order.
    """

    switches: set[str] = field(default_factory=set)
    values: dict[str, str] = field(default_factory=dict)
    changes: dict[str, Any] = field(default_factory=dict)
    rest: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def take_apart(arguments: Sequence[str], *, switches: Collection[str] = (), values: Collection[str] = ()) -> Words:
    """Sort the words; every key of a profile with a single value is a flag, --gpus-per-node for gpus_per_node."""
    found, words = Words(), deque(arguments)
    while words:
        word = words.popleft()
        written, equals, value = word.partition("=")
        name = written.removeprefix("--").replace("-", "_") if word.startswith("--") else ""
        if name in switches and not equals:
            found.switches.add(name)
        elif name in values or name in SINGLE:
            if not equals and not words:
                found.problems.append(f"{written} has no value")
            else:
                _take_value(found, written, name, value if equals else words.popleft(), values)
        elif meant := _meant(name, {*switches, *values, *SINGLE}):
            found.problems.append(f"unknown flag {written}; did you mean '--{meant.replace('_', '-')}'?")
            if words and not equals and not words[0].startswith("--"):
                words.popleft()
        else:
            found.rest.append(word)
    return found


def _meant(name: str, own: Collection[str]) -> str | None:
    """The flag of the launcher that `name` resembles more than any of a training's."""
    theirs = {knob for kind in config_kinds.KINDS for knob in kind.knobs} | set(REPLACEMENTS)
    if not name or name in theirs:
        return None
    near = get_close_matches(name, [*own, *theirs], n=1, cutoff=0.75)
    return near[0] if near and near[0] in own else None


def _take_value(found: Words, written: str, name: str, value: str, values: Collection[str]) -> None:
    if name in values:
        found.values[name] = value
        return
    problem = take(found.changes, "", name, plain(value, KINDS[name]))
    if problem:
        found.problems.append(problem.replace(name, written, 1))


def plain(text: str, kind: Any) -> object:
    """`text` as YAML would read it for a field of `kind`; unchanged where it is something else."""
    kinds: Mapping[type, Any] = {
        bool: lambda t: {"true": True, "false": False}.get(t, t),
        int: int,
        float: float,
    }
    read = next((kinds[option] for option in (kind, *get_args(kind)) if option in kinds), str)
    try:
        return read(text)
    except ValueError:
        return text
