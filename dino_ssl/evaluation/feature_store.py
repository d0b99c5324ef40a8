"""Features of a whole source, in parts that lie on the disk: at once cache, resuming, and sharing among ranks."""

import hashlib
import json
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from dino_ssl.data.sources import Source, content, stamp
from dino_ssl.durable import naming, write_atomically
from dino_ssl.errors import RunError
from dino_ssl.evaluation.features import Extractor, Features, joined
from dino_ssl.evaluation.readouts import POOLED, Readout
from dino_ssl.models.encoder import Encoder

T = TypeVar("T")
VERSION = 2
"""Changes whenever the same images and weights would give other features."""
# What a killed job loses at most, and what ranks share out: small, but for fewer than 1,300 files of ImageNet.
PART_IMAGES = 1024
NUM_LOOKED_AT = 16
"""Images whose bytes tell two sources apart that name theirs alike."""


@dataclass(frozen=True)
class Extraction:
    """Everything that features depend on, and how they are computed.

    Attributes:
        precision: autocast to this type; None computes as the weights are.
        batch_size: images at once.
        num_workers: processes that read images; 0 reads in this one.
    """

    encoder: Encoder
    source: Source
    device: torch.device
    readout: Readout = POOLED
    precision: torch.dtype | None = None
    batch_size: int = 64
    num_workers: int = 0

    def key(self) -> str:
        """Name of their place in a cache: of weights, data, transform and type, not of where any of these lie."""
        encoder = self.encoder
        parts = (
            *(VERSION, encoder.name, encoder.digest, encoder.size, encoder.center_crop, encoder.mean, encoder.std),
            *(self.source.fingerprint(), content(self.source, NUM_LOOKED_AT), len(self.source)),
            *(self.readout.name, str(self.precision), PART_IMAGES),
        )
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]

    def parts(self, numbers: Sequence[int], advance: Callable[[int], object]) -> Iterator[Features]:
        """Compute these parts; one may have no image that can be read."""
        encoder = self.encoder
        extractor = Extractor(
            cast(nn.Module, encoder.backbone).to(self.device), encoder.size, encoder.center_crop,
            encoder.mean, encoder.std, self.device, self.readout, self.precision, self.batch_size, self.num_workers,
        )  # fmt: skip
        return extractor.parts(self.source, [self.images(number) for number in numbers], advance)

    def images(self, part: int) -> range:
        """Where the images of a part stand in the source."""
        return range(part * PART_IMAGES, min((part + 1) * PART_IMAGES, len(self.source)))

    @property
    def num_parts(self) -> int:
        return -(-len(self.source) // PART_IMAGES)


@dataclass(frozen=True)
class Share:
    """This process among those that work together.

    Attributes:
        gather: a value of each process, in the order of their ranks, on every one.
    """

    rank: int = 0
    world_size: int = 1
    gather: Callable[[Any], list[Any]] = lambda value: [value]

    def of(self, number: int, *, unit: int = 1) -> slice:
        """This process's part of so many things, in whole units but for the last."""
        units = -(-number // unit)
        first, last = (units * rank // self.world_size * unit for rank in (self.rank, self.rank + 1))
        return slice(min(first, number), min(last, number))

    def each(self, work: Callable[[], T]) -> list[T]:
        """What every process makes; if it goes wrong on one, on all, so that none waits for another for ever."""
        try:
            made: T | RunError = work()
        except RunError as error:
            made = error
        gathered = self.gather(made)
        for one in gathered:
            if isinstance(one, RunError):
                raise one
        return gathered


def features_of(
    extraction: Extraction,
    cache: Path | None = None,
    share: Share | None = None,
    advance: Callable[[int], object] = lambda count: None,
) -> Features:
    """Features of every image that can be read, once each, on every process.

    A part that lies whole in the cache is read; one that is missing, damaged, or of files that have changed is
    computed and written.

    Args:
        cache: folder, which all processes see; None keeps nothing, and the processes exchange their parts.
        advance: called with numbers of images, as they are done.
    Raises:
        RunError: no image can be read, or the cache cannot be written.
        DivergedError: a feature is not finite.
    """
    share = share or Share()
    mine = range(share.rank, extraction.num_parts, share.world_size)
    if cache is None:
        made = share.each(lambda: dict(zip(mine, extraction.parts(mine, advance), strict=True)))
        parts = {number: part for of_rank in made for number, part in of_rank.items()}
    else:
        stored = _Stored(extraction, cache / extraction.key())
        own: dict[int, Features] = {}
        share.each(lambda: own.update(stored.completed(mine, advance)))
        parts = {number: own.get(number) or stored.written(number) for number in range(extraction.num_parts)}
    return joined([parts[number] for number in range(extraction.num_parts)], extraction.source)


@dataclass(frozen=True)
class _Stored:
    """The parts of one extraction in their folder."""

    extraction: Extraction
    folder: Path

    def completed(self, numbers: Sequence[int], advance: Callable[[int], object]) -> dict[int, Features]:
        """These parts: read, or computed and written."""
        with naming(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        stamps = {number: self._stamp(number) for number in numbers}
        found = {number: part for number in numbers if (part := self._read(number, stamps[number]))}
        for part in found.values():
            advance(len(part.indices) + part.num_broken)
        missing = [number for number in numbers if number not in found]
        for number, part in zip(missing, self.extraction.parts(missing, advance), strict=True):
            self._write(number, part, stamps[number])
            found[number] = part
        return found

    def written(self, number: int) -> Features:
        """What another process has just written."""
        part = self._read(number, None)
        if part is None:
            path = self._file(number)
            raise RunError(f"{path} is damaged or missing; --cache must name a folder that all ranks see")
        return part

    def _stamp(self, number: int) -> str:
        return stamp(self.extraction.source, self.extraction.images(number))

    def _file(self, number: int) -> Path:
        return self.folder / f"part_{number:05d}.safetensors"

    def _write(self, number: int, part: Features, stamp: str) -> None:
        values = part.values.contiguous()
        notes = {"broken": json.dumps(part.broken), "sha256": _digest(values, part.indices), "stamp": stamp}
        data = save({"values": values, "indices": torch.from_numpy(part.indices)}, notes)
        with naming(self.folder):
            # Another command may be writing the same part.
            write_atomically(self._file(number), data, suffix=f".{secrets.token_hex(4)}.tmp")

    def _read(self, number: int, stamp: str | None) -> Features | None:
        """The part, or None where it is missing, not what was written, or of files with another stamp."""
        try:
            with safe_open(self._file(number), framework="pt") as file:
                values, indices, notes = file.get_tensor("values"), file.get_tensor("indices"), file.metadata()
            places = indices.numpy().astype(np.int64)
            broken = [(str(name), str(reason)) for name, reason in json.loads(notes["broken"])]
            is_whole = _digest(values, places) == notes["sha256"] and stamp in (None, notes["stamp"])
        except (FileNotFoundError, SafetensorError, KeyError, ValueError, TypeError, RecursionError):
            return None
        return Features(values, places, broken) if is_whole else None


def _digest(values: torch.Tensor, indices: np.ndarray) -> str:
    digest = hashlib.sha256(values.numpy().data)
    digest.update(indices.data)
    return digest.hexdigest()
