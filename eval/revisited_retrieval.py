"""Landmark retrieval on revisited Oxford and Paris: frozen features, cosine similarity, mean average precision.

    python -m eval.revisited_retrieval --weights RUN_OR_FILE --data ROOT [--dataset NAME ...] [--output FILE.json]

ROOT holds roxford5k/ and rparis6k/, each with gnd_NAME.pkl and jpg/ (Radenovic et al., arXiv:1803.11285). Class token;
images seen whole, the long side reduced to 224 pixels for Oxford, to 512 and averaged over three scales for Paris; no
box is cut out of the queries.

To reach, mAP medium / hard (DINO, arXiv:2104.14294, table 3): ViT-S/16 trained on ImageNet, Oxford 41.8 / 13.7, Paris
63.1 / 34.4; on Google Landmarks v2, Oxford 51.5 / 24.3, Paris 75.3 / 51.6. ResNet-50 is given as 35.4 / 11.1 on Oxford;
others measured 30.8 / 10.3 of its released weights. Not measured with this code: the sets were not at hand.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dino_ssl.cli import answer
from dino_ssl.commands import options, retrieve
from dino_ssl.commands.parsing import Parser
from dino_ssl.data.revisited import NAMES

if TYPE_CHECKING:
    from dino_ssl.commands.compute import Compute
    from dino_ssl.evaluation.results import Evaluation
    from dino_ssl.models.encoder import Encoder

PROTOCOL = {"roxford5k": (224, False), "rparis6k": (512, True)}
"""Long side in pixels, and whether features are averaged over scales."""


def main(arguments: Sequence[str]) -> None:
    """Measure, print, write."""
    parser = Parser(program="python", command="-m eval.revisited_retrieval", description=str(__doc__).splitlines()[0])
    options.add_network(parser)
    # Each set has its own size; images are neither cropped nor kept as features, and go one by one.
    parser.set_defaults(size=None, center_crop=None, cache=None, no_cache=True, batch_size=1)
    parser.add_argument("--data", type=Path, required=True, metavar="ROOT", help="folder of the data sets")
    parser.add_argument("--dataset", nargs="+", choices=NAMES, default=NAMES, help="(both)")
    options.add_place(parser)
    options.add_precision(parser)
    options.add_workers(parser)
    options.add_output(parser)
    words = parser.read(arguments)
    if words is None:
        return
    options.only_one_process()
    from dino_ssl.commands.compute import Compute  # noqa: PLC0415

    compute = Compute.of(words)
    options.say(evaluate(options.encoder_of(words), words.data, compute, words.dataset), words.output)


def evaluate(encoder: "Encoder", data: Path, compute: "Compute", datasets: Sequence[str] = NAMES) -> "list[Evaluation]":
    """The published protocol on each data set.

    Raises:
        UsageError: the data are laid out otherwise.
    """
    from dino_ssl.data.revisited import open_revisited  # noqa: PLC0415
    from dino_ssl.evaluation.revisited_protocol import Landmarks  # noqa: PLC0415

    sets = [(open_revisited(data, name), Landmarks(*PROTOCOL[name])) for name in datasets]
    return [retrieve.evaluate(encoder, one, settings, compute) for one, settings in sets]


if __name__ == "__main__":
    sys.exit(answer(lambda: main(sys.argv[1:]), "python -m eval.revisited_retrieval"))
