"""Features of a list of images that are seen whole, of which none may be missing: a ranking has a place for each."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from dino_ssl.data.decoding import BrokenImage, bands
from dino_ssl.data.sources import Source, load
from dino_ssl.data.transfer import normalize
from dino_ssl.errors import DivergedError, RunError
from dino_ssl.models.backbone import Backbone
from dino_ssl.models.encoder import Encoder

Prepare = Callable[[UInt8[np.ndarray, "h w c"], int], UInt8[Tensor, "c y x"]]
"""Pixels, and the image's place in its source, to what the network sees."""
Read = Callable[[Any, Tensor], Tensor]
"""Backbone and normalised images [b, c, y, x] to features [b, d]."""
SCALES = (1.0, 2**-0.5, 0.5)


@dataclass(frozen=True)
class WholeImages:
    """An encoder, and how it is used.

    Attributes:
        precision: autocast to this type; None computes as the weights are.
        batch_size: images at once; 1 where they have several sizes.
        num_workers: processes that read images; 0 reads in this one.
    """

    encoder: Encoder
    device: torch.device
    precision: torch.dtype | None = None
    batch_size: int = 1
    num_workers: int = 0

    @torch.no_grad()
    def features(
        self, source: Source, prepare: Prepare, read: Read, advance: Callable[[int], object] = lambda count: None
    ) -> Float[Tensor, "n d"]:
        """Of every image, in order, float32 on the CPU.

        Args:
            advance: called after each batch with its number of images.
        Raises:
            RunError: an image cannot be read.
            DivergedError: a feature is not finite.
        """
        encoder = self.encoder
        cast(nn.Module, encoder.backbone).to(self.device)
        images = _Images(source, prepare, encoder.channels)
        # A generator of its own: the loader must not move the global random state.
        loader: DataLoader[Any] = DataLoader(
            images, self.batch_size, num_workers=self.num_workers, collate_fn=_stacked, generator=torch.Generator()
        )
        found = []
        for batch in loader:
            if isinstance(batch, str):
                raise RunError(f"an image cannot be read, and the list is not whole without it: {batch}")
            with torch.autocast(self.device.type, self.precision, self.precision is not None):
                values = read(encoder.backbone, normalize(batch.to(self.device), encoder.mean, encoder.std))
            found.append(values.float().cpu())
            advance(len(values))
        features = torch.cat(found)
        if not features.isfinite().all():
            raise DivergedError(f"some features of {source.name} are not finite; go back to an earlier checkpoint")
        return features


def thumbnail(pixels: UInt8[np.ndarray, "h w c"], side: int) -> UInt8[Tensor, "c y x"]:
    """The image with its long side reduced to `side` (Lanczos, PIL), its aspect kept; smaller ones stay as they are."""
    small = []
    for band in bands(pixels):
        band.thumbnail((side, side), Image.Resampling.LANCZOS)
        small.append(np.asarray(band))
    return torch.from_numpy(np.atleast_3d(np.dstack(small))).permute(2, 0, 1)


def multi_scale(
    backbone: Backbone, images: Float[Tensor, "b c y x"], scales: tuple[float, ...]
) -> Float[Tensor, "b d"]:
    """The mean of the pooled features at several scales (bilinear), each image's of norm 1.

    What remains of a patch at the right and at the bottom is cut off, as the original's convolution does (of ResNets,
    too, where the original does not).
    """
    total = sum(backbone(_whole_patches(_scaled(images, scale), backbone.patch_size)) for scale in scales)
    assert isinstance(total, Tensor)
    return F.normalize(total / len(scales))


def _scaled(images: Float[Tensor, "b c y x"], scale: float) -> Float[Tensor, "b c v u"]:
    if scale == 1:
        return images
    return F.interpolate(images, scale_factor=scale, mode="bilinear", align_corners=False)


def _whole_patches(images: Float[Tensor, "b c y x"], patch_size: int) -> Float[Tensor, "b c v u"]:
    height, width = (side // patch_size * patch_size for side in images.shape[-2:])
    if not height or not width:
        raise RunError(
            f"an image of {images.shape[-1]} x {images.shape[-2]} pixels is narrower than a patch of {patch_size}; "
            "write a larger --size"
        )
    return images[..., :height, :width]


class _Images(Dataset[Tensor | str]):
    """What the network sees, or what is wrong with the image: errors lose their words on the way from a worker."""

    def __init__(self, source: Source, prepare: Prepare, channels: int) -> None:
        self.source, self.prepare, self.channels = source, prepare, channels

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Tensor | str:
        try:
            return self.prepare(load(self.source, index, channels=self.channels).pixels, index)
        except BrokenImage as error:
            return str(error)


def _stacked(images: list[Tensor | str]) -> UInt8[Tensor, "b c y x"] | str:
    for image in images:
        if isinstance(image, str):
            return image
    return torch.stack([image for image in images if isinstance(image, Tensor)])
