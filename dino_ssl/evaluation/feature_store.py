"""Features of a whole source, in parts that lie on the disk: at once cache, resuming, and sharing among ranks."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from dino_ssl.data.sources import Source
from dino_ssl.durable import naming, write_atomically
from dino_ssl.errors import RunError
from dino_ssl.evaluation.features import Features, extract_features, joined
from dino_ssl.evaluation.readouts import POOLED, Readout
from dino_ssl.models.encoder import Encoder

VERSION = 1
"""Changes whenever the same images and weights would give other features."""
PART_IMAGES = 8192


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
            *(VERSION, encoder.digest, encoder.size, encoder.center_crop, encoder.mean, encoder.std),
            *(self.source.fingerprint(), len(self.source), self.readout.name, str(self.precision), PART_IMAGES),
        )
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]

    def part(self, number: int, advance: Callable[[int], object]) -> Features:
        """Compute a part; it may have no image that can be read."""
        encoder = self.encoder
        first = number * PART_IMAGES
        return extract_features(
            cast(nn.Module, encoder.backbone).to(self.device), self.source,
            size=encoder.size, center_crop=encoder.center_crop, mean=encoder.mean, std=encoder.std,
            device=self.device, readout=self.readout, precision=self.precision, batch_size=self.batch_size,
            num_workers=self.num_workers, indices=range(first, min(first + PART_IMAGES, len(self.source))),
            advance=advance,
        )  # fmt: skip

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

    def of(self, number: int) -> slice:
        """This process's part of so many things."""
        return slice(number * self.rank // self.world_size, number * (self.rank + 1) // self.world_size)


def features_of(
    extraction: Extraction,
    cache: Path | None = None,
    share: Share | None = None,
    advance: Callable[[int], object] = lambda count: None,
) -> Features:
    """Features of every image that can be read, once each, on every process.

    A part that lies whole in the cache is read; one that is missing or damaged is computed and written.

    Args:
        cache: folder, which all processes see; None keeps nothing, and the processes exchange their parts.
        advance: called with numbers of images, as they are done.
    Raises:
        RunError: no image can be read, or the cache cannot be written.
        DivergedError: a feature is not finite.
    """
    share = share or Share()
    folder = None if cache is None else cache / extraction.key()
    mine = range(share.rank, extraction.num_parts, share.world_size)
    if folder is None:
        gathered = share.gather({number: extraction.part(number, advance) for number in mine})
        parts = {number: part for of_rank in gathered for number, part in of_rank.items()}
        return joined([parts[number] for number in range(extraction.num_parts)], extraction.source)
    with naming(folder):
        folder.mkdir(parents=True, exist_ok=True)
        own = {number: _cached(extraction, folder, number, advance) for number in mine}
        share.gather(None)  # until all have written
        parts = {number: own.get(number) or _written(folder, number) for number in range(extraction.num_parts)}
        return joined(list(parts.values()), extraction.source)


def _written(folder: Path, number: int) -> Features:
    """What another process has just written."""
    part = _read(_file(folder, number))
    if part is None:
        raise RunError(f"{_file(folder, number)} is damaged or missing; --cache must name a folder that all ranks see")
    return part


def _cached(extraction: Extraction, folder: Path, number: int, advance: Callable[[int], object]) -> Features:
    path = _file(folder, number)
    part = _read(path)
    if part is not None:
        advance(len(part.indices) + part.num_broken)
        return part
    part = extraction.part(number, advance)
    write_atomically(path, _bytes(part))
    return part


def _file(folder: Path, number: int) -> Path:
    return folder / f"part_{number:05d}.safetensors"


def _bytes(part: Features) -> bytes:
    values = part.values.contiguous()
    notes = {"broken": json.dumps(part.broken), "sha256": _digest(values)}
    return save({"values": values, "indices": torch.from_numpy(part.indices)}, notes)


def _read(path: Path) -> Features | None:
    """The part, or None where it is missing or not what was written."""
    try:
        with safe_open(path, framework="pt") as file:
            values, indices, notes = file.get_tensor("values"), file.get_tensor("indices"), file.metadata()
        if _digest(values) != notes["sha256"]:
            return None
        broken = [(str(name), str(reason)) for name, reason in json.loads(notes["broken"])]
    except (FileNotFoundError, SafetensorError, KeyError, ValueError):
        return None
    return Features(values, indices.numpy().astype(np.int64), broken)


def _digest(values: torch.Tensor) -> str:
    return hashlib.sha256(values.numpy().tobytes()).hexdigest()
