"""The text of `dino-ssl pretrain --help`, made from the dataclasses and the strings under their fields."""

import ast
import inspect
import shutil
import textwrap
from itertools import pairwise
from typing import Any, Literal, get_args, get_origin

from dino_ssl import config as config_module
from dino_ssl.config import PretrainConfig
from dino_ssl.config_schema import KNOBS, SECTIONS, flatten, to_flag
from dino_ssl.config_yaml import preset_names

INTRODUCTION = """\
usage: dino-ssl pretrain [RECIPE.yaml ...] [--preset NAME] [--FLAG VALUE ...]

{summary} For example:
  dino-ssl pretrain --data photos/ --output-dir runs/photos --epochs 200

Later wins: the defaults (shown here), --preset, recipes in their order, flags.
Presets: {presets}.
Flags of the original main_dino.py (--arch, --out_dim, ...) are accepted, too.

"""


def pretrain_help() -> str:
    """Every knob with its default and its meaning, at the width of the terminal (60 to 100 columns)."""
    width = max(60, min(100, shutil.get_terminal_size(fallback=(100, 60)).columns))
    presets = ", ".join(preset_names())
    introduction = INTRODUCTION.format(summary=PretrainConfig.__doc__, presets=presets)
    sections = (_section_help(prefix, width) for prefix in ("", *SECTIONS))
    return introduction + "\n".join(sections)


def _section_help(section: str, width: int) -> str:
    texts, defaults = field_texts(), flatten(PretrainConfig())
    knobs = [knob for knob in KNOBS if knob.rpartition(".")[0] == section]
    title = f"{section}: {SECTIONS[section].__doc__}" if section else "The run"
    entries = [_entry(f"  {to_flag(knob)} {_default(knob, defaults[knob])}", texts[knob], width) for knob in knobs]
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


def _default(knob: str, value: Any) -> str:
    """The default as it is typed; for a choice every alternative, the default first."""
    if get_origin(KNOBS[knob]) is Literal:
        return "|".join([value, *(choice for choice in get_args(KNOBS[knob]) if choice != value)])
    match value:
        case "":
            return "SOURCE" if knob == "data" else "COMMAND"
        case bool():
            return str(value).lower()
        case tuple():
            return " ".join(str(item) for item in value)
        case _:
            return str(value)


def field_texts() -> dict[str, str]:
    """Dotted key -> the string under the field, which Python itself does not keep."""
    tree = ast.parse(inspect.getsource(config_module))
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    texts = {}
    for prefix, section in {"": PretrainConfig, **SECTIONS}.items():
        body = classes[section.__name__].body
        for member, below in pairwise(body):
            match member, below:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                    texts[f"{prefix}.{name}".lstrip(".")] = " ".join(text.split())
    return texts
