"""Data sets that are known by name, read where torchvision puts them; nothing is ever downloaded."""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Shaped, UInt8

from dino_ssl.data import unpickling
from dino_ssl.data.pixels import Pixels, checked, read_arrays
from dino_ssl.data.synthetic_faces import SyntheticFaces, open_synthetic_faces
from dino_ssl.errors import UsageError

NAMES = ("digits", "cifar10", "cifar100", "fashion_mnist", "synthetic_faces")
OPEN_SETS = ("synthetic_faces",)
"""Whose test split has other classes than the train split: no classifier can be tested on it."""
DIGITS_TRAIN = 1437
"""Digits that are trained on; the last 360 are held out."""
FASHION_CLASSES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)


@dataclass(frozen=True)
class Layout:
    """One way in which a data set lies on a disk."""

    folder: str
    """Below the root."""
    marker: str
    """A file in the folder by which the layout is recognised."""
    read: Callable[[Path, str, str], Pixels]
    """(folder, split, name) -> images."""


def open_named(name: str, split: str, root: Path) -> Pixels | SyntheticFaces:
    """Open the train or the test split of a data set of `NAMES`.

    Raises:
        UsageError: the files are not below the root, or not what they say.
    """
    if name == "digits":
        return _read_digits(split)
    if name == "synthetic_faces":
        return open_synthetic_faces(split)
    for layout in _LAYOUTS[name]:
        if (root / layout.folder / layout.marker).is_file():
            return layout.read(root / layout.folder, split, f"{name}:{split}")
    raise UsageError(_not_found(name, root))


def layout_at(path: Path) -> tuple[Path, Layout] | None:
    """The CIFAR folder that the path is or holds, with its layout; None if it is something else.

    Raises:
        UsageError: it holds CIFAR-10 and CIFAR-100.
    """
    pairs = [(path / below, layout) for layout in (_CIFAR10, _CIFAR100) for below in ("", layout.folder)]
    found = [(folder, layout) for folder, layout in pairs if (folder / layout.marker).is_file()]
    if len(found) > 1:
        either = " or ".join(f"'{folder}'" for folder, _ in found)
        raise UsageError(f"data source '{path}' holds several data sets; write {either}")
    return found[0] if found else None


def _not_found(name: str, root: Path) -> str:
    places = [root.absolute() / layout.folder / layout.marker for layout in _LAYOUTS[name]]
    dataset = {"cifar10": "CIFAR10", "cifar100": "CIFAR100", "fashion_mnist": "FashionMNIST"}[name]
    return (
        f"data source '{name}': found no {' and no '.join(map(str, places))}; set data_root to"
        f" the folder that holds {_LAYOUTS[name][0].folder},"
        f" or run torchvision.datasets.{dataset}('{root}', download=True)"
    )


def _read_digits(split: str) -> Pixels:
    """scikit-learn's 1,797 handwritten digits, 8x8, grey 0..16 scaled to 0..255.

    The last 360 are held out in the order in which they were collected, not at random: 13 people wrote them
    all, and a random split would show everybody's hand in training.

    Source: Alpaydin & Kaynak 1998, UCI optical recognition of handwritten digits.
    """
    from sklearn.datasets import load_digits  # noqa: PLC0415  (takes a second that no other source needs)

    digits = load_digits()
    part = slice(None, DIGITS_TRAIN) if split == "train" else slice(DIGITS_TRAIN, None)
    grey = np.rint(digits.images[part] * 255 / 16).astype(np.uint8)
    classes = tuple(str(digit) for digit in digits.target_names)
    return checked(grey, digits.target[part], classes, name=f"digits:{split}", file=Path("digits"))


def _read_cifar10(folder: Path, split: str, name: str) -> Pixels:
    """Krizhevsky 2009, the Python version. File sums are not checked, so that repacked files work."""
    batches = [f"data_batch_{part}" for part in range(1, 6)] if split == "train" else ["test_batch"]
    parts = [_read_batch(folder / batch, "labels", name) for batch in batches]
    images = np.concatenate([part.images for part in parts])
    labels = np.concatenate([part.labels for part in parts if part.labels is not None])
    return checked(images, labels, _names(folder / "batches.meta", "label_names"), name=name, file=folder)


def _read_cifar100(folder: Path, split: str, name: str) -> Pixels:
    """Krizhevsky 2009, the Python version, with its 100 fine labels."""
    part = _read_batch(folder / split, "fine_labels", name)
    classes = _names(folder / "meta", "fine_label_names")
    return checked(part.images, part.labels, classes, name=name, file=folder / split)


def _read_batch(file: Path, label_key: str, name: str) -> Pixels:
    """One file: data [N, 3072] uint8, a row being the red, the green and the blue plane of 32x32."""
    batch = unpickling.load(file)
    if missing := {"data", label_key} - batch.keys():
        raise UsageError(f"{file} has no {' and no '.join(sorted(missing))}; it has {', '.join(batch)}")
    data = np.asarray(batch["data"])
    if data.ndim != 2 or data.shape[1] != 3072:
        raise UsageError(f"{file}: data is {list(data.shape)}; it must be [N, 3072], planes of 32x32")
    return checked(_planes_last(data), batch[label_key], (), name=name, file=file)


def _planes_last(data: Shaped[np.ndarray, "n 3072"]) -> Shaped[np.ndarray, "n 32 32 3"]:
    return data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)


def _names(file: Path, key: str) -> tuple[str, ...]:
    names = unpickling.load(file).get(key)
    if not isinstance(names, list) or not names:
        raise UsageError(f"{file} has no list {key}")
    return tuple(name.decode("latin1") if isinstance(name, bytes) else str(name) for name in names)


def _read_fashion(folder: Path, split: str, name: str) -> Pixels:
    """Xiao et al. 2017, arXiv:1708.07747: 28x28 grey, in MNIST's format."""
    part = "train" if split == "train" else "t10k"
    file = folder / f"{part}-images-idx3-ubyte"
    labels = _read_idx(folder / f"{part}-labels-idx1-ubyte", num_dims=1)
    return checked(_read_idx(file, num_dims=3), labels, FASHION_CLASSES, name=name, file=file)


def _read_idx(file: Path, num_dims: int) -> UInt8[np.ndarray, "..."]:
    """MNIST's format: 0, 0, 8 (bytes), number of dimensions; dimensions (big-endian, 32 bit); bytes."""
    try:
        content = file.read_bytes()
    except OSError as error:
        raise UsageError(f"{file} cannot be opened: {error.strerror}") from None
    start = 4 + 4 * num_dims
    if content[:4] != bytes([0, 0, 8, num_dims]) or len(content) < start:
        raise UsageError(f"{file} is not an IDX file of bytes in {num_dims} dimensions; fetch it again")
    shape = struct.unpack(f">{num_dims}I", content[4:start])
    values = np.frombuffer(content, np.uint8, offset=start)
    if values.size != int(np.prod(shape, dtype=object)):
        raise UsageError(f"{file} is damaged: {values.size:,} bytes where {list(shape)} is promised; fetch it again")
    return values.reshape(shape)


_CIFAR10 = Layout("cifar-10-batches-py", "data_batch_1", _read_cifar10)
_CIFAR100 = Layout("cifar-100-python", "meta", _read_cifar100)
_LAYOUTS = {
    "cifar10": (_CIFAR10, Layout("cifar10-npy", "x_train.npy", read_arrays)),
    "cifar100": (_CIFAR100,),
    "fashion_mnist": (Layout("FashionMNIST/raw", "train-images-idx3-ubyte", _read_fashion),),
}
