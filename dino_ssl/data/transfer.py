"""Batches onto the device: bytes travel, a batch ahead of the one in use; floats are made there."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cache

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from dino_ssl.data.crops import MultiCrop
from dino_ssl.data.loader import Batch
from dino_ssl.data.render_device import render_batch


def normalize(
    pixels: UInt8[Tensor, "*b c h w"], mean: Sequence[float], std: Sequence[float]
) -> Float[Tensor, "*b c h w"]:
    """Bytes to floats in [0, 1], less `mean`, over `std`, channel by channel."""
    channels = _on_device(tuple(mean), tuple(std), pixels.device)
    return (pixels / 255 - channels[0]) / channels[1]


@cache
def _on_device(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> Float[Tensor, "2 c 1 1"]:
    """Copied once: a copy in every step would wait for the device."""
    return torch.tensor([mean, std], dtype=torch.float32, device=device)[..., None, None]


def to_device(batch: Batch, crops: MultiCrop, device: torch.device) -> Batch:
    """The batch's views on the device; rendered there if it brings whole images."""
    if batch.images is None or batch.drawn is None:
        return replace(batch, views=[view.to(device, non_blocking=True) for view in batch.views])
    images = batch.images.to(device, non_blocking=True)
    views = [render_batch(images, batch.drawn[group], size) for group, size in crops.groups]
    return Batch(views, batch.broken, batch.indices)


def copied_ahead(batches: Iterable[Batch], crops: MultiCrop, device: torch.device) -> Iterator[Batch]:
    """Batches on the device; on a GPU the next one is copied, and rendered, while the present one is used."""
    if device.type != "cuda":
        yield from (to_device(batch, crops, device) for batch in batches)
        return
    side = torch.cuda.Stream(device)
    coming: Batch | None = None
    for batch in batches:
        with torch.cuda.stream(side):
            ready, coming = coming, to_device(batch, crops, device)
        if ready is not None:
            yield ready
        _hand_over(coming, side, device)
    if coming is not None:
        yield coming


def _hand_over(batch: Batch, side: torch.cuda.Stream, device: torch.device) -> None:
    """Let the stream of the training wait for the copy, and keep the memory from reuse until it has used it."""
    present = torch.cuda.current_stream(device)
    present.wait_stream(side)
    for view in batch.views:
        view.record_stream(present)
