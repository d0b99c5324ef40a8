"""Images that lie in memory, and folders of .npy arrays."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64, Shaped, UInt8
from PIL import Image

from dino_ssl.errors import UsageError


@dataclass(frozen=True, eq=False)
class Pixels:
    """RGB images in memory, all of one size."""

    images: UInt8[np.ndarray, "n h w 3"]
    labels: Int64[np.ndarray, " n"] | None
    """Indices into `classes`; None where nothing is known."""
    classes: tuple[str, ...]
    name: str

    def __len__(self) -> int:
        return len(self.images)

    def image(self, index: int) -> Image.Image:
        """The image in RGB."""
        return Image.fromarray(self.images[index])

    def describe(self, index: int) -> str:
        """What a person calls this image: `cifar10:train[12]`."""
        return f"{self.name}[{index}]"

    def fingerprint(self) -> str:
        """16 hexadecimal digits over shape and pixels: the same images in another layout have the same."""
        digest = hashlib.sha256(repr(self.images.shape).encode())
        digest.update(np.ascontiguousarray(self.images).data)
        return digest.hexdigest()[:16]


def checked(images: Any, labels: Any, classes: tuple[str, ...], *, name: str, file: Path) -> Pixels:
    """Build Pixels from arrays that somebody else wrote; grey images are repeated into three channels.

    Args:
        images: uint8, [N, H, W, 3] or [N, H, W], N > 0.
        labels: integers, [N], or None.
        classes: one name per label, or none: then the labels' numbers are the names.
        file: named in errors.
    Raises:
        UsageError: shapes, types or ranges are others.
    """
    rgb = _rgb(np.asarray(images), file)
    if labels is None:
        return Pixels(rgb, None, (), name)
    ids = _ids(labels, len(rgb), file)
    classes = classes or tuple(str(label) for label in range(int(ids.max()) + 1))
    if ids.min() < 0 or ids.max() >= len(classes):
        raise UsageError(f"{file}: labels {ids.min()} to {ids.max()}, but {len(classes)} classes from 0 on")
    return Pixels(rgb, ids, classes, name)


def _rgb(images: Shaped[np.ndarray, "..."], file: Path) -> UInt8[np.ndarray, "n h w 3"]:
    grey, color = images.ndim == 3, images.ndim == 4 and images.shape[3] == 3
    if images.dtype != np.uint8 or not images.size or not (grey or color):
        found = f"{images.dtype} {list(images.shape)}"
        raise UsageError(f"{file}: images are {found}; they must be uint8 [N, H, W, 3] or [N, H, W], N > 0")
    return np.ascontiguousarray(images) if color else np.repeat(images[..., None], 3, axis=3)


def _ids(labels: Any, num_images: int, file: Path) -> Int64[np.ndarray, " n"]:
    try:
        ids = np.asarray(labels)
    except ValueError:  # a list of lists of several lengths
        raise UsageError(f"{file}: labels are not one integer per image") from None
    if ids.dtype.kind not in "iu" or ids.shape != (num_images,):
        found = f"{ids.dtype} {list(ids.shape)}"
        raise UsageError(f"{file}: labels are {found}; they must be integers [{num_images}], one per image")
    return ids.astype(np.int64)


def read_arrays(folder: Path, split: str, name: str) -> Pixels:
    """Read x_SPLIT.npy (see `checked`), and where they exist y_SPLIT.npy and classes.txt (one name per line).

    Raises:
        UsageError: x_SPLIT.npy is missing, or a file is damaged or of another shape.
    """
    file, labels_file = folder / f"x_{split}.npy", folder / f"y_{split}.npy"
    if not file.is_file():
        raise UsageError(f"data source '{name}': {file} does not exist")
    labels = _load(labels_file) if labels_file.is_file() else None
    return checked(_load(file), labels, _names(folder / "classes.txt"), name=name, file=file)


def _names(file: Path) -> tuple[str, ...]:
    return tuple(file.read_text(encoding="utf-8", errors="replace").splitlines()) if file.is_file() else ()


def _load(file: Path) -> Shaped[np.ndarray, "..."]:
    try:
        with file.open("rb") as stream:
            # Not numpy.load: that opens archives and, for other files, speaks of pickles.
            return np.lib.format.read_array(stream, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UsageError(f"{file} is no array that can be read: {error}") from None
