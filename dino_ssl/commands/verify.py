"""`dino-ssl verify`: face verification with a checkpoint's features, by InsightFace's and by A-SKD's protocol."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dino_ssl.commands import options
from dino_ssl.commands.parsing import Parser, real, whole
from dino_ssl.errors import UsageError

if TYPE_CHECKING:  # torch takes seconds, for which help and mistakes should not wait
    from dino_ssl.commands.compute import Compute
    from dino_ssl.data.face_pairs import FacePairs
    from dino_ssl.evaluation.face_protocols import Views
    from dino_ssl.evaluation.results import Evaluation
    from dino_ssl.models.encoder import Encoder

SUMMARY = (
    "Tell whether two aligned faces belong to one person, in the features of a frozen network: ten folds by the "
    "protocol of InsightFace and by that of A-SKD, which are not comparable, and true accepts at false accept rates. "
    "Faces are seen whole. With --lower, also as a camera far away would have seen them."
)
USUAL_PAIRS = 6000
MODES = ("bicubic", "askd_release")


def run(arguments: Sequence[str]) -> None:
    """`dino-ssl verify`.

    Raises:
        UsageError: a mistake in the arguments, the weights or the pairs.
        RunError: no image can be read, or a file cannot be written.
        DivergedError: a feature is not finite.
    """
    words = _parser().read(arguments)
    if words is None:
        return
    if (words.teacher is None) != (words.sheet is None):
        raise UsageError("--teacher and --sheet go together; write both or none")
    from dino_ssl.commands.compute import Compute  # noqa: PLC0415
    from dino_ssl.data.face_pairs import open_pairs  # noqa: PLC0415
    from dino_ssl.evaluation.face_protocols import Views  # noqa: PLC0415
    from dino_ssl.training.ranks import placement  # noqa: PLC0415

    pairs = open_pairs(
        words.pairs, words.data_root, folder=words.images, num_pairs=words.num_pairs, seed=words.seed
    )  # before the weights are read
    compute = Compute.of(words)
    views = Views(tuple(dict.fromkeys([1, *words.lower])), words.degradation)
    with compute.ranks():
        encoder = options.encoder_of(words)
        found = evaluate(encoder, pairs, views, compute, fars=words.far)
    if placement().rank == 0:
        print(f"\n{found[0].details['note']}")
    options.say(found, words.output)
    if words.sheet is not None and placement().rank == 0:
        _draw(words, encoder, pairs, views)


def _draw(words: argparse.Namespace, encoder: "Encoder", pairs: "FacePairs", views: "Views") -> None:
    from dino_ssl.commands.verify_sheet import draw  # noqa: PLC0415
    from dino_ssl.durable import naming  # noqa: PLC0415
    from dino_ssl.models.weights import load_encoder  # noqa: PLC0415

    teacher = load_encoder(
        words.teacher, key=words.key, arch=words.arch, patch_size=words.patch_size, size=words.size, center_crop=1.0
    )
    with naming(words.sheet):
        words.sheet.parent.mkdir(parents=True, exist_ok=True)
        draw(words.sheet, teacher, encoder, pairs.images, views)
    print(f"\nwritten to {words.sheet}")


def add_faces(parser: Parser) -> None:
    """Which network sees faces, how large, and at which resolutions: also for programs."""
    options.add_network(parser)
    parser.set_defaults(center_crop=1.0)  # aligned faces are cut out already
    add = parser.add_argument
    add("--size", type=whole(1), metavar="PIXELS", help="side of the images (what the network was made for)")
    lower = "also with so many times fewer pixels a side (2 4 8)"
    add("--lower", type=whole(1), nargs="+", default=[], metavar="N", help=lower)
    how = "how pixels are lost: antialiased, or as the released code of A-SKD (%(default)s)"
    add("--degradation", choices=MODES, default=MODES[0], help=how)
    rates = "false accept rates (0.1 0.01 0.001 0.0001, as far as there are pairs for them)"
    add("--far", type=real(0, 1), nargs="+", default=[0.1, 0.01, 0.001, 0.0001], metavar="RATE", help=rates)


def _parser() -> Parser:
    parser = Parser(command="verify", description=SUMMARY)
    add_faces(parser)
    add = parser.add_argument
    what = "lfw.bin, LFW's pairs.txt, a list of `path path 1`, or labelled images, from which pairs are drawn"
    add("--pairs", required=True, metavar="PAIRS", help=what)
    add("--images", type=Path, metavar="DIR", help="folder of the images that a list names (the list's own)")
    add("--num-pairs", type=whole(20), default=USUAL_PAIRS, metavar="N", help="that are drawn (%(default)s)")
    add("--seed", type=whole(0, 2**63), default=0, metavar="S", help="by which they are drawn (%(default)s)")
    teacher = "a network that sees the whole faces, for --sheet"
    add("--teacher", type=Path, metavar="RUN_OR_FILE", help=teacher)
    sheet = "draw where --teacher and --weights look in two faces, at every resolution"
    add("--sheet", type=Path, metavar="FILE.png", help=sheet)
    options.add_data_root(parser)
    options.add_compute(parser)
    return parser


def evaluate(
    encoder: "Encoder", pairs: "FacePairs", views: "Views", compute: "Compute", *, fars: Sequence[float]
) -> "list[Evaluation]":
    """Measure an encoder by both protocols; every rank gets the answer.

    Raises:
        UsageError: too few pairs, or images that cannot be made so much smaller.
    """
    from dino_ssl.evaluation.face_protocols import verify  # noqa: PLC0415

    return verify(lambda source, readout: compute.features(encoder, source, readout), encoder, pairs, views, fars)
