"""The dataclasses of a configuration seen as a flat table: dotted key -> type, and values in and out of that table.

A *knob* is one value (`optim.lr`), a *section* the dataclass around it (`optim`).
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Generic, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from dino_ssl.config import RunConfig
from dino_ssl.original_flags import Replacement

C = TypeVar("C", bound=RunConfig)


def _members(section: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, kind in get_type_hints(section).items():
        yield prefix + name, kind
        if is_dataclass(kind):
            yield from _members(kind, f"{prefix}{name}.")  # type: ignore[arg-type]


@dataclass(frozen=True)
class Kind(Generic[C]):
    """A command that trains, and its configuration.

    Attributes:
        command: what stands after `dino-ssl`.
        check: problems that show without looking at the data, one line each.
        replacements: flags of an original that this command takes, too.
        without_effect: those of its flags that are read and dropped.
        has_presets: whether --preset takes a name.
    """

    command: str
    config: type[C]
    check: Callable[[C], list[str]]
    replacements: Mapping[str, Replacement] = field(default_factory=dict)
    without_effect: tuple[str, ...] = ()
    has_presets: bool = False

    @cached_property
    def sections(self) -> dict[str, Any]:
        """Dotted key -> dataclass; what this configuration adds comes before what all have."""
        found = [(key, kind) for key, kind in _members(self.config) if is_dataclass(kind)]
        own = self.config.__annotations__
        return dict(sorted(found, key=lambda item: item[0].partition(".")[0] not in own))

    @cached_property
    def knobs(self) -> dict[str, Any]:
        """Dotted key -> type."""
        return {key: kind for key, kind in _members(self.config) if key not in self.sections}


@dataclass
class Layer:
    """What one source of settings says, right and wrong.

    `values` are the sound ones by dotted key; `suspects` are knobs that a mistake meant or hid, about which
    no second complaint is wanted.
    """

    values: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    suspects: set[str] = field(default_factory=set)
    preset: str | None = None

    def update(self, later: "Layer") -> None:
        """Put `later` on top: its values win, its mistakes are added."""
        self.values |= later.values
        self.problems += later.problems
        self.suspects = (self.suspects - later.values.keys()) | later.suspects
        self.preset = later.preset or self.preset


def shown(value: object) -> str:
    """`value` as a person would write it in YAML, cut to a line."""
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."


def nearest(word: str, names: Iterable[str]) -> list[str]:
    """The names that `word` may have meant, best first: the same last part, then similar spelling."""
    names = list(names)
    leaf = word.rpartition(".")[2]
    leaves = {name: name.rpartition(".")[2] for name in names}
    same = [name for name in names if leaves[name] == leaf]
    similar = get_close_matches(leaf, leaves.values(), n=1)
    return same or get_close_matches(word, names, n=1) or [n for n in names if leaves[n] in similar]


def to_flag(knob: str) -> str:
    """The knob's flag: "--optim.min-lr" for "optim.min_lr"."""
    return "--" + knob.replace("_", "-")


def did_you_mean(words: Iterable[str]) -> str:
    """The tail of a message: "; did you mean 'a' or 'b'?", empty without words."""
    quoted = " or ".join(f"'{word}'" for word in words)
    return f"; did you mean {quoted}?" if quoted else ""


def convert(value: object, kind: Any) -> Any:
    """Turn a plain value (as YAML reads it) into what a field of type `kind` holds.

    Raises:
        ValueError: the rule that `value` breaks, as the second half of a sentence.
    """
    match get_origin(kind) or kind:
        case origin if origin in (Union, UnionType):
            (inner,) = (option for option in get_args(kind) if option is not NoneType)
            return None if value is None else convert(value, inner)
        case _ if value is None:
            raise ValueError("must have a value; leave the line out for the default")
        case origin if origin is Literal:
            return _choice(value, get_args(kind))
        case origin if origin is tuple:
            return _tuple(value, get_args(kind))
        case _:
            return _scalar(value, kind)


def _choice(value: object, choices: tuple[str, ...]) -> str:
    if isinstance(value, str) and value in choices:
        return value
    raise ValueError(f"must be one of {', '.join(choices)}{did_you_mean(nearest(str(value), choices))}")


def _tuple(value: object, kinds: tuple[Any, ...]) -> tuple[Any, ...]:
    any_length = kinds[-1] is Ellipsis
    try:
        if isinstance(value, list | tuple):
            kinds = kinds[:1] * len(value) if any_length else kinds
            return tuple(convert(item, kind) for item, kind in zip(value, kinds, strict=True))
    except ValueError:
        pass  # a wrong length or a wrong item breaks the same rule
    items = f"words from {', '.join(get_args(kinds[0]))}" if get_origin(kinds[0]) is Literal else "numbers"
    raise ValueError(f"must be a list of {'' if any_length else f'{len(kinds)} '}{items} in brackets")


def _scalar(value: object, kind: type) -> Any:
    # bool is a subclass of int in Python, but `epochs: true` is a mistake.
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind is bool and isinstance(value, bool):
        return value
    if kind is int and isinstance(value, int) and number:
        return value
    if kind is float and number and not (isinstance(value, int) and abs(value) > 10**300):
        return float(value)  # type: ignore[arg-type]
    if kind is str and isinstance(value, str):
        return value
    if kind is Path and isinstance(value, str) and "\0" not in value:
        return Path(value).expanduser()
    raise ValueError(_scalar_rule(value, kind))


def _scalar_rule(value: object, kind: type) -> str:
    if kind is bool:
        return "must be true or false"
    if kind is int:
        whole = isinstance(value, float) and value.is_integer()
        return "must be a whole number" + (f"; write {value:.0f}" if whole else "")
    if kind is float:
        return "must be a number"
    if isinstance(value, str):
        return "must be a path, which has no zero byte"
    quotable = isinstance(value, int | float)
    return "must be text" + (f"; write '{str(value).lower()}' in quotes" if quotable else "")


def take(layer: Layer, where: str, key: str, value: object, kind: Kind[Any]) -> None:
    """Enter `key: value` into `layer`, as a value or as a problem that begins with `where`."""
    if key in kind.sections:
        layer.suspects |= {knob for knob in kind.knobs if knob.startswith(f"{key}.")}
        layer.problems.append(f"{where}{key}={shown(value)} must be a section: {_example(key, kind)}")
    elif key not in kind.knobs:
        replacement = kind.replacements.get(key.rpartition(".")[2])
        meant = [replacement.knob] if replacement else nearest(key, [*kind.knobs, *kind.sections])
        layer.suspects |= {knob for knob in kind.knobs if any(f"{knob}.".startswith(f"{m}.") for m in meant)}
        layer.problems.append(f"{where}unknown key '{key}'{did_you_mean(meant)}")
    else:
        try:
            layer.values[key] = convert(value, kind.knobs[key])
        except ValueError as rule:
            layer.suspects.add(key)
            layer.problems.append(f"{where}{key}={shown(value)} {rule}")


def _example(section: str, kind: Kind[Any]) -> str:
    knob = next(knob for knob in kind.knobs if knob.startswith(f"{section}."))
    return f"write its knobs below it, such as {knob.removeprefix(section + '.')}, two spaces further in"


def flatten(config: RunConfig) -> dict[str, Any]:
    """Dotted key -> value for every knob, in the order of the dataclasses."""
    return dict(_flat(config, ""))


def _flat(section: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    for member in fields(section):
        value = getattr(section, member.name)
        if is_dataclass(value):
            yield from _flat(value, f"{prefix}{member.name}.")
        else:
            yield prefix + member.name, value


def build(values: Mapping[str, Any], kind: Kind[C]) -> C:
    """The configuration with these knobs, every other at its default."""
    config: C = _built(kind.config, values, "", kind)
    return config


def _built(section: Any, values: Mapping[str, Any], prefix: str, kind: Kind[Any]) -> Any:
    arguments: dict[str, Any] = {}
    for member in fields(section):
        key = prefix + member.name
        if key in kind.sections:
            arguments[member.name] = _built(kind.sections[key], values, f"{key}.", kind)
        elif key in values:
            arguments[member.name] = values[key]
    return section(**arguments)
