"""`dino-ssl inspect`: what a file of weights is, how far its training went, where it comes from; a backbone's cost."""

import hashlib
import json
import shlex
import textwrap
from collections.abc import Iterator, Sequence
from numbers import Integral
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from dino_ssl.commands.backbone_cost import add_cost, show_cost
from dino_ssl.commands.options import add_weights, loaded_of
from dino_ssl.commands.parsing import Parser
from dino_ssl.errors import UsageError
from dino_ssl.training.code_state import in_words

if TYPE_CHECKING:
    from torch import nn

    from dino_ssl.models.weights import Loaded

SUMMARY = (
    "What a run or a file of weights is: architecture, what matched, training state, provenance. With --backbone or "
    "--recipe, what a network costs before it is trained: parameters, multiplications, activations, crop by crop."
)
MOST_LETTERS = 800
"""Of the flags of a training of the original."""
Row = tuple[str, str]


def run(arguments: Sequence[str]) -> None:
    """`dino-ssl inspect`.

    Raises:
        UsageError: a mistake in the arguments, or a file that is refused.
    """
    parser = Parser(command="inspect", description=SUMMARY)
    add_weights(parser, positional=True, optional=True)
    add_cost(parser)
    words = parser.read(arguments)
    if words is None:
        return
    if show_cost(words):
        return
    loaded = loaded_of(words)
    try:
        rows = [*_file_rows(loaded), *_network_rows(loaded), *_training_rows(loaded), *_provenance_rows(loaded)]
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise UsageError(
            f"{loaded.file.path}, or a file of its run beside it, is not as dino-ssl writes it "
            f"({type(error).__name__}: {error})"
        ) from None
    width = max(len(name) for name, _ in rows)
    print("\n".join(f"{name:<{width}}  {_printable(text)}" for name, text in rows))


def _printable(text: str) -> str:
    """Without what a terminal would obey: the text comes from a file."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _file_rows(loaded: "Loaded") -> Iterator[Row]:
    path, content = loaded.file.path, loaded.file.content
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    yield "file", f"{path}, {path.stat().st_size / 1e6:,.1f} MB"
    yield "sha256", digest
    parts = [name for name, value in content.items() if isinstance(value, dict)]
    yield "holds", ", ".join(parts) if parts else f"{len(content)} tensors"


def _network_rows(loaded: "Loaded") -> Iterator[Row]:
    encoder, backbone = loaded.encoder, cast("nn.Module", loaded.encoder.backbone)
    parameters = sum(parameter.numel() for parameter in backbone.parameters())
    types = sorted({str(value.dtype).removeprefix("torch.") for value in loaded.tensors.values()})
    version = f" {loaded.file.content['version']}" if loaded.family == "dino-ssl" else ""
    yield "family", f"{loaded.family}{version}" + (f", the {loaded.key}" if loaded.key else "")
    yield "architecture", f"{encoder.name}, {parameters:,} parameters, stored as {', '.join(types)}"
    blocks = f"{encoder.backbone.num_blocks} blocks" if encoder.backbone.num_blocks > 1 else "the last feature map"
    yield "features", f"{encoder.backbone.embed_dim} of {blocks}, at places {_step(loaded)} px apart"
    numbers = "; ".join(f"{name} {_numbers(values)}" for name, values in (("mean", encoder.mean), ("std", encoder.std)))
    yield "images", f"{encoder.size} px, centre crop {encoder.center_crop:g}, {encoder.channels} channels; {numbers}"
    yield "weights", encoder.report
    yield "digest", encoder.digest


def _step(loaded: "Loaded") -> str:
    try:
        return str(loaded.encoder.backbone.patch_size)
    except UsageError:  # features that lie on no grid
        return "?"


def _numbers(values: Sequence[float]) -> str:
    return " ".join(f"{value:g}" for value in values)


SHOWN = (
    ("loss", "train/loss", "{:.4f}"),
    ("k-NN top-1", "eval/knn_top1", "{:.1%}"),
    ("top-1", "eval/top1", "{:.1%}"),
    ("verification", "eval/verification", "{:.1%}"),
    ("looks alike", "eval/look_similarity", "{:.3f}"),
)
"""Label, name in the journal, and form of the numbers that a run's checkpoint had."""


def _training_rows(loaded: "Loaded") -> Iterator[Row]:
    """Step and epoch as the file has them; loss and k-NN of the journal beside it, up to that step."""
    content = loaded.file.content
    state = [f"{name} {content[name]:,}" for name in ("step", "epoch") if isinstance(content.get(name), Integral)]
    if not state:
        yield "training", "weights only, the file keeps no state"
        return
    yield "training", ", ".join(state) + _planned_end(content)
    if (folder := _run_folder(loaded.file.path)) is not None:
        step = int(content.get("step", -1))
        for label, metric, form in SHOWN:
            if (line := _last_line(folder, metric, step)) is not None:
                yield label, f"{form.format(line[metric])} at step {line['step']:,}"


def _planned_end(content: dict[str, Any]) -> str:
    config = content.get("config")
    if not isinstance(config, dict):
        return ""
    return f" of {config['steps']:,} steps" if config["steps"] is not None else f" of {config['epochs']:,}"


def _run_folder(path: Path) -> Path | None:
    folder = path.parent.parent
    return folder if path.parent.name == "checkpoints" and (folder / "run.json").is_file() else None


def _last_line(folder: Path, metric: str, step: int) -> dict[str, Any] | None:
    """The newest line of the run's metrics that has a number for `metric`, not newer than `step`."""
    path = folder / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    for text in reversed(lines):
        # A longer name may hold this one: eval/knn_top1@20 is what a job found of an earlier checkpoint.
        if metric in text and (line := json.loads(text))["step"] <= step and line.get(metric) is not None:
            return cast(dict[str, Any], line)
    return None


def _provenance_rows(loaded: "Loaded") -> Iterator[Row]:
    content, folder = loaded.file.content, _run_folder(loaded.file.path)
    told = json.loads((folder / "run.json").read_text(encoding="utf-8")) if folder is not None else {}
    if loaded.family == "dino-ssl":
        data, name = content["data"], told["data"]["name"] if told else content["config"]["data"]
        yield "data", f"{name}, {data['num_images']:,} images, fingerprint {data['fingerprint']}"
    if isinstance(flags := content.get("args"), SimpleNamespace):
        listed = " ".join(f"--{name} {value}" for name, value in vars(flags).items())
        yield "flags", textwrap.shorten(listed, MOST_LETTERS, placeholder=" ...")
    if told:
        yield "command", shlex.join(["dino-ssl", *told["command"][1:]])
        device = f"{told['ranks']} x {told['device']}"
        yield "made with", f"torch {told['torch']}, Python {told['python']}, {device}, started {told['started']}"
    if "made_with" in content:
        yield "code", in_words(content["made_with"]["code"])
