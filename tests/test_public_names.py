"""What `import dino_ssl` offers."""

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import dino_ssl

README = Path(__file__).parents[1] / "README.md"
NAMES = [name for name in dir(dino_ssl) if not name.startswith("_")]


@pytest.mark.parametrize("name", NAMES)
def test_a_public_name_is_what_its_home_defines_is_explained_and_stands_in_the_readme(name):
    thing = getattr(dino_ssl, name)
    assert thing.__name__ == name and thing.__module__ == f"dino_ssl.{dino_ssl._HOMES[name]}"
    assert inspect.getdoc(thing)
    assert f"`{name}`" in README.read_text(encoding="utf-8")


def test_type_checkers_are_told_of_the_same_names():
    stub = Path(dino_ssl.__file__).with_suffix(".pyi").read_text(encoding="utf-8")
    told = {
        alias.name: node.module
        for node in ast.walk(ast.parse(stub))
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.asname == alias.name
    }
    assert told == {name: f"dino_ssl.{home}" for name, home in dino_ssl._HOMES.items()}


def test_the_package_itself_imports_no_torch_and_an_unknown_name_is_an_error():
    program = "import sys, dino_ssl; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
    with pytest.raises(AttributeError, match="has no attribute 'pretrian'"):
        dino_ssl.pretrian  # noqa: B018
