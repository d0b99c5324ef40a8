"""The text of a training's --help, made from the dataclasses and the strings under their fields."""

import ast
import inspect
import shutil
import textwrap
from functools import cache
from itertools import pairwise
from typing import Any, Literal, get_args, get_origin

from dino_ssl.config_schema import Kind, flatten, to_flag
from dino_ssl.config_yaml import preset_names

INTRODUCTION = """\
usage: dino-ssl {command} [RECIPE.yaml ...] [--FLAG VALUE ...]

{summary} For example:
  dino-ssl {command} --data photos/ --output-dir runs/photos

Later wins: defaults (shown here), {layers}recipes in their order, flags.
"""
PRESETS = """\
Presets, for --preset NAME: {presets}.
Flags of the original main_dino.py (--arch, --out_dim, ...) are accepted, too.
"""


def training_help(kind: Kind[Any]) -> str:
    """Every knob with its default and its meaning, at the width of the terminal (60 to 100 columns)."""
    width = max(60, min(100, shutil.get_terminal_size(fallback=(100, 60)).columns))
    layers = "preset, " if kind.has_presets else ""
    introduction = INTRODUCTION.format(command=kind.command, summary=kind.config.__doc__, layers=layers)
    introduction = "\n".join(textwrap.fill(line, width, subsequent_indent="  ") for line in introduction.splitlines())
    if kind.has_presets:
        introduction += "\n" + PRESETS.format(presets=", ".join(preset_names()))
    sections = (_section_help(kind, prefix, width) for prefix in ("", *kind.sections))
    return f"{introduction.rstrip()}\n\n" + "\n".join(sections)


def _section_help(kind: Kind[Any], section: str, width: int) -> str:
    texts, defaults = field_texts(kind), flatten(kind.config())
    knobs = [knob for knob in kind.knobs if knob.rpartition(".")[0] == section]
    title = f"{section}: {kind.sections[section].__doc__}" if section else "The run"
    entries = [
        _entry(f"  {to_flag(knob)} {_default(knob, kind.knobs[knob], defaults[knob])}", texts[knob], width)
        for knob in knobs
    ]
    return "\n".join([textwrap.fill(title, width), *entries])


def _entry(left: str, text: str, width: int) -> str:
    """`text` beside `left`, in a column of two thirds of the width; a long `left` pushes its first line."""
    indent = " " * (width // 3)
    return textwrap.fill(
        text,
        width,
        initial_indent=f"{left}  ".ljust(len(indent)),
        subsequent_indent=indent,
        break_on_hyphens=False,
    )


def _default(knob: str, kind: Any, value: Any) -> str:
    """The default as it is typed; for a choice every alternative, the default first."""
    if get_origin(kind) is Literal:
        return "|".join([value, *(choice for choice in get_args(kind) if choice != value)])
    match value:
        case "":
            return "COMMAND" if knob == "evaluate.submit" else "SOURCE" if knob in ("data", "test") else "PATH"
        case bool():
            return str(value).lower()
        case tuple():
            return " ".join(str(item) for item in value)
        case _:
            return str(value)


def field_texts(kind: Kind[Any]) -> dict[str, str]:
    """Dotted key -> the string under the field, which Python itself does not keep."""
    texts: dict[str, str] = {}
    for prefix, section in {"": kind.config, **kind.sections}.items():
        for owner in reversed(section.__mro__[:-1]):
            texts |= {f"{prefix}.{name}".lstrip("."): text for name, text in _texts_of(owner)}
    return texts


@cache
def _texts_of(section: type) -> list[tuple[str, str]]:
    (definition,) = ast.parse(inspect.getsource(section)).body
    assert isinstance(definition, ast.ClassDef)
    found = []
    for member, below in pairwise(definition.body):
        match member, below:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                found.append((name, " ".join(text.split())))
    return found
