"""CIFAR-10: weighted k-NN, and a grid of linear classifiers on frozen features; full 50,000 / 10,000 images.

    python -m eval.cifar10 --weights RUN_OR_FILE --data-root ROOT

ROOT holds cifar-10-batches-py. No number is published for DINO on CIFAR-10 alone. To reach: 55.0 % (20 neighbours)
after launch/recipes/cifar10_cpu.yaml, half an hour on two cores; the same network untrained has 37.4 %, raw pixels
45.9 % (cosine of mean-centred pixels).
"""

import sys
from collections.abc import Sequence

from dino_ssl.cli import answer
from dino_ssl.commands import options
from dino_ssl.commands.parsing import Parser
from dino_ssl.data.sources import open_source
from eval.classification import knn, linear


def main(arguments: Sequence[str]) -> None:
    """Measure, print, write."""
    parser = Parser(program="python", command="-m eval.cifar10", description=str(__doc__).splitlines()[0])
    options.add_weights(parser)
    options.add_data_root(parser)
    options.add_compute(parser)
    words = parser.read(arguments)
    if words is None:
        return
    from dino_ssl.commands.compute import Compute  # noqa: PLC0415

    train, test = (open_source(f"cifar10:{split}", words.data_root) for split in ("train", "test"))
    compute = Compute.of(words)
    with compute.ranks():
        encoder = options.encoder_of(words)
        found = [knn(encoder, train, test, compute), linear(encoder, train, test, compute, method="grid")]
    options.say(found, words.output)


if __name__ == "__main__":
    sys.exit(answer(lambda: main(sys.argv[1:]), "python -m eval.cifar10"))
