"""JPEGs of the sizes that matter, cut from real photographs."""

import io
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

QUALITY = 95
SMALLEST = 400  # pixels, short side of a photograph that is cut from


def photographs(folder: Path | None) -> list[Image.Image]:
    """The larger images below a folder, in the order of their names; without one, scikit-learn's two photographs."""
    if folder is None:
        return [Image.fromarray(image) for image in load_sample_images().images]
    found = [Image.open(path).convert("RGB") for path in sorted(folder.rglob("*")) if path.suffix in (".jpg", ".jpeg")]
    return [image for image in found if min(image.size) >= SMALLEST]


def jpegs(images: list[Image.Image], num: int, width: int, height: int, *, seed: int = 0) -> list[bytes]:
    """`num` JPEGs of width x height (every third upright), each a random cut of a photograph, 4:2:0."""
    rng = np.random.default_rng(seed)
    return [
        _encoded(_cut(images[i % len(images)], rng, *((height, width) if i % 3 == 2 else (width, height))))
        for i in range(num)
    ]


def _cut(image: Image.Image, rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """As much of the photograph as fits the shape, less up to a third, at a random place."""
    scale = min(image.width / width, image.height / height) * rng.uniform(2 / 3, 1)
    left = rng.uniform(0, image.width - scale * width)
    top = rng.uniform(0, image.height - scale * height)
    box = (left, top, left + scale * width, top + scale * height)
    return image.resize((width, height), Image.Resampling.LANCZOS, box=box)


def _encoded(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=QUALITY, subsampling="4:2:0")
    return stream.getvalue()
