"""Masks carried through a video by the similarity of patch features alone, as DINO does it on DAVIS 2017.

Nothing is trained. Each patch of a frame takes the labels of its most similar patches, in a window around its place, of
the first frame and the last few (Jabri et al., arXiv:2006.14613; DINO, arXiv:2104.14294, section 4.2.2).

Sizes: f context frames, d dimensions, h rows and w columns of patches, c labels (the background is the first).
"""

import math
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor
from torch.nn import functional as F

from dino_ssl.data.transfer import normalize
from dino_ssl.models.backbone import Backbone

LONG_SIDE_MULTIPLE = 64
"""Pixels; the long side is cut to it whatever the patch size, so that networks see the same frames."""
MAX_SIMILARITIES = 2**23
"""At once: 32 MiB in float32, and a few such tables."""
TILE = 16
"""Side of the squares of patches that look for their neighbours together."""


@dataclass(frozen=True)
class Propagation:
    """How labels travel; the defaults are the protocol.

    Attributes:
        short_side: of the frames as the network sees them, pixels.
        num_context: frames before the present one that are asked beside the first.
        radius: half the side of the window, patches; 0 asks whole frames.
        top_k: most similar patches, of all frames together, that are averaged.
        temperature: of their weights exp(cosine / temperature).
    """

    short_side: int = 480
    num_context: int = 7
    radius: int = 12
    top_k: int = 5
    temperature: float = 0.1


def frame_size(height: int, width: int, patch_size: int, short_side: int) -> tuple[int, int]:
    """Height and width that a frame is resized to, pixels.

    The short side becomes `short_side` and the long one, in proportion, a multiple of 64 rounded down; where the patch
    size does not divide them, the multiples of it that are nearest.
    """
    short, long = min(height, width), max(height, width)
    cut = max(1, int(short_side * long / short) // LONG_SIDE_MULTIPLE) * LONG_SIDE_MULTIPLE
    sides = [max(1, round(side / patch_size)) * patch_size for side in (short_side, cut)]
    return (sides[0], sides[1]) if height <= width else (sides[1], sides[0])


def carry_masks(
    backbone: Backbone,
    frames: Iterable[UInt8[Tensor, "channels height width"]],
    first: UInt8[Tensor, "height width"],
    settings: Propagation,
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    device: torch.device,
    precision: torch.dtype | None = None,
) -> Iterator[UInt8[Tensor, "height width"]]:
    """The mask of every frame, on the CPU; the first as it is given. Frames are asked for one by one, and few are kept.

    Args:
        frames: bytes, all of the size of `first`.
        first: number of the object at each pixel of the first frame, 0 for none.
        precision: autocast of the backbone to this type; None computes as the weights are.
    """
    height, width = first.shape
    small = frame_size(height, width, backbone.patch_size, settings.short_side)
    grid = small[0] // backbone.patch_size, small[1] // backbone.patch_size

    def features() -> Iterator[Float[Tensor, "d h w"]]:
        for frame in frames:
            images = normalize(_resized(frame.to(device), small)[None], mean, std)
            with torch.no_grad(), torch.autocast(device.type, precision, precision is not None):
                yield backbone.patch_features(images)[0].float()

    labels = first_labels(first, grid).to(device)
    for place, soft in enumerate(propagate(features(), labels, settings)):
        yield hard_mask(soft, small, (height, width)).cpu() if place else first


def first_labels(first: UInt8[Tensor, "height width"], grid: tuple[int, int]) -> Float[Tensor, "c {grid[0]} {grid[1]}"]:
    """The mask at the middle of each patch, one-hot; an object that is too small for that has no patch."""
    num_labels = int(first.max()) + 1
    small = F.interpolate(first[None, None].float(), size=grid, mode="nearest-exact")[0, 0].long()
    return F.one_hot(small, num_labels).permute(2, 0, 1).float()


@torch.no_grad()
def propagate(
    features: Iterable[Float[Tensor, "d h w"]], first: Float[Tensor, "c h w"], settings: Propagation
) -> Iterator[Float[Tensor, "c h w"]]:
    """Soft labels of every frame, the first's as they are given; what is carried on is soft, too.

    Args:
        features: of every frame, on one device with `first`.
        first: shares of the labels, which sum to 1 in each patch.
    """
    seen: deque[tuple[Tensor, Tensor]] = deque(maxlen=settings.num_context)
    anchor = None
    for frame in (F.normalize(frame, dim=0) for frame in features):
        if anchor is None:
            anchor = frame, first
            yield first
            continue
        keys, labels = (torch.stack(column) for column in zip(anchor, *seen, strict=True))
        soft = look_up(frame, keys, labels, settings)
        seen.append((frame, soft))
        yield soft


def look_up(
    queries: Float[Tensor, "d h w"],
    keys: Float[Tensor, "f d h w"],
    labels: Float[Tensor, "f c h w"],
    settings: Propagation,
) -> Float[Tensor, "c h w"]:
    """Labels of a frame as the weighted mean of its most similar patches' in the context; features have norm 1.

    Square tiles of patches share the box of keys that their windows cover, so that no table of all pairs is made.
    Keys that are as similar as the last of the top k all count, so that their order does not matter.
    """
    _, height, width = queries.shape
    found = torch.empty_like(labels[0])
    reach = settings.radius or max(height, width)
    side = _tile(len(keys) * min(height, TILE + 2 * reach) * min(width, TILE + 2 * reach))
    for top, left in product(range(0, height, side), range(0, width, side)):
        bottom, right = min(top + side, height), min(left + side, width)
        rows, far_down = _window(top, bottom, height, reach)
        columns, far_across = _window(left, right, width, reach)
        far = (far_down[:, None, :, None] | far_across[None, :, None, :]).flatten(2).flatten(0, 1)
        similarity = queries[:, top:bottom, left:right].flatten(1).T @ _flat(keys[..., rows, columns])
        outside = far.to(keys.device).repeat(1, len(keys))
        weights = _weights(similarity.masked_fill_(outside, -torch.inf), settings)
        mean = weights @ _flat(labels[..., rows, columns]).T
        found[:, top:bottom, left:right] = mean.T.unflatten(1, (bottom - top, right - left))
    return found


def hard_mask(
    soft: Float[Tensor, "c h w"], upsampled: tuple[int, int], size: tuple[int, int]
) -> UInt8[Tensor, "{size[0]} {size[1]}"]:
    """The strongest label of each pixel.

    Each label is scaled so that its weakest pixel has 0 and its strongest 1: a small object, blurred on its way, would
    lose to the background everywhere. A label that is alike everywhere keeps its place: absent, or everywhere.

    Args:
        upsampled: height and width of the frame as the network saw it, where labels are compared.
        size: height and width of the mask (nearest pixel).
    """
    large = F.interpolate(soft[None], size=upsampled, mode="bilinear", align_corners=False)[0]
    low, high = large.amin((1, 2), keepdim=True), large.amax((1, 2), keepdim=True)
    spread = high - low
    scaled = torch.where(
        spread > 0, (large - low) / spread.clamp_min(torch.finfo(large.dtype).tiny), (high > 0).float()
    )
    strongest = scaled.argmax(0).byte()
    return F.interpolate(strongest[None, None].float(), size=size, mode="nearest-exact")[0, 0].byte()


def _resized(frame: UInt8[Tensor, "c y x"], size: tuple[int, int]) -> UInt8[Tensor, "c {size[0]} {size[1]}"]:
    """Bilinear between the four nearest pixels and rounded, as OpenCV resizes."""
    large = F.interpolate(frame[None].float(), size=size, mode="bilinear", align_corners=False)[0]
    return large.round().byte()


def _tile(num_keys: int) -> int:
    return max(1, min(TILE, math.isqrt(MAX_SIMILARITIES // num_keys)))


def _flat(maps: Float[Tensor, "f a h w"]) -> Float[Tensor, "a fhw"]:
    return maps.transpose(0, 1).flatten(1)


def _window(start: int, stop: int, length: int, reach: int) -> tuple[slice, Bool[Tensor, "q k"]]:
    """Along one axis: the keys that any patch of a tile may ask, and for each patch those that are too far for it."""
    keys = range(max(start - reach, 0), min(stop + reach, length))
    distance = torch.arange(start, stop)[:, None] - torch.arange(keys.start, keys.stop)
    return slice(keys.start, keys.stop), distance.abs() > reach


def _weights(similarity: Float[Tensor, "q k"], settings: Propagation) -> Float[Tensor, "q k"]:
    """Of the top k alone, exponential, with sum 1."""
    last = similarity.topk(min(settings.top_k, similarity.shape[1]), dim=1).values[:, -1:]
    return (similarity.masked_fill(similarity < last, -torch.inf) / settings.temperature).softmax(1)
