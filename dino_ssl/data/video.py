"""Frames of videos, one by one: MP4 and whatever else FFmpeg knows through PyAV, animated GIF through Pillow."""

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageSequence

from dino_ssl.data.decoding import BrokenImage, printable, read
from dino_ssl.errors import UsageError

EXTENSIONS = ("mp4", "m4v", "mov", "mkv", "webm", "avi", "mpg", "mpeg", "ogv")
"""What the name of a video ends with, in either case; a GIF is one if it moves."""
FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,mpegvideo,ogg"
"""FFmpeg's names of what such files are inside; it goes by the content, and would follow a play list."""
QUALITY = "18"
"""x264's constant rate factor: 0 lossless, 51 worst; at 18 most eyes see no difference."""
BROWSERS_PAUSE = 100
"""Milliseconds that a GIF's frame stays where the file says 0."""

Frame = UInt8[np.ndarray, "h w 3"]


@dataclass(frozen=True)
class Video:
    """A video that is being read.

    Attributes:
        rate: frames per second, the mean where it varies.
        num_frames: 0 where the file does not say.
        frames: upright; raises BrokenImage where the file is damaged.
    """

    rate: Fraction
    num_frames: int
    frames: Iterator[Frame]


def is_video(path: Path) -> bool:
    """Whether a file is read as a video: by its name, a GIF by its number of frames."""
    if path.suffix.lower() != ".gif":
        return path.suffix.lower().removeprefix(".") in EXTENSIONS
    try:
        with Image.open(path, formats=("GIF",)) as image:
            return bool(image.is_animated)  # type: ignore[attr-defined]  # of this format's class
    except Exception:  # a damaged one is reported when it is read as an image
        return False


@contextmanager
def open_video(path: Path) -> Iterator[Video]:
    """Read a video; the frames are valid inside.

    Raises:
        BrokenImage: no video, or without frames, or damaged at its beginning.
        UsageError: PyAV is not installed and the file is no GIF.
    """
    if path.suffix.lower() == ".gif":
        image, num_frames = _open_gif(path)
        with image:
            pause = int(image.info.get("duration", 0)) or BROWSERS_PAUSE
            yield Video(Fraction(1000, pause), num_frames, _frames_of_gif(image, path))
        return
    av = _av(path)
    try:
        # As a file, whatever the name looks like, and in no format that leads to other files or to the network.
        container = av.open(f"file:{path}", options={"format_whitelist": FORMATS, "protocol_whitelist": "file"})
    except (av.error.FFmpegError, OSError) as error:
        raise BrokenImage(printable(path), f"no video that can be read: {error.strerror}") from None
    with container:
        if not container.streams.video:
            raise BrokenImage(printable(path), "there is no picture in it")
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        rate = Fraction(stream.average_rate or stream.guessed_rate or 25)
        yield Video(rate, stream.frames, _frames(av, container, path))


@contextmanager
def write_video(path: Path, rate: Fraction) -> Iterator[Callable[[Frame], None]]:
    """Write frames of one size, of which all but GIF's go straight to the disk; the file appears at the end.

    An odd width or height grows by a pixel in MP4, as H.264 needs it. A GIF keeps its frames, a byte per pixel, in
    memory until the end; it counts time in hundredths of a second.

    Args:
        path: ends with .mp4 or .gif.
    Raises:
        UsageError: PyAV is not installed and the file is to be no GIF.
    """
    unfinished = path.with_name(path.name + ".tmp")
    writer = _gif_writer if path.suffix == ".gif" else _mp4_writer
    try:
        with writer(unfinished, rate) as write:
            yield write
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


@contextmanager
def _mp4_writer(path: Path, rate: Fraction) -> Iterator[Callable[[Frame], None]]:
    av = _av(path)
    with av.open(str(path), "w", format="mp4", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": QUALITY})
        stream.pix_fmt = "yuv420p"  # what browsers play

        def write(pixels: Frame) -> None:
            even = _even(pixels)
            if not stream.codec_context.is_open:
                stream.height, stream.width = even.shape[:2]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(even, format="rgb24")))

        yield write
        container.mux(stream.encode(None))


@contextmanager
def _gif_writer(path: Path, rate: Fraction) -> Iterator[Callable[[Frame], None]]:
    frames: list[Image.Image] = []
    yield lambda pixels: frames.append(Image.fromarray(pixels).quantize())
    if frames:
        pause = max(20, 10 * round(100 / rate))  # browsers slow down what claims to be faster
        frames[0].save(path, format="GIF", save_all=True, append_images=frames[1:], duration=pause, loop=0)


def _even(pixels: Frame) -> UInt8[np.ndarray, "even_h even_w 3"]:
    height, width, _ = pixels.shape
    return np.pad(pixels, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")


def _frames(av: Any, container: Any, path: Path) -> Iterator[Frame]:
    try:
        for frame in container.decode(video=0):
            pixels = frame.to_ndarray(format="rgb24")
            # How the phone was held, in degrees against the clock.
            yield np.ascontiguousarray(np.rot90(pixels, round(frame.rotation / 90)))
    except av.error.FFmpegError as error:
        raise BrokenImage(printable(path), f"damaged: {error.strerror}") from None


def _open_gif(path: Path) -> tuple[Image.Image, int]:
    """The image, and how many frames it has, for which it is read to its end."""
    try:
        image = Image.open(io.BytesIO(read(path)), formats=("GIF",))
        return image, int(image.n_frames)  # type: ignore[attr-defined]  # of this format's class
    except BrokenImage:
        raise
    except Exception as error:  # decoders of damaged bytes raise whatever their parser stumbles over
        raise BrokenImage(printable(path), f"no GIF that can be read: {error}") from None


def _frames_of_gif(image: Image.Image, path: Path) -> Iterator[Frame]:
    try:
        for frame in ImageSequence.Iterator(image):
            layer = frame.convert("RGBA")
            yield np.asarray(Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB"))
    except Exception as error:
        raise BrokenImage(printable(path), f"damaged: {error}") from None


def _av(path: Path) -> Any:
    try:
        import av  # noqa: PLC0415  (an extra)
    except ModuleNotFoundError as error:
        raise UsageError(f"{printable(path)}: videos need PyAV; pip install 'dino-ssl[video]', or use GIF") from error
    return av
