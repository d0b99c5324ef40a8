"""Training steps with the data they need: synthetic views, `fused` on the CPU's cores, `device` on the GPU.

    python -m benchmarks.feeding [--images FOLDER] [--model vit_small] [--batch 256] [--steps 50] [--workers N]

One process, one device (a GPU if there is one). For each way of feeding: images/s, MFU, the share of the time that
the loop waits for data, peak memory; first the original's plain step (fp16 on a GPU) on noise; at the end, the time
that rendering on the device takes of a step.
"""

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import tyro

from benchmarks.crops import CROPS
from benchmarks.original_crops import MEAN, STD
from benchmarks.photographs import jpegs, photographs
from benchmarks.step import Setting, Views, crops_of, flops_per_image, make_steps
from dino_ssl.data import render_fused
from dino_ssl.data.loader import Batch, CropDataset, Workers, batches
from dino_ssl.data.order import BatchOrder, Shares
from dino_ssl.data.sources import Source, open_source
from dino_ssl.data.transfer import copied_ahead, normalize, to_device

NOT_COUNTED = 5  # steps


@dataclass(frozen=True)
class Fed:
    """Seconds of a step, the share of it that waited for data, and the GPU's peak memory in bytes."""

    seconds: float
    waiting: float
    peak: int


def loaded(
    source: Source, feed: str, *, batch: int, steps: int, workers: Workers, device: torch.device
) -> Iterator[Batch]:
    """Batches on the device, as a run has them."""
    render = render_fused.render if feed == "fused" else None
    dataset = CropDataset(source, CROPS, 0, 3, render, CROPS.enough_pixels)
    order = BatchOrder(
        len(source), seed=0, shares=Shares(1, 1, batch), rank=0, start_step=0, total_steps=steps + NOT_COUNTED
    )
    return copied_ahead(batches(dataset, order, workers, pin_memory=device.type == "cuda"), CROPS, device)


def synthetic(setting: Setting, steps: int) -> Iterator[Batch]:
    """One batch of noise again and again."""
    shapes = [(2, setting.global_size), (setting.local_crops, setting.local_size)]
    views = [
        torch.randint(0, 256, (num, setting.batch, 3, size, size), dtype=torch.uint8, device=setting.device)
        for num, size in shapes
    ]
    return (Batch(views, [], []) for _ in range(steps + NOT_COUNTED))


def train(step: Callable[[Views], None], made: Iterator[Batch], steps: int, device: torch.device) -> Fed:
    """Take the steps; the first few are not counted."""
    waiting = 0.0
    for number in range(steps + NOT_COUNTED):
        if number == NOT_COUNTED:
            start, waiting = finished(device), 0.0
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
        asked = time.perf_counter()
        batch = next(made)
        waiting += time.perf_counter() - asked
        step([normalize(view, MEAN, STD) for view in batch.views])
    seconds = finished(device) - start
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else 0
    return Fed(seconds / steps, waiting / seconds, peak)


def finished(device: torch.device) -> float:
    """The time when the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def rendering(source: Source, batch: int, device: torch.device) -> float:
    """Seconds that the device needs for the views of a batch of whole images."""
    dataset = CropDataset(source, CROPS, 0, 3, None, CROPS.enough_pixels)
    keys = [[(0, index % len(source)) for index in range(batch)]]
    (whole,) = batches(dataset, keys, Workers(0, 4), pin_memory=device.type == "cuda")
    for _ in range(3):  # the first compiles
        to_device(whole, CROPS, device)
    start = finished(device)
    for _ in range(5):
        to_device(whole, CROPS, device)
    return (finished(device) - start) / 5


def main(
    *,
    images: Path | None = None,
    model: Literal["vit_tiny", "vit_small", "vit_base"] = "vit_small",
    batch: int = 256,
    prototypes: int = 65_536,
    steps: int = 50,
    workers: int = max(1, len(os.sched_getaffinity(0)) - 1),
    compile: bool = True,
    peak_tflops: float = 790.0,
) -> None:
    """Print the table.

    Args:
        images: folder of large photographs; scikit-learn's two without one.
        batch: images in a step.
        steps: that are timed, for each way of feeding.
        workers: threads that decode and render, four to a process.
        compile: compile the blocks.
        peak_tflops: of MFU; 790 was measured on an H200, bf16.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    setting = Setting(model, batch, prototypes, device=device.type)
    original, ours = make_steps(setting, compile=compile)
    step = ours["bf16, compiled" if compile else "bf16"].step
    feeds: list[tuple[str, Callable[[Views], None], str]] = [
        ("original's step", lambda views: original.step(crops_of(views)), "synthetic"),
        *((feed, step, feed) for feed in ("synthetic", "fused", "device")),
    ]
    hands = Workers(workers // 4, 4) if workers >= 4 else Workers(0, workers)
    flops = flops_per_image(setting) * batch
    print(f"{model}, batch {batch}, {device}, torch {torch.__version__}, {hands}: images/s, MFU, waiting, peak memory")
    with tempfile.TemporaryDirectory() as folder:
        for place, data in enumerate(jpegs(photographs(images), max(batch, 512), 500, 375)):
            (Path(folder) / f"{place:06d}.jpg").write_bytes(data)
        source = open_source(folder, Path(folder))
        for name, take, feed in feeds:
            if feed == "synthetic":
                made = synthetic(setting, steps)
            else:
                made = loaded(source, feed, batch=batch, steps=steps, workers=hands, device=device)
            fed = train(take, made, steps, device)
            speed, mfu = batch / fed.seconds, flops / fed.seconds / peak_tflops / 1e12
            print(f"  {name:<18}{speed:8.1f}{mfu:8.1%}{fed.waiting:8.1%}{fed.peak / 2**30:8.1f} GiB")
        share = rendering(source, batch, device) / fed.seconds
        print(f"rendering on the device takes as long as {share:.1%} of a step")


if __name__ == "__main__":
    tyro.cli(main)
