"""CPU time of the views of an image: the original's pipeline, ours, and torchvision's other one; then the fidelity.

    python -m benchmarks.crops [--images FOLDER] [--number 32] [--rounds 7] [--crops 2000]

JPEG bytes in, ten views out (2 x 224 + 8 x 96, the paper's recipe), one thread. The original gives normalised
floats, ours bytes, which are normalised on the device. Give a folder of large photographs: without one,
scikit-learn's two (640 x 427) are cut up. Candidates run interleaved; medians; ratio 1 is the original.
"""

import importlib.util
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: one core for every candidate

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import tyro
from torchvision.transforms import v2

from benchmarks.fidelity import fidelity
from benchmarks.original_crops import MEAN, STD, original_views
from benchmarks.photographs import jpegs, photographs
from benchmarks.timing import interleaved
from dino_ssl.data import render_fused, render_pil
from dino_ssl.data.crops import MultiCrop, dino_recipe
from dino_ssl.data.loader import CropDataset, Render, Workers, batches

CROPS = MultiCrop(
    dino_recipe(global_size=224, global_scale=(0.4, 1.0), num_local_crops=8, local_size=96, local_scale=(0.05, 0.4))
)


@dataclass(frozen=True)
class Encoded:
    """JPEGs in memory as a source."""

    data: list[bytes]
    name: str = "jpegs"
    labels: None = None
    classes: tuple[str, ...] = ()
    shard_sizes: None = None

    def __len__(self) -> int:
        return len(self.data)

    def raw(self, index: int) -> bytes:
        return self.data[index]

    def describe(self, index: int) -> str:
        return f"jpegs[{index}]"

    def fingerprint(self) -> str:
        return str(len(self.data))


def ours(data: list[bytes], render: Render) -> Callable[[], object]:
    """Everything that a loader's thread does, as one batch."""
    enough = float("inf") if render is render_pil.render else CROPS.enough_pixels
    dataset = CropDataset(Encoded(data), CROPS, 0, 3, render, enough)
    keys = [(0, index) for index in range(len(data))]
    return lambda: next(batches(dataset, [keys], Workers(0, 0), pin_memory=False))


def tensor_views(data: list[bytes]) -> Callable[[], object]:
    """torchvision's transforms on byte tensors."""
    from torchvision.io import decode_jpeg  # noqa: PLC0415

    def chain(size: int, scale: tuple[float, float], blur: float, solarize: float) -> v2.Transform:
        return v2.Compose([
            v2.RandomResizedCrop(size, scale=scale, interpolation=v2.InterpolationMode.BICUBIC, antialias=True),
            v2.RandomHorizontalFlip(),
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.2, 0.1)], p=0.8),
            v2.RandomGrayscale(0.2),
            v2.RandomApply([v2.GaussianBlur(13, (0.1, 2.0))], p=blur),
            v2.RandomSolarize(128, p=solarize),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ])  # fmt: skip

    views = [chain(224, (0.4, 1.0), 1.0, 0.0), chain(224, (0.4, 1.0), 0.1, 0.2)] + [
        chain(96, (0.05, 0.4), 0.5, 0.0)
    ] * 8

    def run() -> None:
        for one in data:
            image = decode_jpeg(torch.frombuffer(bytearray(one), dtype=torch.uint8))
            for view in views:
                view(image)

    return run


def compare(title: str, data: list[bytes], rounds: int) -> None:
    candidates: dict[str, Callable[[], object]] = {
        "original": lambda: [original_views(one) for one in data],
        "ours, pil": ours(data, render_pil.render),
        f"ours, fused ({render_fused.IMPLEMENTATION})": ours(data, render_fused.render),
        "torchvision v2, bytes": tensor_views(data),
    }
    if render_fused.IMPLEMENTATION == "compiled":
        for name, level in (("AVX2", render_fused.AVX2), ("basic", render_fused.BASIC)):
            candidates[f"  at most {name}"] = ours(data, partial(render_fused.render_compiled, level=level))
    if importlib.util.find_spec("cv2"):
        from dino_ssl.data import render_opencv  # noqa: PLC0415  (an extra)

        candidates["  without a compiler"] = ours(data, render_opencv.render)
    times = interleaved(candidates, rounds=rounds)
    size = np.mean([len(one) for one in data]) / 1024
    print(f"\n{title}, {size:.0f} KB a JPEG: CPU ms per image, images/s of a core, ratio")
    for name, time in times.items():
        each = time.cpu / len(data)
        print(f"  {name:<26}{1000 * each:8.2f}{1 / each:8.0f}{times['original'].cpu / time.cpu:8.2f}")


def main(*, images: Path | None = None, number: int = 32, rounds: int = 7, crops: int = 2000) -> None:
    """Print every table.

    Args:
        images: folder of large photographs.
        number: JPEGs of each size.
        rounds: timed rounds.
        crops: random crops for the fidelity; 0 leaves it out.
    """
    torch.set_num_threads(1)
    found = photographs(images)
    print(f"{len(found)} photographs of {images or 'scikit-learn'}, torch {torch.__version__}, one thread")
    for title, width, height, part in (
        ("500 x 375", 500, 375, 1), ("1600 x 1200", 1600, 1200, 4), ("256-pixel shards, 341 x 256", 341, 256, 1),
    ):  # fmt: skip
        compare(title, jpegs(found, max(4, number // part), width, height), rounds)
    if crops:
        fidelity(found, crops)


if __name__ == "__main__":
    tyro.cli(main)
