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
        patches = _standard(features).reshape(*features.shape[1:], -1)
        shares = (patches @ self.directions.T - self.low) / np.maximum(self.high - self.low, 1e-12)
        colours: UInt8[np.ndarray, "h w 3"] = (shares.clip(0, 1) * 255).round().astype(np.uint8)
        if self.split is not None:
            colours[patches @ self.split <= 0] = 0
        return colours


def fit_colours(maps: list[Float[Tensor, "d _ _"]], *, foreground: bool) -> PatchColours:
    """Find the directions by PCA over the patches of some images of any sizes.

    Every image is centred at its own mean and scaled to the same spread: what tells the images apart, and is the same
    all over each of them, would otherwise be the strongest direction, and images of little contrast would be grey.

    Args:
        foreground: first split the patches at the zero of a component, and take for the object the side that is rarer
            at the images' borders; only its patches count for the colours.
    Raises:
        UsageError: fewer than three patches, or no image has any inside its border.

    Source: DINOv2, arXiv:2304.07193, figure 1, where component, threshold and side are chosen by eye.
    """
    patches = np.concatenate([_standard(features) for features in maps])
    _check(patches)
    if not foreground:
        return _colours(patches, None)
    border = np.concatenate([_border(*features.shape[1:]) for features in maps])
    _check(patches[~border])
    direction = _object_direction(patches, border)
    objects = patches[patches @ direction > 0]
    _check(objects)
    return _colours(objects, direction)


def _colours(patches: Float[np.ndarray, "n d"], split: Float[np.ndarray, " d"] | None) -> PatchColours:
    directions = PCA(3, svd_solver="full").fit(patches).components_
    low, high = np.percentile(patches @ directions.T, (OUTLIERS, 100 - OUTLIERS), axis=0).astype(patches.dtype)
    return PatchColours(split, directions, low, high)


def _object_direction(patches: Float[np.ndarray, "n d"], border: Bool[np.ndarray, " n"]) -> Float[np.ndarray, " d"]:
    """Of the first three components the one whose sign tells the inside of the images from their borders best.

    In most networks that is the first one; in some, that is where in the image a patch lies.
    """
    components = PCA(3, svd_solver="full").fit(patches).components_
    positive = patches @ components.T > 0
    inside = positive[~border].mean(0) - positive[border].mean(0)
    best = int(np.abs(inside).argmax())
    direction: Float[np.ndarray, " d"] = components[best] * np.sign(inside[best])
    return direction


def _standard(features: Float[Tensor, "d h w"]) -> Float[np.ndarray, "n d"]:
    """The patches of an image, less their mean, over the root mean square of what remains."""
    patches = features.flatten(1) - features.mean((1, 2))[:, None]
    standard: Float[np.ndarray, "n d"] = (patches / patches.square().mean().sqrt().clamp_min(1e-12)).T.numpy()
    return standard


def _border(height: int, width: int) -> Bool[np.ndarray, " n"]:
    """Which patches lie at the edge of an image."""
    edge = np.ones((height, width), bool)
    edge[1:-1, 1:-1] = False
    return edge.ravel()


def _check(patches: Float[np.ndarray, "n d"]) -> None:
    if min(patches.shape) < 3:
        raise UsageError(f"--pca needs three patches or more, not {len(patches)}; write a larger --size")
