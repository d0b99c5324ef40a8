"""Images per second from JPEG files to batches: the original's DataLoader against ours, end to end.

    python -m benchmarks.loader [--images FOLDER] [--number 256] [--workers 2] [--rounds 3]

Files are written to a temporary folder (500 x 375 JPEGs). Both make batches of 32 with two workers: the original
with processes and float32 views, ours with threads and bytes. Start-up and tail of the epoch count. At the end:
what one and two threads of ours reach, and the cores that a GPU would need.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import tyro
from torch.utils.data import DataLoader

from benchmarks.crops import CROPS
from benchmarks.original_crops import OriginalDataset
from benchmarks.photographs import jpegs, photographs
from dino_ssl.data import render_fused
from dino_ssl.data.loader import CropDataset, Workers, batches
from dino_ssl.data.order import BatchOrder, Shares
from dino_ssl.data.probe import probe
from dino_ssl.data.sources import open_source

BATCH = 32


class Files(OriginalDataset):
    """The original reads a file a call."""

    def __init__(self, paths: list[Path]) -> None:
        super().__init__([])
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> list[torch.Tensor]:
        self.encoded = {index: self.paths[index].read_bytes()}  # type: ignore[assignment]
        return super().__getitem__(index)


def original(folder: Path, workers: int) -> Callable[[], None]:
    def epoch() -> None:
        loader = DataLoader(
            Files(sorted(folder.iterdir())), BATCH, shuffle=True, num_workers=workers, drop_last=True, pin_memory=False
        )
        for _ in loader:
            pass

    return epoch


def ours(folder: Path, workers: Workers) -> Callable[[], None]:
    source = open_source(str(folder), folder)
    dataset = CropDataset(source, CROPS, 0, 3, render_fused.render, CROPS.enough_pixels)

    def epoch() -> None:
        order = BatchOrder(
            len(source), seed=0, shares=Shares(1, 1, BATCH), rank=0, start_step=0, total_steps=len(source) // BATCH
        )
        for _ in batches(dataset, order, workers, pin_memory=False):
            pass

    return epoch


def measured(run: Callable[[], None]) -> tuple[float, float]:
    """Wall and CPU seconds, those of finished worker processes included."""
    before, start = _cpu(), time.perf_counter()
    run()
    return time.perf_counter() - start, _cpu() - before


def _cpu() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def table(candidates: dict[str, Callable[[], None]], number: int, rounds: int) -> None:
    """Run the candidates in turn, `rounds` times, and print their medians."""
    seconds: dict[str, list[tuple[float, float]]] = {label: [] for label in candidates}
    for _ in range(rounds):
        for label, run in candidates.items():
            seconds[label].append(measured(run))
    medians = {label: [statistics.median(each) for each in zip(*rows, strict=True)] for label, rows in seconds.items()}
    first_wall, first_cpu = next(iter(medians.values()))
    print(f"{number} JPEGs of 500 x 375: images/s, ratio of wall time, CPU ms per image, ratio of CPU time")
    for label, (wall, cpu) in medians.items():
        speed, cost = (
            f"{number / wall:8.0f}{first_wall / wall:8.2f}",
            f"{1000 * cpu / number:8.2f}{first_cpu / cpu:8.2f}",
        )
        print(f"  {label:<26}{speed}{cost}")


def main(*, images: Path | None = None, number: int = 256, workers: int = 2, rounds: int = 3) -> None:
    """Print the table.

    Args:
        images: folder of large photographs; scikit-learn's two without one.
        number: JPEGs in an epoch.
        workers: processes of the original, threads of ours.
        rounds: epochs of each candidate.
    """
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for place, data in enumerate(jpegs(photographs(images), number, 500, 375)):
            (folder / f"{place:06d}.jpg").write_bytes(data)
        candidates = {
            f"original, {workers} processes": original(folder, workers),
            f"fused, {workers} threads": ours(folder, Workers(0, workers)),
            f"fused, {workers} processes": ours(folder, Workers(workers, 0)),
            "fused, 1 thread": ours(folder, Workers(0, 1)),
        }
        table(candidates, number, rounds)
        print(probe(open_source(name, folder), CROPS, num_threads=workers).text())


if __name__ == "__main__":
    tyro.cli(main)
