"""Face verification at full and at lower resolutions on published sets, as A-SKD's table has it, and TinyFace.

    python -m eval.faces --weights RUN_OR_FILE --pairs agedb_30.bin lfw.bin ... [--tinyface DIR]

Pairs are InsightFace's .bin files, lists, or labelled images; faces are aligned to 112 pixels. Both protocols are
measured and kept apart: compare A-SKD's published numbers with `askd/accuracy`, all others with `insightface/accuracy`.

To reach, accuracy in percent: ResNet-50 with ArcFace on CASIA, LFW 99.53, CFP-FP 95.56, AgeDB-30 95.15 (Deng et al.,
ArcFace, extended). ResNet-50 with CBAM on CASIA, AgeDB-30 by A-SKD's protocol, each student at its own resolution: 2x
93.35, 4x 88.58, 8x 79.00; TinyFace rank 1 47.91 (Shin et al. 2022, as others quote it). Not measured with this code:
the sets were not at hand.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from dino_ssl.cli import answer
from dino_ssl.commands import options, verify
from dino_ssl.commands.parsing import Parser
from dino_ssl.errors import UsageError


def main(arguments: Sequence[str]) -> None:
    """Measure, print, write."""
    parser = Parser(program="python", command="-m eval.faces", description=str(__doc__).splitlines()[0])
    verify.add_faces(parser)
    parser.set_defaults(lower=[2, 4, 8])
    parser.add_argument("--pairs", nargs="+", default=[], metavar="PAIRS", help="as of dino-ssl verify, several")
    parser.add_argument("--tinyface", type=Path, metavar="DIR", help="with Probe/, Gallery_Match/, Gallery_Distractor/")
    options.add_data_root(parser)
    options.add_compute(parser)
    words = parser.read(arguments)
    if words is None:
        return
    if not words.pairs and not words.tinyface:
        raise UsageError("there is nothing to measure; write --pairs, --tinyface, or both")
    from dino_ssl.commands.compute import Compute  # noqa: PLC0415
    from dino_ssl.data.face_pairs import open_pairs  # noqa: PLC0415
    from dino_ssl.data.tinyface import open_tinyface  # noqa: PLC0415
    from dino_ssl.evaluation.face_protocols import Views, identify, resolution_table  # noqa: PLC0415
    from dino_ssl.training.ranks import placement  # noqa: PLC0415

    sets = [open_pairs(spec, words.data_root) for spec in words.pairs]
    tinyface = open_tinyface(words.tinyface) if words.tinyface else None
    compute = Compute.of(words)
    views = Views(tuple(dict.fromkeys([1, *words.lower])), words.degradation)
    with compute.ranks():
        encoder = options.encoder_of(words)
        found = [one for pairs in sets for one in verify.evaluate(encoder, pairs, views, compute, fars=words.far)]
        if tinyface is not None:
            found.append(identify(lambda *asked: compute.features(encoder, *asked), encoder, tinyface, compute.device))
    options.say(found, words.output)
    if sets and placement().rank == 0:
        print(f"\n{resolution_table(found)}")


if __name__ == "__main__":
    sys.exit(answer(lambda: main(sys.argv[1:]), "python -m eval.faces"))
