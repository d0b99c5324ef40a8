"""Copy detection on the strongly altered images of Copydays: cosine similarity of frozen features.

    python -m eval.copydays --weights RUN_OR_FILE --data COPYDAYS [--distractors SOURCE] [--whitening SOURCE]

COPYDAYS holds original/ and strong/, perhaps jpegqual/ and crops/ (INRIA; Douze et al. 2009). Images are squeezed into
squares of 320 pixels; features are the class token beside the generalised mean (p = 4) of the patches; each query looks
at the 20 nearest of originals and distractors.
To reach, mAP on strong with 10,000 distractors of YFCC100M and whitening on 20,000 others of it (DINO,
arXiv:2104.14294, table 4): ViT-B/16 at 224 pixels 81.7, ViT-B/8 at 320 pixels 85.5. Without distractors the number is
higher, and another one. Not measured with this code: the sets were not at hand.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dino_ssl.cli import answer
from dino_ssl.commands import options
from dino_ssl.commands.parsing import Parser
from dino_ssl.commands.progress import progress

if TYPE_CHECKING:
    from dino_ssl.commands.compute import Compute
    from dino_ssl.data.sources import Source
    from dino_ssl.evaluation.results import Evaluation
    from dino_ssl.models.encoder import Encoder


def main(arguments: Sequence[str]) -> None:
    """Measure, print, write."""
    parser = Parser(program="python", command="-m eval.copydays", description=str(__doc__).splitlines()[0])
    options.add_network(parser)
    parser.set_defaults(size=None, center_crop=None, cache=None, no_cache=True)  # another transform than theirs
    parser.add_argument("--data", type=Path, required=True, metavar="COPYDAYS", help="folder of original/ and strong/")
    parser.add_argument("--distractors", metavar="SOURCE", help="images that hide the originals")
    parser.add_argument("--whitening", metavar="SOURCE", help="images to whose statistics features are brought")
    options.add_data_root(parser)
    options.add_device(parser)
    options.add_output(parser)
    words = parser.read(arguments)
    if words is None:
        return
    options.only_one_process()
    from dino_ssl.commands.compute import Compute  # noqa: PLC0415
    from dino_ssl.data.sources import open_source  # noqa: PLC0415

    specs = {"distractors": words.distractors, "whitening": words.whitening}
    others = {role: open_source(spec, words.data_root) for role, spec in specs.items() if spec}
    compute = Compute.of(words)
    options.say(evaluate(options.encoder_of(words), words.data, compute, **others), words.output)


def evaluate(
    encoder: "Encoder",
    data: Path,
    compute: "Compute",
    *,
    distractors: "Source | None" = None,
    whitening: "Source | None" = None,
) -> "list[Evaluation]":
    """The published protocol, as far as the images for it are given.

    Raises:
        UsageError: the data are laid out otherwise, or there are too few images for whitening.
    """
    from dino_ssl.data.copydays import open_copydays  # noqa: PLC0415
    from dino_ssl.evaluation import copy_detection  # noqa: PLC0415
    from dino_ssl.evaluation.whole_images import WholeImages  # noqa: PLC0415

    extraction = WholeImages(encoder, compute.device, compute.precision, compute.batch_size, compute.num_workers)
    with progress(None, "images") as advance:
        found = copy_detection.evaluate(
            extraction, open_copydays(data), distractors=distractors, whitening=whitening, advance=advance
        )
    return [found]


if __name__ == "__main__":
    sys.exit(answer(lambda: main(sys.argv[1:]), "python -m eval.copydays"))
