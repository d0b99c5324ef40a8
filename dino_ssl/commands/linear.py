"""`dino-ssl linear`: accuracy of linear classifiers on the features of a frozen checkpoint, trained in three ways."""

import re
import time
from argparse import ArgumentTypeError, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dino_ssl.commands import options
from dino_ssl.commands.parsing import Parser, real, whole
from dino_ssl.errors import UsageError

if TYPE_CHECKING:  # torch takes seconds, for which help and mistakes should not wait
    from dino_ssl.commands.compute import Compute
    from dino_ssl.commands.linear_methods import Settings
    from dino_ssl.data.sources import Source
    from dino_ssl.evaluation.results import Evaluation
    from dino_ssl.models.encoder import Encoder

SUMMARY = (
    "Train linear classifiers on the features of a frozen network, and count what they get right on test images. "
    "Method grid: every learning rate on every choice of features, in one pass over features of centre crops; the best "
    "on a held-out part of the training images is trained again on all of them. Method original: as in the DINO paper, "
    "with random crops and flips; with --output it goes on where it was interrupted. Method logistic: scikit-learn's "
    "logistic regression, for small sets. Starts under torchrun and srun, too."
)
# Options that some methods have no use for, and options that take a single value with some.
ONLY = {
    "train_batch": ("grid", "original"),
    "lr": ("grid", "original"),
    "epochs": ("grid", "original"),
    "val_share": ("grid", "logistic"),
    "linear_weights": ("original",),
}
SINGLE = {"lr": ("original",), "blocks": ("original", "logistic")}


def run(arguments: Sequence[str]) -> None:
    """`dino-ssl linear`.

    Raises:
        UsageError: a mistake in the arguments, the weights or the data.
        RunError: no image can be read, or a file cannot be written.
        DivergedError: a feature is not finite, or every classifier diverged.
    """
    words = _parser().read(arguments)
    if words is None:
        return
    _check(words)
    from dino_ssl.commands.compute import Compute  # noqa: PLC0415
    from dino_ssl.training.ranks import placement  # noqa: PLC0415

    train, test = options.labelled_sources(words)
    compute = Compute.of(words)
    with compute.ranks():
        found = evaluate(options.encoder_of(words), train, test, _settings(words), compute)
    if placement().rank == 0:
        _explain(found)
    options.say([found], words.output)


def _explain(found: "Evaluation") -> None:
    """What the table has no room for."""
    from dino_ssl.evaluation.linear_protocol import weakest  # noqa: PLC0415

    per_class = found.details["per_class"]
    assert isinstance(per_class, dict)
    print(f"\n{found.details['note']}\nlowest accuracies: {weakest(per_class)}")


def _parser() -> Parser:
    parser = Parser(command="linear", description=SUMMARY)
    options.add_weights(parser)
    options.add_labelled(parser)
    add = parser.add_argument
    add("--method", choices=("grid", "original", "logistic"), default="grid", help="see above (%(default)s)")
    add("--epochs", type=whole(1), metavar="N", help="over the training images (100)")
    rates = "learning rates for a batch of 256 (13 from 0.0001 to 0.5; original: 0.001)"
    add("--lr", type=real(0, open_below=True), nargs="+", metavar="LR", help=rates)
    blocks = (
        "pooled features of the last N blocks, N+patches with the mean patch features of the last one "
        "(grid: 4 1+patches, original: one of them by the size of the network; logistic, and networks of few blocks: 1)"
    )
    add("--blocks", type=_choice, nargs="+", metavar="N", help=blocks)
    add("--train-batch", type=whole(1), metavar="N", help="images a step (256; original: 128 on each rank)")
    share = "of the images of each class, to choose settings on (0.1)"
    add("--val-share", type=real(0, 0.9, open_below=True), metavar="SHARE", help=share)
    add("--seed", type=whole(0, 2**63 - 1), default=0, metavar="S", help="of order, weights and crops (%(default)s)")
    weights = "of the original or ours: measure this classifier (method original) and train none"
    add("--linear-weights", type=Path, metavar="FILE", help=weights)
    options.add_device(parser)
    options.add_cache(parser)
    options.add_output(parser)
    return parser


def _choice(text: str) -> tuple[int, bool]:
    found = re.fullmatch(r"([1-9]\d{0,3})(\+patches)?", text, re.ASCII)
    if not found:
        raise ArgumentTypeError(f"'{text}' must be a number of blocks, perhaps with +patches, such as 4 or 1+patches")
    return int(found[1]), found[2] is not None


def _check(words: Namespace) -> None:
    """Whether the arguments go together.

    Raises:
        UsageError: they do not.
    """
    method, given = words.method, {name: value for name, value in vars(words).items() if value is not None}
    problems = [
        f"--{name.replace('_', '-')} is of no use with --method {method}; leave it out"
        for name, methods in ONLY.items()
        if name in given and method not in methods
    ]
    problems += [
        f"--{name} takes one value with --method {method}, not {len(given[name])}; write one of them"
        for name, methods in SINGLE.items()
        if method in methods and len(given.get(name, ())) > 1
    ]
    if words.linear_weights is not None:
        trained = [name for name in ("lr", "epochs", "train_batch") if name in given]
        problems += [f"--{name.replace('_', '-')} is of no use with --linear-weights; leave it out" for name in trained]
    if problems:
        raise UsageError(*problems)


def _settings(words: Namespace) -> "Settings":
    """The arguments; what is not given is left to `Settings`."""
    from dino_ssl.commands.linear_methods import Settings  # noqa: PLC0415
    from dino_ssl.evaluation.linear_features import Choice  # noqa: PLC0415

    given = {name: getattr(words, name) for name in ("epochs", "train_batch", "val_share", "linear_weights")}
    output: Path | None = words.output
    return Settings(
        method=words.method,
        learning_rates=tuple(words.lr or ()),
        choices=tuple(Choice(*choice) for choice in dict.fromkeys(words.blocks or ())),
        seed=words.seed,
        folder=None if output is None else output.with_name(f"{output.stem}_linear"),
        **{name: value for name, value in given.items() if value is not None},
    )


def evaluate(
    encoder: "Encoder", train: "Source", test: "Source | None", settings: "Settings", compute: "Compute"
) -> "Evaluation":
    """Measure an encoder; every rank gets the answer.

    Raises:
        UsageError: no test images but those to learn from, or the network has fewer blocks than are asked for.
    """
    from dino_ssl.commands import linear_methods  # noqa: PLC0415
    from dino_ssl.evaluation.results import Evaluation, about, about_data  # noqa: PLC0415

    begin = time.perf_counter()
    if test is None:
        raise UsageError(f"data source '{train.name}' has no test split that belongs to it; write --test SOURCE")
    if test.name == train.name and test.fingerprint() == train.fingerprint():
        raise UsageError(f"test={test.name} holds the images that are learned from; write --test with another SOURCE")
    answer = linear_methods.METHODS[settings.method](encoder, train, test, settings, compute)
    found, used = answer.found, {"train": (train, answer.num_train), "test": (test, answer.num_test)}
    data = {role: about_data(source, number) for role, (source, number) in used.items() if number}
    return Evaluation(
        answer.protocol, about(encoder), data, found.measurements, time.perf_counter() - begin,
        settings=found.settings, details=found.details,
    )  # fmt: skip
