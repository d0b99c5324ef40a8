"""Keys (epoch, index) -> batches of views, by threads, and by processes that have threads.

Decoding and rendering release the GIL, so that threads write the views of a batch into one array side by side.
What a batch holds depends on its keys alone, never on who made it.
"""

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import torch
from jaxtyping import Shaped, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from dino_ssl.data import render_fused
from dino_ssl.data.crops import MultiCrop
from dino_ssl.data.decoding import BrokenImage, Decoded
from dino_ssl.data.order import Keys
from dino_ssl.data.sources import Source, load
from dino_ssl.data.streams import Purpose, stream
from dino_ssl.data.worker_signals import leave_signals_to_parent

MAX_REPLACEMENTS = 64
AHEAD = 2  # batches that are made while one is used
PADDING = 64  # pixels: sides of a batch of whole images are multiples, so that few shapes occur
MAX_WASTE, PADDED_AT_LEAST = 4, 2**26
"""A batch of whole images takes at most so many times the bytes of its images, and 64 MiB."""
BOX_GRID = 256  # boxes of shrunk images end on this fraction of a pixel, which floats hold exactly

Render = Callable[[np.ndarray, np.ndarray, np.ndarray], None]
"""Pixels [h, w, c] and drawn views [v] of one image, and room for the result [v, c, s, s]."""


@dataclass(frozen=True)
class Batch:
    """One micro-batch of one rank: views, or whole images and how to render their views on the device.

    Attributes:
        views: the global crops, then the local crops if there are any; bytes, view-major. Empty if whole images
            come instead, or if an image found no replacement.
        broken: (file, reason) of each image that could not be read and was replaced by another.
        indices: of the images that the views are of, in their source.
        images: whole images, padded with zeros at the right and the bottom.
        drawn: VIEW, [v, b]; for `images` only.
    """

    views: list[UInt8[Tensor, "_v b c _s _s"]]
    broken: list[tuple[str, str]]
    indices: list[int]
    images: UInt8[Tensor, "b h w c"] | None = None
    drawn: Shaped[np.ndarray, "v b"] | None = None

    def pin_memory(self) -> "Batch":
        images = None if self.images is None else self.images.pin_memory()
        return replace(self, views=[view.pin_memory() for view in self.views], images=images)


@dataclass(frozen=True)
class CropDataset(Dataset[Batch]):
    """Batches of views for keys; an unreadable image is replaced by a random other one.

    Args:
        render: None leaves rendering to the device.
        num_threads: threads per process; 0 works in the caller's.
        enough_pixels: see `decoding.decode`; infinity decodes whole images, as the original does.
    """

    source: Source
    crops: MultiCrop
    seed: int
    channels: int
    render: Render | None
    enough_pixels: float
    num_threads: int = 0

    def __getitem__(self, keys: Keys) -> Batch:
        """The micro-batch of these keys; what a worker process calls."""
        return start(self, keys, _pool_of_process(self.num_threads))()

    def decoded(self, epoch: int, index: int) -> tuple[Decoded | None, int, list[tuple[str, str]]]:
        """The image of a key or its replacement, its index, and (file, reason) of those that could not be read."""
        broken: list[tuple[str, str]] = []
        for candidate in self._candidates(epoch, index):
            try:
                image = load(self.source, candidate, channels=self.channels, enough_pixels=self.enough_pixels)
            except BrokenImage as error:
                broken.append((self.source.describe(candidate), error.reason))
            else:
                return image, candidate, broken
        return None, index, broken

    def drawn(self, image: Decoded, epoch: int, index: int) -> Shaped[np.ndarray, " v"]:
        """The key's views of that image, in its pixels."""
        views = self.crops.draw(stream(self.seed, Purpose.CROPS, epoch, index), image.width, image.height)
        if image.scale() != (1.0, 1.0):
            _shrink_boxes(views["box"], image)
        return views

    def _candidates(self, epoch: int, index: int) -> Iterator[int]:
        yield index
        others = stream(self.seed, Purpose.REPLACEMENT, epoch, index)
        for _ in range(MAX_REPLACEMENTS):
            yield int(others.integers(len(self.source)))


def _shrink_boxes(boxes: Shaped[np.ndarray, "v 4"], image: Decoded) -> None:
    """From pixels of the whole image to those of the shrunk one, none beyond its edge."""
    scale = np.array(image.scale())
    first = np.floor(boxes[:, :2] * scale * BOX_GRID) / BOX_GRID
    last = np.rint((boxes[:, :2] + boxes[:, 2:]) * scale * BOX_GRID) / BOX_GRID
    height, width, _ = image.pixels.shape
    boxes[:, :2], boxes[:, 2:] = first, np.minimum(last, (width, height)) - first


def start(dataset: CropDataset, keys: Keys, pool: ThreadPoolExecutor | None) -> Callable[[], Batch]:
    """Begin a micro-batch in the pool's threads; the result waits for it."""
    rooms = [] if dataset.render is None else _rooms(dataset, len(keys))

    def work(places: range) -> list[_Made]:
        return [_make(dataset, *keys[place], [room.numpy()[:, place] for room in rooms]) for place in places]

    if pool is None:
        return lambda: _assemble(dataset, rooms, work(range(len(keys))))
    futures = [pool.submit(work, places) for places in _portions(len(keys), dataset.num_threads)]
    return lambda: _assemble(dataset, rooms, [made for future in futures for made in _result(future, futures)])


def _rooms(dataset: CropDataset, num_images: int) -> list[UInt8[Tensor, "_v b c _s _s"]]:
    groups = dataset.crops.groups
    return [_room(views.stop - views.start, num_images, dataset.channels, size, size) for views, size in groups]


@dataclass(frozen=True)
class _Made:
    """What became of one key; the image and its views only if they are to be rendered later."""

    found: bool
    index: int
    broken: list[tuple[str, str]]
    pixels: UInt8[np.ndarray, "h w c"] | None = None
    views: Shaped[np.ndarray, " v"] | None = None


def _make(dataset: CropDataset, epoch: int, index: int, rooms: Sequence[UInt8[np.ndarray, "_v c _s _s"]]) -> _Made:
    image, used, broken = dataset.decoded(epoch, index)
    if image is None:
        return _Made(False, used, broken)
    views = dataset.drawn(image, epoch, index)
    if dataset.render is None:
        return _Made(True, used, broken, image.pixels, views)
    for (group, _), room in zip(dataset.crops.groups, rooms, strict=True):
        dataset.render(image.pixels, views[group], room)
    return _Made(True, used, broken)


def _assemble(dataset: CropDataset, rooms: list[Tensor], made: list[_Made]) -> Batch:
    broken = [entry for one in made for entry in one.broken]
    if not all(one.found for one in made):
        return Batch([], broken, [])
    indices = [one.index for one in made]
    if rooms:
        return Batch(rooms, broken, indices)
    drawn = np.stack([one.views for one in made if one.views is not None], axis=1)
    images = [one.pixels for one in made if one.pixels is not None]
    if math.prod(padded_shape(images)) > MAX_WASTE * sum(image.size for image in images) + PADDED_AT_LEAST:
        return Batch(_rendered_here(dataset, images, drawn), broken, indices)
    return Batch([], broken, indices, padded(images), drawn)


def _rendered_here(
    dataset: CropDataset, images: list[UInt8[np.ndarray, "_h _w c"]], drawn: Shaped[np.ndarray, "v b"]
) -> list[UInt8[Tensor, "_v b c _s _s"]]:
    """Views by the CPU, of a batch in which wide and tall images would blow each other up."""
    rooms = _rooms(dataset, len(images))
    for place, image in enumerate(images):
        for (group, _), room in zip(dataset.crops.groups, rooms, strict=True):
            render_fused.render(image, drawn[group, place], room.numpy()[:, place])
    return rooms


def padded_shape(images: Sequence[UInt8[np.ndarray, "_h _w c"]]) -> tuple[int, int, int, int]:
    """Images, and height, width and channels that hold each of them."""
    height, width = (-(-max(image.shape[axis] for image in images) // PADDING) * PADDING for axis in (0, 1))
    return len(images), height, width, images[0].shape[2]


def padded(images: Sequence[UInt8[np.ndarray, "_h _w c"]]) -> UInt8[Tensor, "b h w c"]:
    """Images of several sizes in one array, zeros at the right and the bottom."""
    batch = _room(*padded_shape(images)).zero_()
    for place, image in zip(batch.numpy(), images, strict=True):
        place[: image.shape[0], : image.shape[1]] = image
    return batch


def _room(*shape: int) -> UInt8[Tensor, "..."]:
    """Uninitialised bytes; in a worker process in shared memory, so that they travel without a copy."""
    if get_worker_info() is None:
        return torch.empty(shape, dtype=torch.uint8)
    storage = torch.UntypedStorage._new_shared(int(np.prod(shape)))
    return torch.empty(0, dtype=torch.uint8).set_(storage).reshape(shape)


def _portions(length: int, num_threads: int) -> list[range]:
    """Four portions for each thread, so that none waits long for the slowest."""
    size = max(1, length // (4 * num_threads))
    return [range(first, min(first + size, length)) for first in range(0, length, size)]


def _result(future: "Future[list[_Made]]", all_of_batch: "list[Future[list[_Made]]]") -> list[_Made]:
    try:
        return future.result()
    except BaseException:
        for other in all_of_batch:
            other.cancel()
        raise


@cache
def _pool_of_process(num_threads: int) -> ThreadPoolExecutor | None:
    """A worker process's own threads, which it keeps from batch to batch."""
    return ThreadPoolExecutor(num_threads) if num_threads else None


@dataclass(frozen=True)
class Workers:
    """Who makes batches: `threads` in each of `processes`; 0 processes are the caller's own, 0 threads its own."""

    processes: int
    threads: int

    @property
    def total(self) -> int:
        return max(1, self.processes) * self.threads or self.processes


def batches(dataset: CropDataset, order: Iterable[Keys], workers: Workers, *, pin_memory: bool) -> Iterator[Batch]:
    """This rank's micro-batches in order; the same whatever the number of workers.

    Threads of the caller's process share its GIL with the training: with many, processes of their own are better.
    """
    dataset = replace(dataset, num_threads=workers.threads)
    if workers.processes == 0:
        made = _ahead(dataset, order)
        return (batch.pin_memory() for batch in made) if pin_memory else made
    loader: DataLoader[Batch] = DataLoader(
        dataset,
        batch_size=None,
        sampler=order,
        num_workers=workers.processes,
        pin_memory=pin_memory,
        prefetch_factor=AHEAD,
        worker_init_fn=leave_signals_to_parent,
        # A generator of its own: the loader's worker seeds must not move the global random state.
        generator=torch.Generator(),
    )
    return iter(loader)


def _ahead(dataset: CropDataset, order: Iterable[Keys]) -> Iterator[Batch]:
    if dataset.num_threads == 0:
        yield from (start(dataset, keys, None)() for keys in order)
        return
    pool, begun = ThreadPoolExecutor(dataset.num_threads), deque[Callable[[], Batch]]()
    try:
        for keys in order:
            begun.append(start(dataset, keys, pool))
            if len(begun) > AHEAD:
                yield begun.popleft()()
        while begun:
            yield begun.popleft()()
    finally:
        pool.shutdown(cancel_futures=True)
