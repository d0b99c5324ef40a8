"""The launcher keeps to the sizes of the library, and each module says what it is for."""

import ast
from pathlib import Path

import launch

LONGEST_FILE, LONGEST_FUNCTION, LONG_FUNCTION = 300, 60, 30  # lines
SOURCES = {path.stem: path.read_text(encoding="utf-8") for path in Path(launch.__file__).parent.glob("*.py")}


def test_files_and_functions_stay_small_and_every_module_says_what_it_is_for():
    lengths = []
    for module, text in SOURCES.items():
        assert text.count("\n") <= LONGEST_FILE, module
        assert ast.get_docstring(ast.parse(text)), f"{module} has no docstring"
        functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)]
        lengths += [(f.end_lineno - f.lineno + 1, f"{module}.{f.name}") for f in functions]
    assert max(lengths)[0] <= LONGEST_FUNCTION, max(lengths)
    assert sorted(lengths)[len(lengths) * 9 // 10][0] <= LONG_FUNCTION


def test_status_waits_neither_for_torch_nor_for_submitit():
    """What `status` reads, it reads with the standard library."""
    for module in ("run_files", "run_state", "status_text", "queue", "tail"):
        imported = [line for line in SOURCES[module].splitlines() if line.startswith(("import ", "from "))]
        assert not [line for line in imported if "torch" in line or "submitit" in line], module
