"""ImageNet-1k as DINO reports it: weighted k-NN (k = 20) and the linear probe of 100 epochs with augmentation.

    python -m eval.imagenet --weights RUN_OR_FILE --data IMAGENET [--methods knn linear]

IMAGENET holds train/ and val/ with a folder for each class. Published top-1 in percent, k-NN and linear
(facebookresearch/dino, README): ViT-S/16 74.5 and 77.0, ViT-S/8 78.3 and 79.7, ViT-B/16 76.1 and 78.2, ViT-B/8 77.4
and 80.1, ResNet-50 67.5 and 75.3. Not measured with this code yet: that takes the data set and a GPU.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from dino_ssl.cli import answer
from dino_ssl.commands import options
from dino_ssl.commands.parsing import Parser
from dino_ssl.data.sources import open_source
from eval.classification import knn, linear

PUBLISHED = {
    "vit_small/16": (74.5, 77.0),
    "vit_small/8": (78.3, 79.7),
    "vit_base/16": (76.1, 78.2),
    "vit_base/8": (77.4, 80.1),
    "resnet50": (67.5, 75.3),
}


def main(arguments: Sequence[str]) -> None:
    """Measure, print beside what was published, write."""
    parser = Parser(program="python", command="-m eval.imagenet", description=str(__doc__).splitlines()[0])
    options.add_weights(parser)
    parser.add_argument("--data", type=Path, required=True, metavar="IMAGENET", help="folder with train/ and val/")
    methods = "what to measure (both)"
    parser.add_argument("--methods", nargs="+", choices=("knn", "linear"), default=["knn", "linear"], help=methods)
    options.add_compute(parser)
    words = parser.read(arguments)
    if words is None:
        return
    from dino_ssl.commands.compute import Compute  # noqa: PLC0415

    train, val = (open_source(f"{words.data}:{split}", words.data) for split in ("train", "val"))
    compute = Compute.of(words)
    with compute.ranks():
        encoder = options.encoder_of(words)
        found = [knn(encoder, train, val, compute)] if "knn" in words.methods else []
        found += [linear(encoder, train, val, compute, method="original")] if "linear" in words.methods else []
    options.say(found, words.output)
    if encoder.name in PUBLISHED:
        print("published for {}: {} % k-NN, {} % linear".format(encoder.name, *PUBLISHED[encoder.name]))


if __name__ == "__main__":
    sys.exit(answer(lambda: main(sys.argv[1:]), "python -m eval.imagenet"))
