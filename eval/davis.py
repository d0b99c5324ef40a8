"""DAVIS 2017, video object segmentation without training: the masks of the first frame carried by patch similarity.

    python -m eval.davis --weights RUN_OR_FILE --data DAVIS [--output FILE.json]

DAVIS holds Annotations/480p, JPEGImages/480p and ImageSets/2017 (davischallenge.org, "TrainVal - Images and
Annotations (480p)"; 30 sequences and 61 objects in val). Short side 480, patch features of the last block after the
final norm, context of the first frame and the 7 before, radius 12 patches, top 5, temperature 0.1.

To reach, J&F of the mean over objects (DINO, arXiv:2104.14294, table 5): ViT-S/16 61.8, ViT-B/16 62.3, ViT-S/8 69.9,
ViT-B/8 71.4; a supervised ViT-S/8 66.0. Not measured with this code: DAVIS itself was not at hand.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dino_ssl.cli import answer
from dino_ssl.commands import options
from dino_ssl.commands.parsing import Parser

if TYPE_CHECKING:
    from dino_ssl.commands.compute import Compute
    from dino_ssl.evaluation.results import Evaluation
    from dino_ssl.models.encoder import Encoder


def main(arguments: Sequence[str]) -> None:
    """Measure, print, write."""
    parser = Parser(program="python", command="-m eval.davis", description=str(__doc__).splitlines()[0])
    options.add_network(parser)
    parser.set_defaults(size=None, center_crop=None)
    parser.add_argument("--data", type=Path, required=True, metavar="DAVIS", help="root of DAVIS 2017")
    options.add_place(parser)
    options.add_precision(parser)
    options.add_output(parser)
    words = parser.read(arguments)
    if words is None:
        return
    options.only_one_process()
    from dino_ssl.commands.compute import PRECISIONS, Compute  # noqa: PLC0415

    compute = Compute(options.device_of(words), PRECISIONS[words.precision])
    options.say(evaluate(options.encoder_of(words), words.data, compute), words.output)


def evaluate(encoder: "Encoder", data: Path, compute: "Compute") -> "list[Evaluation]":
    """The published protocol on the split val.

    Raises:
        UsageError: the data are laid out otherwise.
    """
    from dino_ssl.commands import video  # noqa: PLC0415
    from dino_ssl.data.davis import open_davis  # noqa: PLC0415
    from dino_ssl.evaluation.video import Propagation  # noqa: PLC0415

    return [video.evaluate(encoder, open_davis(data), Propagation(), compute)]


if __name__ == "__main__":
    sys.exit(answer(lambda: main(sys.argv[1:]), "python -m eval.davis"))
