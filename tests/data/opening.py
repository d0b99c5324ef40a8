"""Small data sets on the disk, and sources opened from them, for the tests beside this file."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dino_ssl.data.sources import Files, Pixels, Source, open_source
from dino_ssl.errors import UsageError

ROOT = Path("no data here")


def folder_of(root: Path, *names: str) -> Path:
    """Real 4x4 images; the red channel is the position in `names`."""
    for position, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (position, 0, 0)).save(root / name, "PNG")
    return root


def files_of(spec: Path | str) -> Files:
    source = open_source(str(spec), ROOT)
    assert isinstance(source, Files)
    return source


def pixels_of(spec: Path | str, root: Path = ROOT) -> Pixels:
    source = open_source(str(spec), root)
    assert isinstance(source, Pixels)
    return source


def labels_of(source: Source) -> list[int]:
    assert source.labels is not None
    return source.labels.tolist()


def problem(spec: Path | str, root: Path = ROOT) -> str:
    with pytest.raises(UsageError) as caught:
        open_source(str(spec), root)
    assert len(caught.value.problems) == 1
    return caught.value.problems[0]


def write_arrays(folder: Path, images: np.ndarray, labels: Sequence[int] | None, split: str = "train") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / f"x_{split}.npy", images)
    if labels is not None:
        np.save(folder / f"y_{split}.npy", np.array(labels))
    return folder


class Malicious:
    """Pickles into a call that writes a file."""

    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch '{self.victim}'",)
