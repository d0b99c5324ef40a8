"""Images of a source in the order in which they go into shards, encoded ahead by several threads."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from dino_ssl.data.decoding import BrokenImage
from dino_ssl.data.sources import Source
from dino_ssl.data.tar.reencoding import SUBSAMPLING, ImageFile, reduced, unchanged

AHEAD = 4  # images per thread that are prepared before they are asked for
CHUNK = 4096  # positions whose images are looked up together

Order = Callable[[Int64[np.ndarray, " p"]], Int64[np.ndarray, " p"]]
"""Positions in the order -> indices of the images there."""


@dataclass(frozen=True)
class Sample:
    """What goes into a shard: a key, and contents by extension."""

    key: str
    contents: dict[str, bytes]


Prepared = Sample | tuple[str, str]
"""A sample; or name of an image that cannot be read, and the reason."""


@dataclass(frozen=True)
class Packing:
    """How to pack.

    Attributes:
        pattern: name of a shard, with the place of its number as %06d.
        shard_bytes: longest a shard may get, unless it holds one sample only; None: no limit.
        shard_samples: samples in a shard; None: no limit.
        short_side: pixels, see `reencoding.reduced`; None: the bytes stay as they are.
        quality: of the JPEGs that are written, 1 to 100.
        seed: of the order, not negative.
    """

    folder: Path
    pattern: str
    shard_bytes: int | None
    shard_samples: int | None
    short_side: int | None
    quality: int
    seed: int
    threads: int

    @property
    def encoding(self) -> str:
        """What is done to the images, for people."""
        if self.short_side is None:
            return "images as they were, pixels as PNG"
        return (
            f"JPEG quality {self.quality}, colours {SUBSAMPLING}, short side at most {self.short_side} "
            "pixels (antialiased bicubic); JPEGs that were small enough are as they were"
        )


class Images:
    """The source's images in order, encoded ahead by threads.

    Attributes:
        position: of the next image, in the order.
    """

    def __init__(self, source: Source, packing: Packing, order: Order, pool: ThreadPoolExecutor) -> None:
        self.position = 0
        self._source, self._packing, self._order, self._pool = source, packing, order, pool
        self._ahead: deque[Future[Prepared]] = deque()
        self._begin, self._indices = 0, np.empty(0, np.int64)

    def go_to(self, position: int) -> None:
        """Continue elsewhere."""
        if position != self.position:
            self.cancel()
            self.position = position

    def cancel(self) -> None:
        """Forget what was prepared."""
        for future in self._ahead:
            future.cancel()
        self._ahead.clear()

    def next(self) -> Prepared | None:
        """The image at `position`, which stays there until `take`; None at the end."""
        begin = self.position + len(self._ahead)
        for position in range(begin, min(self.position + AHEAD * self._packing.threads, len(self._source))):
            self._ahead.append(self._pool.submit(self._prepare, self._index(position)))
        return self._ahead[0].result() if self._ahead else None

    def _index(self, position: int) -> int:
        # Many at a time: for one, the order costs as much as an image.
        if not self._begin <= position < self._begin + len(self._indices):
            self._begin = position
            self._indices = self._order(np.arange(position, min(position + CHUNK, len(self._source))))
        return int(self._indices[position - self._begin])

    def take(self) -> None:
        """Move on by one."""
        self._ahead.popleft()
        self.position += 1

    def _prepare(self, index: int) -> Prepared:
        name = self._source.describe(index)
        try:
            image = encoded(self._source, index, self._packing.short_side, self._packing.quality)
        except BrokenImage as error:
            return name, error.reason
        sample = {image.extension: image.data}
        if self._source.labels is not None:
            sample["cls"] = str(int(self._source.labels[index])).encode()
        digits = max(6, len(str(len(self._source) - 1)))
        return Sample(f"{index:0{digits}d}", sample)


def encoded(source: Source, index: int, short_side: int | None, quality: int) -> ImageFile:
    """An image as a file; arguments as of `Packing`.

    Raises:
        BrokenImage: it cannot be read.
    """
    name = source.describe(index)
    raw = source.raw(index)
    return unchanged(raw, name) if short_side is None else reduced(raw, name, short_side, quality)
