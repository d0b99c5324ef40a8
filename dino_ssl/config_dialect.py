"""YAML as recipes have it: safe, bounded, numbers as people write them, and errors in a line."""

import re
from typing import Any

import yaml
from yaml.composer import ComposerError
from yaml.constructor import ConstructorError

from dino_ssl.config_schema import shown

_FLOAT = (
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d[\d_]*\.[\d_]*([eE][-+]?\d+)?|\.\d[\d_]*([eE][-+]?\d+)?|\d[\d_]*[eE][-+]?\d+)$"
               r"|[-+]?\.(inf|Inf|INF)$|\.(nan|NaN|NAN)$"),
    list("-+.0123456789"),
)  # fmt: skip


class Loader(yaml.SafeLoader):
    """Safe and bounded, with YAML 1.2's scalars: PyYAML's (1.1) reads 5e-4 as text, `no` as False and 1:30 as 90."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  (PyYAML fills it below)

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._composed: set[int] = set()

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        node = super().compose_node(parent, index)
        # Nine lines of lists of aliases of lists of aliases are a billion entries.
        if isinstance(node, yaml.CollectionNode) and id(node) in self._composed:
            raise ComposerError(None, None, "an alias stands for a list or a section; write it out", node.start_mark)
        self._composed.add(id(node))
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError):  # !!int abc, a number of 5,000 digits
            kind = node.tag.rpartition(":")[2]
            raise ConstructorError(None, None, f"{shown(node.value)} is no {kind}", node.start_mark) from None


Loader.add_implicit_resolver(*_FLOAT)
Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"~$|null$|Null$|NULL$|$"), ["~", "n", "N", ""])
Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"(true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"[-+]?(0|[1-9][\d_]*)$"), list("-+0123456789"))


class Dumper(yaml.SafeDumper):
    """Quotes text that either YAML 1.1 or `Loader` would take for a number; lists stay on their line."""


Dumper.add_implicit_resolver(*_FLOAT)
Dumper.add_representer(
    list, lambda dumper, items: dumper.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=True)
)


UNREADABLE = (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError)
"""What reading a file of YAML may raise."""


def unreadable(name: str, error: Exception) -> str:
    """One line about a file that raised one of `UNREADABLE`."""
    match error:
        case FileNotFoundError():
            return f"{name}: no such file; write the path of a YAML file"
        case OSError():
            return f"{name}: cannot be read ({error.strerror}); write the path of a YAML file"
        case yaml.MarkedYAMLError(problem_mark=yaml.Mark() as mark):
            return f"{name}:{mark.line + 1}: not valid YAML: {error.problem}"
        case RecursionError():
            return f"{name}: not valid YAML: brackets in brackets without end"
        case _:
            return f"{name}: not a YAML text file: {str(error).splitlines()[0]}"
