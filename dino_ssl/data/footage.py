"""Videos whose first frame has a mask, as streams of frames: clips of DAVIS, folders of frames, video files."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import count
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from dino_ssl.data.davis import Clip
from dino_ssl.data.decoding import BrokenImage, decode, printable, read, with_channels
from dino_ssl.data.folder_scan import EXTENSIONS
from dino_ssl.data.masks import Mask
from dino_ssl.data.video import is_video, open_video
from dino_ssl.errors import RunError, UsageError

RATE = Fraction(24)
"""Frames per second of what does not say: DAVIS's."""


@dataclass(frozen=True)
class Footage:
    """A video that is being read.

    Attributes:
        num_frames: None where only reading to the end tells.
        frames: name (a number, or a file's without its ending) and pixels, all of the size of the mask.
    """

    name: str
    first: Mask
    rate: Fraction
    num_frames: int | None
    frames: Iterator[tuple[str, UInt8[np.ndarray, "h w c"]]]


def footage_of_clip(clip: Clip, first: Mask, channels: int) -> Footage:
    """The frames of a clip, read one by one.

    Raises:
        UsageError: (from `frames`) the mask has another size than the first frame.
        RunError: (from `frames`) a frame cannot be read or has another size.
    """
    frames = ((path.stem, _pixels(path, channels)) for path in clip.frames)
    return Footage(clip.name, first, RATE, len(clip.frames), _of_one_size(frames, first, clip.name))


@contextmanager
def open_footage(path: Path, first: Mask, channels: int) -> Iterator[Footage]:
    """Read a folder of frames, in the order of their names, or a video file; errors as `footage_of_clip`.

    Raises:
        UsageError: it is neither.
    """
    if path.is_dir():
        names = sorted(file for file in path.iterdir() if file.suffix.lower().removeprefix(".") in EXTENSIONS)
        if not names:
            raise UsageError(f"data={path} holds no frames ({', '.join(EXTENSIONS)})")
        yield footage_of_clip(Clip(path.absolute().name, tuple(names), ()), first, channels)
        return
    if not path.is_file() or not is_video(path):
        raise UsageError(f"data={path} is no folder of frames and no video; write one of these, or the root of DAVIS")
    try:
        with open_video(path) as video:
            frames = (
                (f"{n:05d}", with_channels(frame, channels, str(path))) for n, frame in zip(count(), video.frames)
            )
            yield Footage(path.stem, first, video.rate, None, _of_one_size(frames, first, path.name))
    except BrokenImage as error:
        raise RunError(str(error)) from None


def _pixels(path: Path, channels: int) -> UInt8[np.ndarray, "h w c"]:
    try:
        return decode(read(path), printable(path), channels=channels).pixels
    except BrokenImage as error:
        raise RunError(f"a frame cannot be read, and the video is not to be had without it: {error}") from None


def _of_one_size(
    frames: Iterator[tuple[str, UInt8[np.ndarray, "_ _ _"]]], first: Mask, video: str
) -> Iterator[tuple[str, UInt8[np.ndarray, "_ _ _"]]]:
    height, width = first.numbers.shape
    for place, (name, pixels) in enumerate(frames):
        if pixels.shape[:2] != (height, width):
            size = f"{pixels.shape[1]} x {pixels.shape[0]}"
            said = f"{video}: frame {name} has {size} pixels, and the mask of the first {width} x {height}"
            raise UsageError(f"{said}; draw it on that frame") if place == 0 else RunError(said)
        yield name, pixels
