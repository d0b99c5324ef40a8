"""A few seconds of loading: what this machine delivers, and what a GPU would need."""

import time
from dataclasses import dataclass
from itertools import count

from dino_ssl.data import render_fused
from dino_ssl.data.crops import MultiCrop
from dino_ssl.data.loader import CropDataset, Workers, batches
from dino_ssl.data.sources import Source

BATCH = 16
FASTEST_GPU = 3480.0
"""Images per second that a ViT-S/16 takes at half an H200's arithmetic, 2 x 224 + 8 x 96 pixels (projected)."""


@dataclass(frozen=True)
class Probe:
    """What was measured.

    Attributes:
        images_per_second: with `num_threads` threads, decoding and rendering included.
        cpu_seconds: of this process, per image.
    """

    num_threads: int
    images_per_second: float
    cpu_seconds: float

    def cores_for(self, images_per_second: float) -> float:
        """Cores of this kind that keep up with a GPU which takes so many images."""
        return images_per_second * self.cpu_seconds

    def text(self) -> str:
        """One line for people."""
        return (
            f"this machine: {self.images_per_second:,.0f} images/s with {self.num_threads} threads, "
            f"{1000 * self.cpu_seconds:.2f} ms of a core per image; a GPU that takes {FASTEST_GPU:,.0f} images/s "
            f"needs {self.cores_for(FASTEST_GPU):.0f} such cores"
        )


def probe(source: Source, crops: MultiCrop, *, num_threads: int, seconds: float = 10.0, channels: int = 3) -> Probe:
    """Load batches of views for so many seconds, the first two not counted.

    Args:
        num_threads: 1 or more.
        seconds: at least one batch is measured, however long it takes.
    """
    dataset = CropDataset(source, crops, 0, channels, render_fused.render, crops.enough_pixels)
    keys = ([(0, (step * BATCH + i) % len(source)) for i in range(BATCH)] for step in count())
    made = batches(dataset, keys, Workers(0, num_threads), pin_memory=False)
    for _ in range(2):
        next(made)
    start, cpu, num_batches = time.perf_counter(), time.process_time(), 0
    while num_batches == 0 or time.perf_counter() - start < seconds:
        next(made)
        num_batches += 1
    wall, cpu = time.perf_counter() - start, time.process_time() - cpu
    num_images = num_batches * BATCH
    return Probe(num_threads, num_images / wall, cpu / num_images)
