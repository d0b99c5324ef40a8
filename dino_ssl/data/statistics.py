"""What a data set is made of: sizes, formats, colours, broken images and copies."""

import io
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
from jaxtyping import Float64, Int64, Shaped
from PIL import Image

from dino_ssl.data.decoding import FORMATS, BrokenImage, Raw, bands, decode
from dino_ssl.data.sources import Source

SMALL_SIDES = (224, 96)
"""Sides of the paper's crops, pixels: smaller images are magnified."""
HASH_SIZE = 8


@dataclass(frozen=True)
class Seen:
    """One image, as far as it counts."""

    index: int
    encoding: str
    """The file's format, or `pixels`."""
    mode: str
    """What the pixels of the file are (PIL's name), or their number of channels."""
    width: int
    height: int
    histogram: Int64[np.ndarray, "c 256"]
    """Of the decoded pixels, per channel."""
    pixels_hash: bytes
    difference_hash: int


@dataclass(frozen=True)
class Unreadable:
    """One image that could not be read."""

    name: str
    reason: str


@dataclass(frozen=True)
class Spread:
    """Of sizes, pixels."""

    smallest: int
    median: float
    largest: int


@dataclass(frozen=True)
class Statistics:
    """What was found among the images that were looked at."""

    num_seen: int
    channels: int
    width: Spread
    height: Spread
    share_below: dict[int, float]
    """Side in pixels -> share of images whose shorter side is smaller."""
    encodings: dict[str, int]
    modes: dict[str, int]
    mean: list[float]
    """Per channel over all pixels, in [0, 1]."""
    std: list[float]
    broken: list[Unreadable]
    copies: list[list[int]]
    """Groups of images (indices) with equal pixels."""
    lookalikes: list[list[int]]
    """Groups with equal difference hash, of each group of copies the first."""
    readable: Int64[np.ndarray, " r"]
    """Indices of the images that could be read."""


def examine(source: Source, indices: Sequence[int], *, channels: int, threads: int) -> Iterator[Seen | Unreadable]:
    """Read and decode images, in order, several at a time; never more than a few dozen are held."""

    def look(index: int) -> Seen | Unreadable:
        return look_at(source, index, channels)

    together = 16 * threads
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(indices), together):
            yield from pool.map(look, indices[start : start + together])


def look_at(source: Source, index: int, channels: int) -> Seen | Unreadable:
    """Read and decode one image; `channels` as in `decoding.decode`."""
    name = source.describe(index)
    try:
        raw = source.raw(index)
        decoded = decode(raw, name, channels=channels)
    except BrokenImage as error:
        return Unreadable(name, error.reason)
    encoding, mode = _encoding(raw)
    images = bands(decoded.pixels)
    digest = blake2b(repr(decoded.pixels.shape).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(decoded.pixels).data)
    return Seen(
        index=index,
        encoding=encoding,
        mode=mode,
        width=decoded.width,
        height=decoded.height,
        histogram=np.array([image.histogram() for image in images], np.int64).reshape(-1, 256),
        pixels_hash=digest.digest(),
        difference_hash=difference_hash(images[0]),
    )


def difference_hash(image: Image.Image) -> int:
    """64 bits that stay when an image is resized, encoded anew or made a little brighter.

    One for each of 8 x 8 places at which the grey image, shrunk to 9 x 8 pixels, grows brighter to the right.

    Source: N. Krawetz 2013, "Kind of Like That".
    """
    small = image.resize((HASH_SIZE + 1, HASH_SIZE), Image.Resampling.BOX).convert("L")
    grey = np.asarray(small)
    return int.from_bytes(np.packbits(grey[:, 1:] > grey[:, :-1]).tobytes(), "big")


def _encoding(raw: Raw) -> tuple[str, str]:
    """Format and mode of an image that could be decoded."""
    if not isinstance(raw, bytes):
        return "pixels", f"{raw.shape[2]} channels"
    with Image.open(io.BytesIO(raw), formats=FORMATS) as image:
        return image.format or "", image.mode


def summarise(found: Iterator[Seen | Unreadable], channels: int) -> Statistics:
    """Count what `examine` found.

    Raises:
        ValueError: no image could be read.
    """
    indices, widths, heights, looks = array("q"), array("q"), array("q"), array("Q")
    hashes, broken = bytearray(), []
    encodings: Counter[str] = Counter()
    modes: Counter[str] = Counter()
    histogram = np.zeros((channels, 256), np.int64)
    for image in found:
        if isinstance(image, Unreadable):
            broken.append(image)
            continue
        indices.append(image.index)
        widths.append(image.width)
        heights.append(image.height)
        looks.append(image.difference_hash)
        hashes += image.pixels_hash
        encodings[image.encoding] += 1
        modes[image.mode] += 1
        histogram += image.histogram
    if not indices:
        raise ValueError(f"none of the {len(broken)} images could be read; the first: {broken[0].reason}")
    readable, sides = np.array(indices, np.int64), np.minimum(widths, heights)
    copies, first = _groups(np.frombuffer(hashes, "S16"))
    lookalikes, _ = _groups(np.array(looks, np.uint64)[first])
    mean, std = _moments(histogram)
    return Statistics(
        num_seen=len(readable) + len(broken),
        channels=channels,
        width=_spread(np.array(widths, np.int64)),
        height=_spread(np.array(heights, np.int64)),
        share_below={side: float((sides < side).mean()) for side in SMALL_SIDES},
        encodings=dict(encodings.most_common()),
        modes=dict(modes.most_common()),
        mean=mean.tolist(),
        std=std.tolist(),
        broken=broken,
        copies=[readable[group].tolist() for group in copies],
        lookalikes=[readable[first[group]].tolist() for group in lookalikes],
        readable=readable,
    )


def _groups(
    keys: Shaped[np.ndarray, " n"],
) -> tuple[list[Int64[np.ndarray, " g"]], Int64[np.ndarray, " different"]]:
    """Places that share a key, the largest group first; and of each key the first place, in order."""
    order = np.argsort(keys, kind="stable").astype(np.int64)
    starts = np.flatnonzero(np.concatenate(([True], keys[order][1:] != keys[order][:-1])))
    ends = np.append(starts[1:], len(order))
    together = [order[starts[i] : ends[i]] for i in np.flatnonzero(ends - starts > 1)]
    return sorted(together, key=lambda group: (-len(group), group[0])), np.sort(order[starts])


def _spread(sizes: Int64[np.ndarray, " r"]) -> Spread:
    return Spread(int(sizes.min()), float(np.median(sizes)), int(sizes.max()))


def _moments(histogram: Int64[np.ndarray, "c 256"]) -> tuple[Float64[np.ndarray, " c"], Float64[np.ndarray, " c"]]:
    """Mean and standard deviation of values of which 255 is 1."""
    values, num = np.arange(256) / 255, histogram.sum(axis=1)
    mean = histogram @ values / num
    return mean, np.sqrt((histogram * (values - mean[:, None]) ** 2).sum(axis=1) / num)


def spread(length: int, most: int) -> Sequence[int]:
    """Up to `most` of range(length), evenly spread, in order."""
    if most >= length:
        return range(length)
    places: list[int] = np.linspace(0, length - 1, most).round().astype(np.int64).tolist()
    return places
