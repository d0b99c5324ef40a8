"""Multi-crop: the recipe of the views, and one draw of all their parameters.

Drawing knows nothing of pixels and rendering nothing of chance: a renderer (`render_pil`, `render_fused`,
`render_device`) executes what was drawn. The recipe is DINO's (arXiv:2104.14294, from BYOL, arXiv:2006.07733):
random resized crop, flip, colour jitter, grayscale, blur, solarization, in this order.

Sizes: v views of one image, all sizes in pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float64, Int8, Shaped

JITTER_PROBABILITY = 0.8
OPERATIONS = ("brightness", "contrast", "saturation", "hue")
JITTER_WIDTHS = (0.4, 0.4, 0.2, 0.1)
BLUR_RADIUS = (0.1, 2.0)  # pixels, PIL's radius
ASPECT_RATIO = (3 / 4, 4 / 3)
SOLARIZE_THRESHOLD = 128
BOX_ATTEMPTS = 10
NUM_GLOBAL = 2

VIEW = np.dtype(
    [
        ("box", np.float64, 4),  # left, top, width, height in the source; fractional after a scaled decode
        ("factors", np.float64, 4),  # brightness, contrast, saturation; the hue's shift in turns
        ("blur_radius", np.float64),  # PIL's radius; 0 for none
        ("order", np.int8, 4),  # places in OPERATIONS in the order of application; -1 for none
        ("flip", np.bool_),
        ("grayscale", np.bool_),
        ("solarize", np.bool_),
    ],
    align=True,
)
"""One drawn view: everything that a renderer needs but the size, which is that of the room for the result.

Images that are not RGB are rendered channel by channel, each as a grey image: saturation, hue and grayscale
then do nothing.
"""


@dataclass(frozen=True)
class ViewRecipe:
    """How one view is drawn. Sizes in pixels, scales as shares of the image's area, the rest probabilities."""

    size: int
    scale: tuple[float, float]
    flip: float
    color_jitter: float  # strength, 1 = the paper's
    grayscale: float
    blur: float
    solarize: float


def dino_recipe(
    *,
    global_size: int,
    global_scale: tuple[float, float],
    num_local_crops: int,
    local_size: int,
    local_scale: tuple[float, float],
    flip: float = 0.5,
    color_jitter: float = 1.0,
    grayscale: float = 0.2,
    blur: tuple[float, float, float] = (1.0, 0.1, 0.5),
    solarize: float = 0.2,
) -> tuple[ViewRecipe, ...]:
    """Two global views, then the local ones; the globals differ in blur and solarization.

    Args:
        blur: probabilities for the first global, the second global and the local views.
        solarize: probability for the second global view.

    Source: facebookresearch/dino, `DataAugmentationDINO`.
    """
    first = ViewRecipe(global_size, global_scale, flip, color_jitter, grayscale, blur[0], 0.0)
    second = ViewRecipe(global_size, global_scale, flip, color_jitter, grayscale, blur[1], solarize)
    local = ViewRecipe(local_size, local_scale, flip, color_jitter, grayscale, blur[2], 0.0)
    return (first, second) + (local,) * num_local_crops


class MultiCrop:
    """A recipe laid out for drawing: all views of an image in a few array operations.

    Args:
        recipes: of the two global views, then of the local views, which share one size; or of one view alone.

    Attributes:
        groups: which views are rendered together, and their size: the global ones, then the local ones if any.
        enough_pixels: pixels of an image from which on every crop has at least as many as its view.
    """

    def __init__(self, recipes: Sequence[ViewRecipe]) -> None:
        self.recipes = tuple(recipes)
        ends = (NUM_GLOBAL, len(recipes)) if len(recipes) > NUM_GLOBAL else (len(recipes),)
        self.groups = [
            (slice(start, end), recipes[start].size) for start, end in zip((0, NUM_GLOBAL), ends, strict=False)
        ]
        self.enough_pixels = max(recipe.size**2 / recipe.scale[0] for recipe in recipes)
        self._scale = np.array([recipe.scale for recipe in recipes])
        self._jitter = np.array([recipe.color_jitter for recipe in recipes])
        self._shares = np.array([(r.flip, r.grayscale, r.blur, r.solarize) for r in recipes])

    def draw(self, rng: np.random.Generator, width: int, height: int) -> Shaped[np.ndarray, " v"]:
        """Draw every view of an image of `width` x `height` pixels; an array of VIEW."""
        views = np.zeros(len(self.recipes), VIEW)
        chances = rng.random((len(views), NUM_CHANCES))
        views["box"] = draw_boxes(chances[:, :_BOX_END], self._scale, width, height)
        views["order"], views["factors"] = _draw_jitter(chances[:, _BOX_END:_JITTER_END], self._jitter)
        happens = chances[:, _JITTER_END : _JITTER_END + 4] < self._shares
        views["flip"], views["grayscale"], views["solarize"] = happens[:, 0], happens[:, 1], happens[:, 3]
        views["blur_radius"] = np.where(happens[:, 2], _between(chances[:, -1], *BLUR_RADIUS), 0.0)
        return views


# Numbers in [0, 1) that a view uses: boxes (area, ratio, left, top for each attempt), jitter (whether, four
# factors, four places in the order), flip, grayscale, blur and solarize, and the radius of the blur.
_BOX_END = 4 * BOX_ATTEMPTS
_JITTER_END = _BOX_END + 1 + 2 * len(OPERATIONS)
NUM_CHANCES = _JITTER_END + 5


def draw_boxes(
    chances: Float64[np.ndarray, "v n"], scale: Float64[np.ndarray, "v 2"], width: int, height: int
) -> Float64[np.ndarray, "v 4"]:
    """Boxes of random area and aspect ratio; where ten attempts do not fit, the largest central one.

    Args:
        chances: uniform in [0, 1), four per attempt.
        scale: smallest and largest share of the image's area.
    Returns:
        Left, top, width and height in whole pixels.

    Source: Szegedy et al., arXiv:1409.4842; torchvision's `RandomResizedCrop`.
    """
    area, ratio, left, top = chances.reshape(len(chances), BOX_ATTEMPTS, 4).transpose(2, 0, 1)
    area = width * height * _between(area, scale[:, :1], scale[:, 1:])
    ratio = np.exp(_between(ratio, *np.log(ASPECT_RATIO)))
    widths, heights = np.rint(np.sqrt(area * ratio)), np.rint(np.sqrt(area / ratio))
    fits = (widths > 0) & (widths <= width) & (heights > 0) & (heights <= height)
    left, top = np.floor(left * (width - widths + 1)), np.floor(top * (height - heights + 1))
    boxes = np.stack((left, top, widths, heights), axis=-1)
    first = boxes[np.arange(len(boxes)), fits.argmax(axis=1)]
    return np.where(fits.any(axis=1)[:, None], first, _central_box(width, height))


def _central_box(width: int, height: int) -> tuple[int, int, int, int]:
    low, high = ASPECT_RATIO
    box_width = min(width, round(height * high))
    box_height = min(height, round(width / low))
    return (width - box_width) // 2, (height - box_height) // 2, box_width, box_height


def _draw_jitter(
    chances: Float64[np.ndarray, "v n"], strength: Float64[np.ndarray, " v"]
) -> tuple[Int8[np.ndarray, "v 4"], Float64[np.ndarray, "v 4"]]:
    """Order of the operations (-1 where there is no jitter), and the factor of each operation."""
    happens: Bool[np.ndarray, " v"] = (chances[:, 0] < JITTER_PROBABILITY) & (strength > 0)
    widths = strength[:, None] * np.array(JITTER_WIDTHS)
    middle = np.array([1.0, 1.0, 1.0, 0.0])
    low = np.concatenate((np.maximum(0.0, 1 - widths[:, :3]), np.maximum(-0.5, -widths[:, 3:])), axis=1)
    factors = _between(chances[:, 1:5], low, np.minimum(middle + widths, [np.inf, np.inf, np.inf, 0.5]))
    order = np.where(happens[:, None], chances[:, 5:9].argsort(axis=1), -1)
    return order.astype(np.int8), factors


def _between(
    chance: Float[np.ndarray, "..."], low: Float[np.ndarray, "..."] | float, high: Float[np.ndarray, "..."] | float
) -> Float[np.ndarray, "..."]:
    return low + (high - low) * chance
