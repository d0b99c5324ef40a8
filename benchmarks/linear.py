"""Time of the grid of 26 linear classifiers against that of one, on cached features, side by side in one process.

    python -m benchmarks.linear [--steps 20] [--rounds 5] [--threads 2] [--device cpu]

One classifier of the widest features, alone, in three ways: as PyTorch users write it (DataLoader over a
TensorDataset, `nn.Linear`, autograd, SGD), the same with rows picked from the table of features, and ours with a grid
of one. Steps of 256 images; medians of wall time; the ratios are grid / one. The grid's products are 20 times those of
one classifier (half of the members see half of the features): the ratio is small where one classifier mostly waits
for something else, and comes near 20 where it does not, with many classes on a CPU.
"""

from collections.abc import Iterable
from dataclasses import replace

import torch
import tyro
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.timing import interleaved
from dino_ssl.evaluation.linear import Sweep, batches, train
from dino_ssl.evaluation.linear_features import VIT_BASE, VIT_SMALL

BLOCKS = 4


def usual(pairs: Iterable[tuple[Tensor, Tensor]], columns: slice, num_classes: int, device: torch.device) -> None:
    """PyTorch's layer, gradient and optimiser over batches of (features, labels)."""
    layer = nn.Linear(columns.stop - columns.start, num_classes, device=device)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.01, momentum=0.9)
    for features, labels in pairs:
        optimizer.zero_grad()
        nn.functional.cross_entropy(layer(features[:, columns].to(device)), labels.to(device)).backward()
        optimizer.step()
    synchronize(device)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def compare(dim: int, num_classes: int, *, steps: int, rounds: int, device: torch.device) -> None:
    """Print a line of the table: a backbone of this width, whose last four blocks are cached."""
    sweep = Sweep(epochs=1)
    features = torch.randn(steps * sweep.batch_size, (BLOCKS + 1) * dim)
    labels = torch.randint(num_classes, (len(features),))
    widest = VIT_SMALL.columns(BLOCKS, dim)
    data = TensorDataset(features, labels)

    def ours(choices: list[slice], chosen: Sweep) -> None:
        rows = torch.arange(len(labels))
        train(features, labels, choices, chosen, rows=rows, num_classes=num_classes, device=device)
        synchronize(device)

    def picked() -> Iterable[tuple[Tensor, Tensor]]:
        return ((features[rows], labels[rows]) for rows in batches(len(labels), sweep))

    times = interleaved(
        {
            "loader": lambda: usual(DataLoader(data, sweep.batch_size, shuffle=True), widest, num_classes, device),
            "picked": lambda: usual(picked(), widest, num_classes, device),
            "one": lambda: ours([widest], replace(sweep, learning_rates=(0.01,))),
            "grid": lambda: ours([widest, VIT_BASE.columns(BLOCKS, dim)], sweep),
        },
        rounds=rounds,
    )
    each = {name: 1000 * time.wall / steps for name, time in times.items()}
    ratios = "".join(f"{each['grid'] / each[name]:10.2f}" for name in ("loader", "picked", "one"))
    print(f"{dim:6} {num_classes:8}" + "".join(f"{value:10.2f}" for value in each.values()) + ratios)


def main(*, steps: int = 20, rounds: int = 5, threads: int = 2, device: str = "cpu") -> None:
    """Print the table.

    Args:
        steps: of 256 images, in each round.
        rounds: timed rounds.
        threads: of PyTorch.
        device: cpu or cuda.
    """
    torch.set_num_threads(threads)
    print(f"torch {torch.__version__}, {threads} threads, {device}: ms a step of 256 images, and grid of 26 / one")
    print(f"{'width':>6} {'classes':>8}" + "".join(f"{name:>10}" for name in ("loader", "picked", "one", "grid"))
          + "".join(f"{name:>10}" for name in ("/loader", "/picked", "/one")))  # fmt: skip
    for dim, num_classes in ((128, 10), (192, 10), (384, 10), (384, 100), (384, 1000)):
        compare(dim, num_classes, steps=steps, rounds=rounds, device=torch.device(device))


if __name__ == "__main__":
    tyro.cli(main)
