"""Patch features as colours: their three strongest directions become red, green and blue."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, UInt8
from sklearn.decomposition import PCA
from torch import Tensor

from dino_ssl.errors import UsageError

OUTLIERS = 1.0
"""Percent of the patches at either end of a direction that get its darkest and brightest value."""


@dataclass(frozen=True)
class PatchColours:
    """Directions found in some images, which give every image of the same network its colours.

    Attributes:
        split: the direction along which patches of the object are positive; None where all patches have colours.
        directions, low, high: of red, green and blue; values from low to high become 0 to 255.
    """

    split: Float[np.ndarray, " d"] | None
    directions: Float[np.ndarray, "3 d"]
    low: Float[np.ndarray, " 3"]
    high: Float[np.ndarray, " 3"]

    def paint(self, features: Float[Tensor, "d h w"]) -> UInt8[np.ndarray, "h w 3"]:
        """A colour for each patch; black is background."""
        patches = _centred(features).reshape(*features.shape[1:], -1)
        shares = (patches @ self.directions.T - self.low) / np.maximum(self.high - self.low, 1e-12)
        colours: UInt8[np.ndarray, "h w 3"] = (shares.clip(0, 1) * 255).round().astype(np.uint8)
        if self.split is not None:
            colours[patches @ self.split <= 0] = 0
        return colours


def fit_colours(maps: list[Float[Tensor, "d _ _"]], *, foreground: bool) -> PatchColours:
    """Find the directions by PCA over the patches of some images of any sizes.

    Every image is centred at its own mean: what tells the images apart, and is the same all over each of them, would
    otherwise be the strongest direction.

    Args:
        foreground: first split the patches at the zero of their first component, and take for the object the side
            that is rarer at the images' borders; only its patches count for the colours.
    Raises:
        UsageError: fewer than three patches.

    Source: DINOv2, arXiv:2304.07193, figure 1, where the threshold and the side are chosen by eye.
    """
    patches = np.concatenate([_centred(features) for features in maps])
    _check(patches)
    if not foreground:
        return _colours(patches, None)
    first = PCA(1, svd_solver="full").fit(patches)
    direction = first.components_[0]
    border = np.concatenate([_border(*features.shape[1:]) for features in maps])
    if (patches[border] @ direction > 0).mean() > 0.5:
        direction = -direction
    objects = patches[patches @ direction > 0]
    _check(objects)
    return _colours(objects, direction)


def _colours(patches: Float[np.ndarray, "n d"], split: Float[np.ndarray, " d"] | None) -> PatchColours:
    directions = PCA(3, svd_solver="full").fit(patches).components_
    low, high = np.percentile(patches @ directions.T, (OUTLIERS, 100 - OUTLIERS), axis=0).astype(patches.dtype)
    return PatchColours(split, directions, low, high)


def _centred(features: Float[Tensor, "d h w"]) -> Float[np.ndarray, "n d"]:
    """The patches of an image, less their mean."""
    patches = features.flatten(1)
    centred: Float[np.ndarray, "n d"] = (patches - patches.mean(1, keepdim=True)).T.numpy()
    return centred


def _border(height: int, width: int) -> Bool[np.ndarray, " n"]:
    """Which patches lie at the edge of an image."""
    edge = np.ones((height, width), bool)
    edge[1:-1, 1:-1] = False
    return edge.ravel()


def _check(patches: Float[np.ndarray, "n d"]) -> None:
    if min(patches.shape) < 3:
        raise UsageError(f"--pca needs three patches or more, not {len(patches)}; write a larger --size")
