"""A few images of a source to look at."""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import islice

import numpy as np
from jaxtyping import UInt8

from dino_ssl.data.decoding import BrokenImage
from dino_ssl.data.sources import Source, load


def examples(source: Source, channels: int, number: int) -> list[UInt8[np.ndarray, "_h _w c"]]:
    """Images spread over the data set; in the place of a broken one, others."""
    gap = max(1, len(source) // number)
    order = (index for offset in range(gap) for index in range(offset, len(source), gap))
    return list(islice(_readable(source, order, channels), number))


def _readable(source: Source, order: Iterable[int], channels: int) -> Iterator[UInt8[np.ndarray, "_h _w c"]]:
    for index in order:
        with suppress(BrokenImage):
            yield load(source, index, channels=channels).pixels
