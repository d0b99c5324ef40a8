"""Recipes and presets: strict YAML in, plain dictionaries and plain YAML out.

Strict means: numbers as people write them (5e-4 is one), only true and false are booleans, a key stands
once, and every mistake of every file is reported at once with its line.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import yaml

from dino_ssl.config import PretrainConfig, RunConfig
from dino_ssl.config_dialect import UNREADABLE, Dumper, Loader, unreadable
from dino_ssl.config_kinds import KINDS, PRETRAIN, kind_of
from dino_ssl.config_schema import C, Kind, Layer, build, did_you_mean, flatten, nearest, shown, take
from dino_ssl.errors import UsageError

PRESETS: Traversable = resources.files("dino_ssl") / "presets"


def read_config(files: Sequence[Path], preset: str | None = None) -> PretrainConfig:
    """Defaults, then the preset, then `files` in order.

    Args:
        preset: overrides the preset that a file names.
    Raises:
        UsageError: every mistake in every file, and every combination that makes no sense.
    """
    layer = read_layers(files, preset, PRETRAIN)
    config = build(layer.values, PRETRAIN)
    problems = layer.problems + sound_checks(config, layer.suspects, PRETRAIN)
    if problems:
        raise UsageError(*problems)
    return config


def load_config(file: Path, kind: Kind[C]) -> C:
    """What `write_config` wrote, not checked again: rules may have become stricter since.

    Raises:
        UsageError: the file cannot be read, is of another command, or of a version with other knobs.
    """
    layer = read_layer(file, kind)
    if layer.problems:
        raise UsageError(*layer.problems)
    return build(layer.values, kind)


def load_any_config(file: Path) -> RunConfig:
    """`load_config` of whatever command wrote the file, which has every knob of that command and no other."""
    layers = [(read_layer(file, kind), kind) for kind in KINDS]
    layer, kind = next(((layer, kind) for layer, kind in layers if not layer.problems), layers[0])
    if layer.problems:
        raise UsageError(*layer.problems)
    config: RunConfig = build(layer.values, kind)
    return config


def sound_checks(config: C, suspects: set[str], kind: Kind[C]) -> list[str]:
    """The checks, without complaints about knobs that stand at their default only because of another mistake."""
    return [problem for problem in kind.check(config) if re.split("[= ]", problem)[0] not in suspects]


def read_layers(files: Sequence[Path], preset: str | None, kind: Kind[Any]) -> Layer:
    """The preset and `files` in order, as one layer."""
    recipes = Layer()
    for file in files:
        recipes.update(read_layer(file, kind))
    name = preset or recipes.preset
    if name is None:
        return recipes
    merged = read_preset(name, kind)
    merged.update(recipes)
    return merged


def preset_names() -> list[str]:
    return sorted(entry.name.removesuffix(".yaml") for entry in PRESETS.iterdir() if entry.name.endswith(".yaml"))


def read_preset(name: str, kind: Kind[Any]) -> Layer:
    """The preset's layer; an unknown name is its one problem."""
    names = preset_names()
    if name not in names:
        meant = did_you_mean(nearest(name, names))
        problem = f"preset={name} is unknown{meant or ';'} the presets are {', '.join(names)}"
        return Layer(problems=[problem], suspects=set(kind.knobs))
    layer = read_layer(PRESETS / f"{name}.yaml", kind)
    if layer.preset is not None:
        layer.problems.append(f"preset={name} names another preset, {layer.preset}; a preset stands alone")
    return layer


def read_layer(file: Traversable, kind: Kind[Any]) -> Layer:
    """What one file says, its mistakes included; never raises for a bad file."""
    layer = Layer()
    try:
        # A loader keeps the line of every node, which the plain `yaml.load` forgets.
        loader = Loader(file.read_text(encoding="utf-8"))
        root = loader.get_single_node()
        _take_node(layer, loader, root, kind, prefix="", name=str(file), lines={})
    except UNREADABLE as error:
        return Layer(problems=[unreadable(str(file), error)], suspects=set(kind.knobs))
    return layer


@dataclass(frozen=True)
class Entry:
    """One `key: value` of a file that is no recipe; `where` is "FILE:LINE: ", the begin of a message about it."""

    where: str
    key: str
    value: Any


def read_entries(file: Traversable) -> tuple[list[Entry], list[str]]:
    """The outermost entries of a strict YAML file, and what is wrong with it; never raises for a bad file."""
    try:
        loader = Loader(file.read_text(encoding="utf-8"))
        root = loader.get_single_node()
        if root is None or _is_null(root):
            return [], []
        if not isinstance(root, yaml.MappingNode):
            return [], [f"{file}:{root.start_mark.line + 1}: must be lines of `key: value`"]
        found = [
            Entry(f"{file}:{key.start_mark.line + 1}: ", str(key.value), loader.construct_object(value, deep=True))
            for key, value in root.value
        ]
    except UNREADABLE as error:
        return [], [unreadable(str(file), error)]
    first = {entry.key: entry for entry in reversed(found)}
    twice = [f"{e.where}'{e.key}' stands above already; keep one of the two" for e in found if first[e.key] is not e]
    return [entry for entry in found if first[entry.key] is entry], twice


def _take_node(
    layer: Layer,
    loader: Loader,
    node: yaml.Node | None,
    kind: Kind[Any],
    *,
    prefix: str,
    name: str,
    lines: dict[str, int],
) -> None:
    """Enter a mapping's keys into `layer`; `lines` remembers where each key stood first."""
    if node is None or _is_null(node):
        return  # an empty file, or a section whose lines are all commented out
    if not isinstance(node, yaml.MappingNode):
        layer.problems.append(f"{name}:{node.start_mark.line + 1}: must be lines of `key: value`")
        layer.suspects |= set(kind.knobs)
        return
    for key_node, value_node in node.value:
        key, line = f"{prefix}{key_node.value}", key_node.start_mark.line + 1
        where = f"{name}:{line}: "
        if key in lines:
            layer.problems.append(f"{where}'{key}' stands on line {lines[key]} already; keep one of the two")
            continue
        lines[key] = line
        if key in kind.sections and (isinstance(value_node, yaml.MappingNode) or _is_null(value_node)):
            _take_node(layer, loader, value_node, kind, prefix=f"{key}.", name=name, lines=lines)
        else:
            _take_value(layer, where, key, loader.construct_object(value_node, deep=True), kind)


def _is_null(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:null"


def _take_value(layer: Layer, where: str, key: str, value: object, kind: Kind[Any]) -> None:
    if key != "preset" or not kind.has_presets:
        take(layer, where, key, value, kind)
    elif isinstance(value, str):
        layer.preset = value
    else:
        layer.problems.append(f"{where}preset={shown(value)} must be a name: {', '.join(preset_names())}")


def to_dict(config: RunConfig) -> dict[str, Any]:
    """Nested dictionary of plain values: text, numbers, booleans, None, lists."""
    plain: dict[str, Any] = _plain(asdict(config))
    return plain


def _plain(value: Any) -> Any:
    match value:
        case dict():
            return {key: _plain(item) for key, item in value.items()}
        case tuple():
            return [_plain(item) for item in value]
        case Path():
            return str(value)
        case _:
            return value


def from_dict(tree: Mapping[str, Any], kind: Kind[C]) -> C:
    """The inverse of `to_dict`; knobs that `tree` lacks are at their defaults.

    Raises:
        UsageError: unknown keys and wrong values, all of them.
    """
    layer = Layer()
    _take_tree(layer, tree, "", kind)
    if layer.problems:
        raise UsageError(*layer.problems)
    return build(layer.values, kind)


def _take_tree(layer: Layer, tree: Mapping[str, Any], prefix: str, kind: Kind[Any]) -> None:
    for name, value in tree.items():
        if prefix + name in kind.sections and isinstance(value, Mapping):
            _take_tree(layer, value, f"{prefix}{name}.", kind)
        else:
            take(layer, "", prefix + name, value, kind)


def write_config(config: RunConfig, file: Path) -> None:
    """Write every knob as plain YAML that `load_config` turns into an equal configuration."""
    text = yaml.dump(to_dict(config), Dumper=Dumper, sort_keys=False, allow_unicode=True)
    unfinished = file.with_name(f"{file.name}.tmp")
    unfinished.write_text(
        f"# Every knob of this run: `dino-ssl {kind_of(config).command} {file.name}` repeats it.\n{text}",
        encoding="utf-8",
    )
    unfinished.replace(file)


def differences(before: C, after: C) -> list[str]:
    """One line per knob that differs: "optim.lr: 0.0005 -> 0.001"."""
    old, new = flatten(before), flatten(after)
    return [f"{key}: {shown(old[key])} -> {shown(new[key])}" for key in old if old[key] != new[key]]
