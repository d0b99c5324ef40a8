"""Embeddings of image files in one call, such as of aligned faces."""

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from dino_ssl.data.decoding import BrokenImage, decode, read
from dino_ssl.data.transfer import normalize
from dino_ssl.errors import UsageError
from dino_ssl.evaluation.features import center_pixels
from dino_ssl.models.encoder import Encoder

AT_ONCE = 256
"""Images."""


@torch.no_grad()
def embed(encoder: Encoder, images: Sequence[str | Path], *, mirrored: bool = True) -> Float[Tensor, "n d"]:
    """Features of length 1, whose products are cosines: `embed(load_encoder("runs/faces"), ["a.jpg", "b.jpg"])`.

    Args:
        images: files, upright, as the encoder's were: aligned, if they are faces.
        mirrored: add those of the mirror images before the length becomes 1, as face verification does.
    Raises:
        UsageError: a file is no image that can be read.
    """
    network = cast(nn.Module, encoder.backbone)
    device = next(network.parameters()).device
    found = [torch.empty(0, encoder.backbone.embed_dim, device=device)]
    for first in range(0, len(images), AT_ONCE):
        pixels = torch.stack([_pixels(encoder, Path(path)) for path in images[first : first + AT_ONCE]])
        seen = normalize(pixels.to(device), encoder.mean, encoder.std)
        features = network(seen) + network(seen.flip(-1)) if mirrored else network(seen)
        found.append(F.normalize(features.float(), dim=1))
    return torch.cat(found)


def _pixels(encoder: Encoder, path: Path) -> Tensor:
    try:
        decoded = decode(read(path), str(path), channels=encoder.channels)
    except BrokenImage as error:
        raise UsageError(f"{path} cannot be embedded: {error.reason}") from None
    return center_pixels(decoded.pixels, encoder.size, encoder.center_crop)
