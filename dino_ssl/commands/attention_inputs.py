"""PATH... of `dino-ssl attention`: images, folders of images and videos, each with a name of its own."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dino_ssl.data.decoding import printable
from dino_ssl.data.folder_scan import EXTENSIONS, scan
from dino_ssl.data.video import is_video
from dino_ssl.errors import UsageError


@dataclass(frozen=True)
class Input:
    """An image, a video, or a folder whose images are the frames of a video.

    Attributes:
        name: path below the folder that all inputs have in common; no two have the same.
        frames: of a folder that is taken for a video.
    """

    path: Path
    name: Path
    is_video: bool
    frames: tuple[Path, ...] = ()


def find_inputs(paths: Sequence[Path], *, folders_are_videos: bool) -> list[Input]:
    """What the paths mean, in their order, a folder's images by name; the same file counts once.

    Raises:
        UsageError: every path that does not exist, cannot be listed or holds no image.
    """
    problems, places = [], []
    found: dict[str, tuple[Path, tuple[Path, ...]]] = {}
    for path in paths:
        try:
            images = _images_below(path) if path.is_dir() else []
        except OSError as error:
            problems.append(f"{printable(path)} cannot be listed: {error.strerror}")
            continue
        problems += _problems_of(path, images)
        one = (path, tuple(images)) if folders_are_videos else (path, ())
        for image, frames in [(image, ()) for image in images] if images and not folders_are_videos else [one]:
            found.setdefault(os.path.normpath(image.absolute()), (image, frames))
        places.append(
            os.path.normpath(path.absolute() if images and not folders_are_videos else path.absolute().parent)
        )
    if problems:
        raise UsageError(*problems)
    common = os.path.commonpath(places)
    return [
        Input(path, Path(os.path.relpath(whole, common)), bool(frames) or is_video(path), frames)
        for whole, (path, frames) in found.items()
    ]


def _problems_of(path: Path, images: Sequence[Path]) -> list[str]:
    if path.is_dir() and not images:
        return [f"{printable(path)} holds no image ({', '.join(EXTENSIONS)})"]
    return [] if path.exists() else [f"{printable(path)} does not exist"]


def _images_below(folder: Path) -> list[Path]:
    return [folder / name for name in scan(folder).names]
