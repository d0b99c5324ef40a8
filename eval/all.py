"""Everything that can be said of a checkpoint, in one command, one JSON file, one table and one page.

    python -m eval.all RUN_OR_FILE --data SOURCE [--test SOURCE] [--davis DAVIS] [--revisited ROOT] [--copydays ROOT]

k-NN and a grid of linear probes, logistic regression where the training set is small, attention on a few test images,
and the protocols of other data sets where these are given. With CIFAR-10 and a small ResNet: a minute on two cores.
"""

import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dino_ssl.cli import answer
from dino_ssl.commands import options
from dino_ssl.commands.output_folder import output_folder
from dino_ssl.commands.parsing import Parser
from eval import copydays, davis, revisited_retrieval
from eval.classification import classification

if TYPE_CHECKING:
    from dino_ssl.commands.compute import Compute
    from dino_ssl.evaluation.results import Evaluation
    from dino_ssl.models.encoder import Encoder

OTHERS = {"davis": davis, "revisited": revisited_retrieval, "copydays": copydays}


def main(arguments: Sequence[str]) -> None:
    """Measure, draw, print, write."""
    words = _parser().read(arguments)
    if words is None:
        return
    from dino_ssl.commands.compute import Compute  # noqa: PLC0415
    from dino_ssl.training.ranks import placement  # noqa: PLC0415
    from eval.report import folder_of, write_report  # noqa: PLC0415

    train, test = options.labelled_sources(words)
    output_folder(folder_of(words), [Path(source.name) for source in (train, test or train)])
    compute = Compute.of(words)
    with compute.ranks():
        encoder = options.encoder_of(words)
        found = classification(encoder, train, test, compute)
    is_main = placement().rank == 0
    found += [e for name in OTHERS if is_main and getattr(words, name) for e in _other(name, encoder, words, compute)]
    options.say(found, None)
    if is_main:
        write_report(words, found, encoder, (train, test or train), compute)


def _other(name: str, encoder: "Encoder", words: Namespace, compute: "Compute") -> list["Evaluation"]:
    return OTHERS[name].evaluate(encoder, getattr(words, name), compute)  # type: ignore[no-any-return]


def _parser() -> Parser:
    parser = Parser(program="python", command="-m eval.all", description=str(__doc__).splitlines()[0])
    options.add_weights(parser, positional=True)
    add = parser.add_argument
    add("--data", dest="train", required=True, metavar="SOURCE", help="labelled images to learn from")
    add("--test", metavar="SOURCE", help="images to classify (the test split that belongs to --data)")
    options.add_data_root(parser)
    for name in OTHERS:
        add(
            f"--{name}",
            type=Path,
            metavar="ROOT",
            help=f"also the protocol of python -m eval.{OTHERS[name].__name__[5:]}",
        )
    where = "of results.json, results.md and report.html (RUN/eval/report, or report-NAME)"
    add("--output-dir", type=Path, metavar="DIR", help=where)
    options.add_device(parser)
    options.add_cache(parser)
    return parser


if __name__ == "__main__":
    sys.exit(answer(lambda: main(sys.argv[1:]), "python -m eval.all"))
