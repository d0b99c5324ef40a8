"""Imports go down; files and functions stay small; every module and public name says what it is."""

import ast
import inspect
from fnmatch import fnmatch
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import dino_ssl

# From the bottom to the top. The pure floors come before `config` and the ranks, so that they cannot see them:
# they take numbers and tensors. A module stands on the first floor that names it.
FLOORS = [floor.split() for floor in (
    "__init__ errors durable checksums",
    "*.__init__ models.* data.* dino.losses dino.regions dino.centering dino.schedules dino.collapse dino.verdicts"
    " finetuning.schedule finetuning.views finetuning.knowledge_review finetuning.distillation"
    " finetuning.margins finetuning.subcenters finetuning.attention_similarity",
    "evaluation.*",
    "config training.distributed training.ranks training.rendezvous training.sharding",
    "original_flags config_*",
    "dino.method dino.region_method training.broken_images training.checkpoint training.curves training.folder_lock"
    " training.code_state training.run_folder training.heartbeat training.journal training.optim training.progress"
    " training.requeue training.signals"
    " training.trackers",
    "training.* finetuning.*",
    "commands.*",
    "cli __main__",
)]  # fmt: skip
PURE = 1
# Only these modules may use such a name.
RESERVED = {
    "torch.distributed": ["training.distributed", "training.sharding"],
    **{name: ["cli", "commands.*"] for name in ("print", "argparse")},
    "tyro": ["config_flags"],
    **{program: [] for program in ("submitit", "eval", "launch", "benchmarks", "tests")},
}
LONGEST_FILE, LONGEST_FUNCTION, LONG_FUNCTION = 300, 60, 30  # lines


def sources() -> dict[str, str]:
    """Every module of the library, without `dino_ssl.` before its name, and its text."""
    root = Path(dino_ssl.__file__).parent
    paths = {".".join(path.relative_to(root).with_suffix("").parts): path for path in sorted(root.rglob("*.py"))}
    return {module: path.read_text(encoding="utf-8") for module, path in paths.items()}


def used_names(text: str) -> set[str]:
    """What a module imports, with every dotted name and every function that it calls by a plain name."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        match node:
            case ast.Import(names=aliases):
                names |= {alias.name for alias in aliases}
            case ast.ImportFrom(module=module, names=aliases, level=level):
                assert level == 0, "write the module's whole name"
                names |= {f"{module}.{alias.name}" for alias in aliases}
            case ast.Attribute() | ast.Call(func=ast.Name()):
                names.add(ast.unparse(node.func if isinstance(node, ast.Call) else node))
    return names


def imports(text: str, modules: set[str]) -> set[str]:
    """The library's own modules among `used_names`."""
    inner = {name.removeprefix("dino_ssl.") for name in used_names(text) if name.startswith("dino_ssl.")}
    return {next((m for m in (name, name.rpartition(".")[0]) if m in modules), "__init__") for name in inner}


def floor_of(module: str) -> int | None:
    return next((i for i, names in enumerate(FLOORS) if any(fnmatch(module, name) for name in names)), None)


def offences(library: dict[str, str]) -> list[str]:
    """Every import and name that is not where it may be."""
    floor = {module: floor_of(module) for module in library}
    if lost := [f"{module} stands on no floor" for module in library if floor[module] is None]:
        return lost
    graph = {module: imports(text, set(library)) for module, text in library.items()}
    found = [f"{m} imports {other}, above it" for m in library for other in graph[m] if floor[other] > floor[m]]
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        found.append(f"a circle of imports: {' -> '.join(error.args[1])}")
    for module, text in library.items():
        reserved = [name for name, owners in RESERVED.items() if not any(fnmatch(module, owner) for owner in owners)]
        reserved += ["logging"] if floor[module] == PURE else []
        used = {f"{name}." for name in used_names(text)}
        found += [f"{module} uses {r}" for r in reserved if any(name.startswith(f"{r}.") for name in used)]
    return found


def test_imports_go_down_and_ranks_printing_and_programs_stay_in_their_rooms() -> None:
    assert offences(sources()) == []


MADE_UP = [
    ("dino.losses", "from dino_ssl.config import Dino", "dino.losses imports config, above it"),
    ("data.crops", "def f():\n  from dino_ssl.training import distributed", "data.crops imports training."),
    ("evaluation.knn", "import dino_ssl.dino.method", "evaluation.knn imports dino.method, above it"),
    ("config_schema", "from dino_ssl.config_yaml import read_config", "a circle of imports: config"),
    ("models.vit", "import logging.handlers", "models.vit uses logging"),
    ("training.run", "from torch import distributed", "training.run uses torch.distributed"),
    ("training.run", "import torch\ntorch.distributed.barrier()", "training.run uses torch.distributed"),
    ("training.loop", "print(1)", "training.loop uses print"),
    ("cli", "from submitit import helpers", "cli uses submitit"),
    ("utils", "", "utils stands on no floor"),
]


@pytest.mark.parametrize(("module", "text", "offence"), MADE_UP)
def test_a_made_up_offence_is_found(module: str, text: str, offence: str) -> None:
    assert any(found.startswith(offence) for found in offences({**sources(), module: text}))


def test_files_and_functions_stay_small_and_every_module_says_what_it_is_for() -> None:
    lengths = []
    for module, text in sources().items():
        tree = ast.parse(text)
        assert text.count("\n") <= LONGEST_FILE, module
        assert ast.get_docstring(tree), f"{module} has no docstring"
        functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
        lengths += [(f.end_lineno - f.lineno + 1, f"{module}.{f.name}") for f in functions]
    assert max(lengths)[0] <= LONGEST_FUNCTION, max(lengths)
    assert sorted(lengths)[len(lengths) * 9 // 10][0] <= LONG_FUNCTION


def test_every_public_name_has_a_docstring() -> None:
    public = [getattr(dino_ssl, name) for name in dir(dino_ssl) if not name.startswith("_")]
    assert [value for value in public if not inspect.ismodule(value) and not inspect.getdoc(value)] == []
