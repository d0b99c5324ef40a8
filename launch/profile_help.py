"""The text of `python -m launch.slurm profile`, made from the dataclass and the strings under its fields."""

import ast
import inspect
import textwrap
from dataclasses import MISSING, fields
from itertools import pairwise

from launch import profiles
from launch.profile_files import EXAMPLE, own_folder, profile_paths
from launch.profiles import Profile

WIDTH, COLUMN = 100, 28


def profile_help() -> str:
    """Every key with its default and its meaning, and the profiles that there are."""
    there = "\n".join(f"  {name:<12}{path}" for name, path in sorted(profile_paths().items()))
    texts = key_texts()
    keys = "\n".join(_entry(name, default, texts[name]) for name, default in _defaults().items())
    return (
        f"Profiles, of which --cluster NAME takes one:\n{there}\n\n"
        f"Write your own into {own_folder() / 'NAME.yaml'}, for example\n{EXAMPLE}\n\nKeys and their defaults:\n{keys}"
    )


def key_texts() -> dict[str, str]:
    """Key -> the string under the field, which Python itself does not keep."""
    (body,) = (
        node.body
        for node in ast.parse(inspect.getsource(profiles)).body
        if isinstance(node, ast.ClassDef) and node.name == Profile.__name__
    )
    texts = {}
    for member, below in pairwise(body):
        match member, below:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                texts[name] = " ".join(text.split())
    return texts


def _defaults() -> dict[str, str]:
    return {m.name: _written("{}" if m.default is MISSING else m.default) for m in fields(Profile)}


def _written(default: object) -> str:
    match default:
        case None:
            return "-"
        case tuple():
            return "[]"
        case bool():
            return str(default).lower()
        case _:
            return str(default)


def _entry(name: str, default: str, text: str) -> str:
    left = f"  {name} {default}  ".ljust(COLUMN)
    return textwrap.fill(text, WIDTH, initial_indent=left, subsequent_indent=" " * COLUMN, break_on_hyphens=False)
