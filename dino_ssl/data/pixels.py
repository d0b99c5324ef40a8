"""Images that lie in memory, and folders of .npy arrays."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64, Shaped, UInt8

from dino_ssl.errors import UsageError

FINGERPRINT_IMAGES = 4096  # spread over the set: hashing every pixel of a terabyte would take an hour


@dataclass(frozen=True, eq=False)
class Pixels:
    """Images in memory, or mapped into it from a file, all of one size; any number of channels."""

    images: UInt8[np.ndarray, "n h w c"]
    labels: Int64[np.ndarray, " n"] | None
    """Indices into `classes`; None where nothing is known."""
    classes: tuple[str, ...]
    name: str

    def __len__(self) -> int:
        return len(self.images)

    @property
    def shard_sizes(self) -> None:
        """Any order of pixels reads equally fast."""

    def raw(self, index: int) -> UInt8[np.ndarray, "h w c"]:
        """The image's pixels."""
        return np.ascontiguousarray(self.images[index])

    def describe(self, index: int) -> str:
        """What a person calls this image: `cifar10:train[12]`."""
        return f"{self.name}[{index}]"

    def fingerprint(self) -> str:
        """16 hexadecimal digits over shape and up to 4,096 images: the same in another layout have the same."""
        digest = hashlib.sha256(repr(self.images.shape).encode())
        for index in np.linspace(0, len(self) - 1, min(len(self), FINGERPRINT_IMAGES)).astype(np.int64).tolist():
            digest.update(self.raw(index).data)
        return digest.hexdigest()[:16]


def checked(images: Any, labels: Any, classes: tuple[str, ...], *, name: str, file: Path) -> Pixels:
    """Build Pixels from arrays that somebody else wrote.

    Args:
        images: uint8, [N, H, W, C] or [N, H, W] (one channel), N > 0.
        labels: integers, [N], or None.
        classes: one name per label, or none: then the labels' numbers are the names.
        file: named in errors.
    Raises:
        UsageError: shapes, types or ranges are others.
    """
    pixels = _with_channels(np.asanyarray(images), file)
    if labels is None:
        return Pixels(pixels, None, (), name)
    ids = _ids(labels, len(pixels), file)
    classes = classes or tuple(str(label) for label in range(int(ids.max()) + 1))
    if ids.min() < 0 or ids.max() >= len(classes):
        raise UsageError(f"{file}: labels {ids.min()} to {ids.max()}, but {len(classes)} classes from 0 on")
    return Pixels(pixels, ids, classes, name)


def _with_channels(images: Shaped[np.ndarray, "..."], file: Path) -> UInt8[np.ndarray, "n h w c"]:
    if images.dtype != np.uint8 or not images.size or images.ndim not in (3, 4):
        found = f"{images.dtype} {list(images.shape)}"
        raise UsageError(f"{file}: images are {found}; they must be uint8 [N, H, W, C] or [N, H, W], N > 0")
    return images if images.ndim == 4 else images[..., None]


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
        # Not numpy.load: that opens archives and, for other files, speaks of pickles. Mapped, not read: an array
        # may be larger than the memory.
        return np.lib.format.open_memmap(file, mode="r")
    except Exception as error:  # its header is parsed as Python's text, and damage makes anything of that
        raise UsageError(f"{file} is no array that can be read: {error}") from None
