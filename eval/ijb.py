"""1:1 verification on IJB-B or IJB-C: templates of several images, true accepts at false accept rates down to 1e-6.

    python -m eval.ijb --weights RUN_OR_FILE --data IJBC [--output FILE.json]

IJBC holds loose_crop/ and meta/ as InsightFace offers them; faces are aligned here, by the points in meta/. Features of
an image and its mirror image are added, weighted by the detector's score, averaged over a video and added up.
To reach on IJB-C, percent at 1e-4 and 1e-5 (InsightFace's README): ResNet-50 with ArcFace on MS1MV3 96.37 and 94.47,
ResNet-100 96.85 and 95.02; on Glint360K 97.16 and 95.81, 97.55 and 96.38. Not measured with this code: the sets were
not at hand.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from dino_ssl.cli import answer
from dino_ssl.commands import options
from dino_ssl.commands.parsing import Parser, whole


def main(arguments: Sequence[str]) -> None:
    """Measure, print, write."""
    parser = Parser(program="python", command="-m eval.ijb", description=str(__doc__).splitlines()[0])
    options.add_network(parser)
    parser.set_defaults(center_crop=1.0)  # aligned faces are cut out already
    help_text = "side of the images (what the network was made for)"
    parser.add_argument("--size", type=whole(1), metavar="PIXELS", help=help_text)
    parser.add_argument("--data", type=Path, required=True, metavar="IJBC", help="folder of loose_crop/ and meta/")
    options.add_compute(parser)
    words = parser.read(arguments)
    if words is None:
        return
    from dino_ssl.commands.compute import Compute  # noqa: PLC0415
    from dino_ssl.data.ijb import open_ijb  # noqa: PLC0415
    from dino_ssl.evaluation.ijb_protocol import evaluate  # noqa: PLC0415

    data = open_ijb(words.data)
    compute = Compute.of(words)
    with compute.ranks():
        encoder = options.encoder_of(words)
        found = evaluate(lambda *asked: compute.features(encoder, *asked), encoder, data)
    options.say([found], words.output)


if __name__ == "__main__":
    sys.exit(answer(lambda: main(sys.argv[1:]), "python -m eval.ijb"))
