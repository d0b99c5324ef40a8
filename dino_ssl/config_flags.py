"""The command line of a training: recipes, preset and flags -> one sound configuration.

The words are first taken apart with the table of knobs, so that recipes may stand anywhere and the original's
flags can be translated. tyro then reads the values; if it refuses, each flag is tried alone, so that every
bad one is reported and not only the first.
"""

import io
import re
import sys
from collections import deque
from collections.abc import Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass, field
from itertools import dropwhile, takewhile
from pathlib import Path
from typing import Any, get_args, get_origin

import tyro

from dino_ssl.config_schema import C, Kind, Layer, build, did_you_mean, nearest, to_flag
from dino_ssl.config_yaml import preset_names, read_layers, sound_checks
from dino_ssl.errors import UsageError
from dino_ssl.original_flags import Replacement, boolean, unchanged

PROGRAM = "evaluate.submit"
"""The one knob that names a program."""


@dataclass(frozen=True)
class Flag:
    """One flag as the user wrote it, the knob that it sets, and the words that tyro reads."""

    written: str
    knob: str
    words: list[str]


@dataclass
class CommandLine:
    """A command line taken apart, with its mistakes (see `Layer`) and remarks."""

    kind: Kind[Any]
    recipes: list[Path] = field(default_factory=list)
    preset: str | None = None
    flags: list[Flag] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    suspects: set[str] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)


def configure(arguments: Sequence[str], kind: Kind[C]) -> tuple[C, list[str]]:
    """The configuration that the words after the command mean, and notes for the user.

    Raises:
        UsageError: every mistake in the recipes, in the flags, and in how knobs fit each other.
    """
    line = take_apart(arguments, kind)
    layer = read_layers(line.recipes, line.preset, kind)
    layer.update(Layer(problems=line.problems, suspects=line.suspects))
    config = apply_flags(build(layer.values, kind), line.flags, layer, kind)
    problems = layer.problems + sound_checks(config, layer.suspects, kind)
    problems += _programs(line, layer, config.output_dir)
    if problems:
        raise UsageError(*problems)
    return config, line.notes


def _programs(line: CommandLine, layer: Layer, output_dir: Path) -> list[str]:
    """A recipe of somebody else must not name a program to run; the run's own config.yaml only repeats a flag."""
    command = layer.values.get(PROGRAM)
    by_flag = any(flag.knob == PROGRAM for flag in line.flags)
    if not command or by_flag or (output_dir / "config.yaml").absolute() in [file.absolute() for file in line.recipes]:
        return []
    return [f"{PROGRAM}={command} in a recipe would be run as a program; write it as a flag, {to_flag(PROGRAM)} '...'"]


def take_apart(arguments: Sequence[str], kind: Kind[Any]) -> CommandLine:
    """Sort the words into recipes and flags; each flag takes as many words as its knob has values."""
    line, words = CommandLine(kind), deque(arguments)
    while words:
        word = words.popleft()
        if not word.startswith("-"):
            line.recipes.append(Path(word))
            continue
        written, equals, value = word.partition("=")
        if equals:
            words.appendleft(value)
        _take_flag(line, written, words)
    return line


def _take_flag(line: CommandLine, written: str, words: deque[str]) -> None:
    name = written.lstrip("-").replace("-", "_")
    if name in line.kind.without_effect:
        _values(words, 1)
        line.notes.append(f"{written} has no effect: ranks and addresses come from torchrun's environment")
    elif name == "preset" and line.kind.has_presets:
        _take_preset(line, _values(words, 1))
    elif name in line.kind.replacements:
        _take_knob(line, written, line.kind.replacements[name], words)
    elif name in line.kind.knobs:
        _take_knob(line, written, Replacement(name, boolean if line.kind.knobs[name] is bool else unchanged), words)
    elif line.kind.knobs.get(_without_no(name)) is bool:
        line.flags.append(Flag(written, _without_no(name), _words(_without_no(name), bool, ["false"])))
    else:
        _take_unknown(line, written, name, words)


def _take_preset(line: CommandLine, values: list[str]) -> None:
    if values:
        line.preset = values[0]
    else:
        line.problems.append(f"--preset has no value; the presets are {', '.join(preset_names())}")


def _take_knob(line: CommandLine, written: str, to: Replacement, words: deque[str]) -> None:
    kind = line.kind.knobs[to.knob]
    if kind is bool:
        values = [words.popleft()] if words and not _is_flag_or_recipe(words[0]) else ["true"]
    else:
        values = _values(words, _num_values(kind))
    try:
        rewritten = [to.rewrite(value) for value in values]
        line.flags.append(Flag(written, to.knob, _words(to.knob, kind, rewritten)))
    except ValueError as rule:
        line.problems.append(f"{written}={' '.join(values)} {rule}")
        line.suspects.add(to.knob)


def _num_values(kind: Any) -> int:
    """Words that a flag takes at most; a list of any length ends with the next flag or recipe."""
    if get_origin(kind) is not tuple:
        return 1
    return sys.maxsize if Ellipsis in get_args(kind) else len(get_args(kind))


def _take_unknown(line: CommandLine, written: str, name: str, words: deque[str]) -> None:
    while words and not _is_flag_or_recipe(words[0]):
        words.popleft()
    meant = nearest(name, [*line.kind.knobs, *line.kind.replacements, *(["preset"] if line.kind.has_presets else [])])
    line.suspects |= {line.kind.replacements[m].knob if m in line.kind.replacements else m for m in meant}
    spellings = (f"--{m}" if m in line.kind.replacements else to_flag(m) for m in meant)
    line.problems.append(f"unknown flag {written}{did_you_mean(spellings)}")


def _values(words: deque[str], count: int) -> list[str]:
    """Take up to `count` words that are no flags; a single dash may begin a number."""
    values: list[str] = []
    is_list = count == sys.maxsize
    while words and len(values) < count and not words[0].startswith("--") and not (is_list and _is_recipe(words[0])):
        values.append(words.popleft())
    return values


def _is_flag_or_recipe(word: str) -> bool:
    return word.startswith("-") or _is_recipe(word)


def _is_recipe(word: str) -> bool:
    return word.endswith((".yaml", ".yml"))


def _words(knob: str, kind: Any, values: list[str]) -> list[str]:
    """What tyro reads; its switches are --a.b and --a.no-b."""
    if kind is not bool:
        return [to_flag(knob), *values]
    section, dot, name = knob.rpartition(".")
    return [to_flag(knob if values == ["true"] else f"{section}{dot}no_{name}")]


def _without_no(name: str) -> str:
    section, dot, leaf = name.rpartition(".")
    return f"{section}{dot}{leaf.removeprefix('no_')}"


def apply_flags(config: C, flags: Sequence[Flag], layer: Layer, kind: Kind[C]) -> C:
    """`config` with the flags on top; those that tyro refuses go into `layer` as problems."""
    try:
        changed = _read(config, flags, kind)
        good = list(flags)
    except ValueError:
        good = [flag for flag in flags if not _refused(config, flag, layer, kind)]
        changed = _read(config, good, kind)
    layer.suspects -= {flag.knob for flag in good}
    return changed


def _refused(config: C, flag: Flag, layer: Layer, kind: Kind[C]) -> bool:
    try:
        _read(config, [flag], kind)
    except ValueError as refusal:
        alias = "" if flag.words[0] == flag.written.replace("_", "-") else f" (written as {flag.written})"
        layer.problems.append(f"{refusal}{alias}")
        layer.suspects.add(flag.knob)
        return True
    return False


def _read(config: C, flags: Sequence[Flag], kind: Kind[C]) -> C:
    """tyro's reading of the flags; ValueError with its explanation."""
    words = [word for flag in flags for word in flag.words]
    explanation = io.StringIO()
    try:
        with redirect_stderr(explanation):
            return tyro.cli(kind.config, args=words, default=config, prog=f"dino-ssl {kind.command}", add_help=False)
    except SystemExit as refusal:
        raise ValueError(_first_paragraph(explanation.getvalue())) from refusal


def _first_paragraph(box: str) -> str:
    """The explanation in tyro's box, without title, frame and colours, and without the advice below it."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", box)
    lines = [line.strip("│ ") for line in plain.splitlines()[1:]]
    below_title = dropwhile(_is_rule, lines)
    return " ".join(takewhile(lambda line: not _is_rule(line), below_title)).removeprefix("Error parsing ")


def _is_rule(line: str) -> bool:
    return not line.strip("─╰╯-")
