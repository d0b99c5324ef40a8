"""Everything that can be said of a checkpoint, in one command, one JSON file, one table and one page.

    python -m eval.all RUN_OR_FILE --train SOURCE [--test SOURCE] [--output-dir DIR]

k-NN and a grid of linear probes, logistic regression where the training set is small, and attention on a few test
images. About two minutes for CIFAR-10 and a small ResNet on two cores.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dino_ssl.cli import answer
from dino_ssl.commands import options
from dino_ssl.commands.parsing import Parser
from dino_ssl.durable import naming
from eval.classification import knn, linear

if TYPE_CHECKING:
    from dino_ssl.commands.compute import Compute
    from dino_ssl.data.sources import Source
    from dino_ssl.evaluation.report_page import Picture
    from dino_ssl.evaluation.results import Evaluation
    from dino_ssl.models.encoder import Encoder

FEW_IMAGES = 5_000
"""Training images up to which scikit-learn's logistic regression takes seconds."""


def main(arguments: Sequence[str]) -> None:
    """Measure, draw, print, write."""
    words = _parser().read(arguments)
    if words is None:
        return
    from dino_ssl.commands.compute import Compute  # noqa: PLC0415
    from dino_ssl.training.ranks import placement  # noqa: PLC0415
    from eval.pictures import attention  # noqa: PLC0415

    train, test = options.labelled_sources(words)
    compute = Compute.of(words)
    with compute.ranks():
        encoder = options.encoder_of(words)
        found = evaluate(encoder, train, test, compute)
    options.say(found, None)
    if placement().rank == 0:
        folder = words.output_dir or _beside(words.weights)
        with naming(folder):
            folder.mkdir(parents=True, exist_ok=True)
            pictures = [attention(encoder, test or train, folder, compute.device), *_curve(words.weights)]
            _write(folder, f"{encoder.name}: {train.name}", found, pictures)


def _parser() -> Parser:
    parser = Parser(program="python", command="-m eval.all", description=str(__doc__).splitlines()[0])
    options.add_weights(parser, positional=True)
    options.add_labelled(parser)
    where = "of results.json, results.md and report.html (RUN/eval/report, or report-NAME)"
    parser.add_argument("--output-dir", type=Path, metavar="DIR", help=where)
    options.add_device(parser)
    options.add_cache(parser)
    return parser


def evaluate(encoder: "Encoder", train: "Source", test: "Source | None", compute: "Compute") -> list["Evaluation"]:
    """Every protocol that the data allows."""
    found = [knn(encoder, train, test, compute)]
    if test is not None:
        methods = ("grid", "logistic") if len(train) <= FEW_IMAGES else ("grid",)
        found += [linear(encoder, train, test, compute, method=method) for method in methods]
    return found


def _beside(weights: Path) -> Path:
    return weights / "eval" / "report" if weights.is_dir() else Path(f"report-{weights.stem}")


def _curve(weights: Path) -> list["Picture"]:
    from dino_ssl.evaluation.report_page import Picture  # noqa: PLC0415

    path = weights / "curve.png"
    return [Picture(path, "The run: loss, schedules, accuracy while it trained.")] if path.is_file() else []


def _write(folder: Path, title: str, found: list["Evaluation"], pictures: list["Picture"]) -> None:
    from dino_ssl.evaluation.report_page import markdown, write_page  # noqa: PLC0415
    from dino_ssl.evaluation.results import write  # noqa: PLC0415

    write(folder / "results.json", found)
    (folder / "results.md").write_text(markdown(found), encoding="utf-8")
    write_page(folder / "report.html", title, found, pictures)
    print(f"\nwritten to {folder}: results.json, results.md, report.html")


if __name__ == "__main__":
    sys.exit(answer(lambda: main(sys.argv[1:]), "python -m eval.all"))
