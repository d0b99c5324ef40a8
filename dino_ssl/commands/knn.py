"""`dino-ssl knn`: weighted k-NN accuracy of a checkpoint, as DINO reports it."""

import math
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dino_ssl.commands import options
from dino_ssl.commands.parsing import Parser, real, whole
from dino_ssl.errors import UsageError

if TYPE_CHECKING:  # torch takes seconds, for which help and mistakes should not wait
    from dino_ssl.commands.compute import Compute
    from dino_ssl.data.sources import Source
    from dino_ssl.evaluation.knn_protocol import Neighbours
    from dino_ssl.evaluation.results import Evaluation
    from dino_ssl.models.encoder import Encoder

NUM_COMPARED = 256
"""Images whose bytes are compared before two sources of one fingerprint count as the same."""
TRIES = 5
SUMMARY = (
    "Classify images by their nearest neighbours among labelled ones, in the features of a frozen network: cosine "
    "similarity s, votes exp(s / temperature). Without --test, the data set's own test split is classified; where it "
    "has none, each image by all the others. Starts under torchrun and srun, too."
)


def run(arguments: Sequence[str]) -> None:
    """`dino-ssl knn`.

    Raises:
        UsageError: a mistake in the arguments, the weights or the data.
        RunError: no image can be read, or a file cannot be written.
        DivergedError: a feature is not finite.
    """
    words = _parser().read(arguments)
    if words is None:
        return
    if words.tries and not words.few_shot:
        raise UsageError("--tries is of few-shot banks; write --few-shot N, too, or leave it out")
    from dino_ssl.commands.compute import Compute  # noqa: PLC0415
    from dino_ssl.evaluation.knn_protocol import Neighbours  # noqa: PLC0415
    from dino_ssl.training.ranks import placement  # noqa: PLC0415

    if words.leave_one_out and words.test:
        raise UsageError("leave_one_out classifies the images of --train; leave out --test or --leave-one-out")
    train, test = options.labelled_sources(words)
    test = None if words.leave_one_out else _other(train, test)
    compute = Compute.of(words)
    settings = Neighbours(tuple(words.k) if words.k else None, words.temperature, compute.device)
    settings.among(len(train) - (test is None))  # before the weights are read
    with compute.ranks():
        encoder = options.encoder_of(words)
        if words.precise_bn:
            encoder = compute.with_precise_batch_norm(encoder, train, words.precise_bn)
        found = evaluate(encoder, train, test, settings, compute, few_shot=words.few_shot, tries=words.tries or TRIES)
    if placement().rank == 0 and "note" in found.details:
        print(f"\n{found.details['note']}")
    options.say([found], words.output)


def _parser() -> Parser:
    parser = Parser(command="knn", description=SUMMARY)
    options.add_weights(parser)
    options.add_labelled(parser)
    add = parser.add_argument
    add("--k", type=whole(1), nargs="+", metavar="K", help="neighbours, several in one pass (10 20 100 200)")
    add("--temperature", type=real(0, open_below=True), default=0.07, metavar="T", help="of the votes (%(default)s)")
    alone = "classify each image of --train by all the others, also where there is a test split"
    add("--leave-one-out", action="store_true", help=alone)
    precise = "first estimate batch norm statistics from N images of --train, where the network has batch norm"
    add("--precise-bn", type=whole(2), metavar="N", help=precise)
    shots = "also with banks of N images of each class, drawn at random"
    add("--few-shot", type=whole(1), nargs="+", default=[], metavar="N", help=shots)
    add("--tries", type=whole(1), metavar="N", help=f"of each few-shot bank ({TRIES})")
    options.add_compute(parser)
    return parser


def evaluate(
    encoder: "Encoder",
    train: "Source",
    test: "Source | None",
    settings: "Neighbours",
    compute: "Compute",
    *,
    few_shot: Sequence[int] = (),
    tries: int = TRIES,
) -> "Evaluation":
    """Measure an encoder; every rank gets the answer.

    Args:
        test: None classifies each training image by all others.
        few_shot: sizes of further banks, images of each class.
    Raises:
        UsageError: a class has fewer images, or a few-shot bank would hold the images that it classifies.
    """
    import torch  # noqa: PLC0415

    from dino_ssl.data.sources import labels_in  # noqa: PLC0415
    from dino_ssl.evaluation import knn_protocol  # noqa: PLC0415
    from dino_ssl.evaluation.protocols import KNN  # noqa: PLC0415
    from dino_ssl.evaluation.results import Evaluation, about, about_data  # noqa: PLC0415

    begin = time.perf_counter()
    test = _other(train, test)
    settings.among(len(train) - (test is None))
    if few_shot and test is None:
        raise UsageError("few_shot needs images to classify that are not in the bank; write --test SOURCE")
    knn_protocol.check_shots(torch.from_numpy(labels_in(train, train.classes)), train.classes, few_shot)
    bank = compute.labelled(encoder, train, train.classes)
    knn_protocol.check_shots(bank.labels, train.classes, few_shot)  # of the images that can be read
    queries = bank if test is None else compute.labelled(encoder, test, train.classes)
    share = compute.share()
    measurements = [
        *knn_protocol.whole_bank(bank, queries, settings, share),
        *knn_protocol.few_shot(bank, queries, settings, share, shots=few_shot, tries=tries),
    ]
    data = {"bank": about_data(train, len(bank.labels)), "queries": about_data(test or train, len(queries.labels))}
    seconds = time.perf_counter() - begin
    # JSON has no infinity, at which every neighbour has one vote.
    temperature = settings.temperature if math.isfinite(settings.temperature) else "inf"
    note = _remarks(settings, len(bank.labels), is_left_out=test is None)
    return Evaluation(
        KNN, about(encoder), data, measurements, seconds, {"temperature": temperature}, {"note": note} if note else {}
    )


def _other(train: "Source", test: "Source | None") -> "Source | None":
    """The images to classify; None where they are the bank itself, in which each would find itself."""
    from dino_ssl.data.sources import content  # noqa: PLC0415

    if test is None or test.fingerprint() != train.fingerprint():
        return test
    return test if content(test, NUM_COMPARED) != content(train, NUM_COMPARED) else None


def _remarks(settings: "Neighbours", num_bank: int, *, is_left_out: bool) -> str:
    """What a person should know who did not ask for it."""
    remarks = ["each image was classified by all the others"] if is_left_out else []
    return "; ".join(filter(None, [*remarks, settings.note(num_bank - is_left_out)]))
