"""The videos that `dino-ssl attention` makes of a video."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from dino_ssl.commands.attention_inputs import Input
from dino_ssl.commands.attention_wish import Reader, Wish
from dino_ssl.commands.progress import progress
from dino_ssl.data.decoding import BrokenImage, decode, printable, read, with_channels
from dino_ssl.data.video import Frame, Video, open_video, write_video
from dino_ssl.data.whole_image import as_rgb, resized
from dino_ssl.evaluation import heat
from dino_ssl.evaluation.attention_index import Entry
from dino_ssl.evaluation.queries import attention_from, default_query

FRAMES_AT_ONCE = 8
STEADY = 0.9
"""Share that darkest and brightest weight keep of the frame before: each frame on its own would flicker."""
SMALLEST = 200
"""Pixels of the shorter side; what the network sees at less is enlarged."""
GAP = 8


@dataclass(frozen=True)
class VideoWish:
    """What videos should be like.

    Attributes:
        shows: frame beside overlay, or one of overlay and map.
        format: None for MP4, or GIF where the video is one.
        fps: of folders of frames.
        max_frames: None for all.
    """

    shows: Literal["both", "overlay", "map"]
    format: Literal["mp4", "gif"] | None
    fps: float | None
    max_frames: int | None


def draw_video(item: Input, reader: Reader, wish: Wish, video_wish: VideoWish) -> tuple[Entry, str | None]:
    """Write a video for each block, the mean over the heads, while the frames are read; and say where it broke off.

    Raises:
        BrokenImage: there is not one frame that can be read.
        RunError, UsageError: as `attention_images.read_attention`.
    """
    folder = wish.folder / item.name
    folder.mkdir(parents=True, exist_ok=True)
    suffix = video_wish.format or ("gif" if item.path.suffix.lower() == ".gif" else "mp4")
    several = len(wish.blocks) > 1
    paths = [folder / f"attention{f'-block{block}' if several else ''}.{suffix}" for block in wish.blocks]
    with _opened(item, reader, video_wish) as video:
        first = next(video.frames, None)
        if first is None:
            raise BrokenImage(printable(item.path), "no frame in it")
        total = min(video.num_frames, video_wish.max_frames or video.num_frames)
        frames = _Unbroken(first, islice(video.frames, video_wish.max_frames and video_wish.max_frames - 1))
        with ExitStack() as stack, progress(total, "frames") as advance:
            painters = [
                _Painter(block, stack.enter_context(write_video(path, video.rate)))
                for block, path in zip(wish.blocks, paths, strict=True)
            ]
            size = reader.input_size(first.shape[1], first.shape[0], wish)
            remaining = iter(frames)
            while batch := list(islice(remaining, FRAMES_AT_ONCE)):
                _paint(batch, size, painters, reader, wish=wish, shows=video_wish.shows)
                advance(len(batch))
    return Entry(str(item.name), paths), frames.broken


@dataclass
class _Painter:
    """One block's video.

    Attributes:
        ends: the weights that are dark and bright; None before the first frame.
    """

    block: int
    write: Callable[[Frame], None]
    ends: Float[Tensor, "2 1 1"] | None = None

    def steady(self, weights: Float[Tensor, "h w"]) -> Float[Tensor, "h w"]:
        """The weights as values in [0, 1], between ends that move slowly."""
        now = heat.limits(weights)
        self.ends = now if self.ends is None else STEADY * self.ends + (1 - STEADY) * now
        return heat.between(weights, self.ends)


class _Unbroken:
    """Frames up to where the video is damaged.

    Attributes:
        broken: what is wrong there.
    """

    def __init__(self, first: Frame, others: Iterable[Frame]) -> None:
        self.first = first
        self.others = others
        self.broken: str | None = None

    def __iter__(self) -> Iterator[Frame]:
        yield self.first
        try:
            yield from self.others
        except BrokenImage as error:
            self.broken = f"{error}; the frames before are drawn"


@contextmanager
def _opened(item: Input, reader: Reader, video_wish: VideoWish) -> Iterator[Video]:
    if item.frames:
        frames = (decode(read(path), printable(path)).pixels for path in item.frames)
        yield Video(Fraction(video_wish.fps or 25).limit_denominator(1001), len(item.frames), frames)
        return
    with open_video(item.path) as video:
        yield video


def _paint(
    frames: list[Frame],
    size: tuple[int, int],
    painters: list[_Painter],
    reader: Reader,
    *,
    wish: Wish,
    shows: Literal["both", "overlay", "map"],
) -> None:
    """Send some frames through the network and write what each painter makes of them."""
    seen = [resized(with_channels(frame, reader.encoder.channels, "video"), *size) for frame in frames]
    enlarge = max(1, -(-SMALLEST // min(size)))
    shown = [as_rgb(resized(frame, *(side * enlarge for side in size)).permute(1, 2, 0).numpy()) for frame in frames]
    for painter in painters:
        attention, _ = reader.attention(torch.stack(seen), painter.block)
        maps = attention_from(attention, wish.query or default_query(attention))[:, wish.heads_of(attention)]
        for frame, weights in zip(shown, maps.mean(1).float().cpu(), strict=True):
            values = heat.enlarged(painter.steady(weights), frame.shape[:2], wish.upsampling)
            painter.write(_picture(frame, values, shows))


def _picture(
    frame: Frame, values: Float[Tensor, "h w"], shows: Literal["both", "overlay", "map"]
) -> UInt8[np.ndarray, "h across 3"]:
    match shows:
        case "map":
            return heat.coloured(values)
        case "overlay":
            return heat.overlaid(frame, values)
        case "both":
            between = np.zeros((len(frame), GAP, 3), np.uint8)
            return np.concatenate([frame, between, heat.overlaid(frame, values)], axis=1)
