"""Multi-crop: draw the parameters of every view of an image, then render them.

Drawing knows nothing of pixels and rendering nothing of chance, so that another renderer can execute the same
draw. The recipe is DINO's (arXiv:2104.14294, from BYOL, arXiv:2006.07733): random resized crop, flip, colour
jitter, grayscale, blur, solarization, in this order.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image, ImageFilter, ImageOps
from torch import Tensor
from torchvision.transforms import functional as F

JITTER_PROBABILITY = 0.8
BRIGHTNESS, CONTRAST, SATURATION, HUE = 0.4, 0.4, 0.2, 0.1
BLUR_RADIUS = (0.1, 2.0)  # pixels, PIL's radius
ASPECT_RATIO = (3 / 4, 4 / 3)
SOLARIZE_THRESHOLD = 128


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


@dataclass(frozen=True)
class View:
    """One drawn view: everything a renderer needs.

    Attributes:
        box: left, top, width, height in pixels of the source.
        size: side of the rendered view, pixels.
        jitter: (operation, factor) in the order of application; empty for none.
        blur_radius: pixels; 0 for none.
    """

    box: tuple[int, int, int, int]
    size: int
    flip: bool
    jitter: tuple[tuple[str, float], ...]
    grayscale: bool
    blur_radius: float
    solarize: bool


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
    blur: float = 1.0,
    solarize: float = 0.2,
) -> tuple[ViewRecipe, ...]:
    """Two global views, then the local ones; the globals differ in blur and solarization.

    Args:
        blur: factor on the original's probabilities 1.0, 0.1 and 0.5.

    Source: facebookresearch/dino, `DataAugmentationDINO`.
    """
    first = ViewRecipe(global_size, global_scale, flip, color_jitter, grayscale, 1.0 * blur, 0.0)
    second = ViewRecipe(global_size, global_scale, flip, color_jitter, grayscale, 0.1 * blur, solarize)
    local = ViewRecipe(local_size, local_scale, flip, color_jitter, grayscale, 0.5 * blur, 0.0)
    return (first, second) + (local,) * num_local_crops


def draw_view(rng: np.random.Generator, recipe: ViewRecipe, width: int, height: int) -> View:
    """Draw the parameters of one view of an image of `width` x `height` pixels."""
    return View(
        box=draw_box(rng, recipe.scale, width, height),
        size=recipe.size,
        flip=rng.random() < recipe.flip,
        jitter=_draw_jitter(rng, recipe.color_jitter),
        grayscale=rng.random() < recipe.grayscale,
        blur_radius=rng.uniform(*BLUR_RADIUS) if rng.random() < recipe.blur else 0.0,
        solarize=rng.random() < recipe.solarize,
    )


def draw_box(
    rng: np.random.Generator, scale: tuple[float, float], width: int, height: int
) -> tuple[int, int, int, int]:
    """Draw a box of random area and aspect ratio; after ten that do not fit, the largest central one.

    Source: Szegedy et al., arXiv:1409.4842; torchvision's `RandomResizedCrop`.
    """
    for _ in range(10):
        area = width * height * rng.uniform(*scale)
        ratio = math.exp(rng.uniform(math.log(ASPECT_RATIO[0]), math.log(ASPECT_RATIO[1])))
        box_width, box_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < box_width <= width and 0 < box_height <= height:
            top = int(rng.integers(height - box_height + 1))
            left = int(rng.integers(width - box_width + 1))
            return left, top, box_width, box_height
    return _central_box(width, height)


def _central_box(width: int, height: int) -> tuple[int, int, int, int]:
    low, high = ASPECT_RATIO
    box_width = min(width, round(height * high))
    box_height = min(height, round(width / low))
    return (width - box_width) // 2, (height - box_height) // 2, box_width, box_height


def _draw_jitter(rng: np.random.Generator, strength: float) -> tuple[tuple[str, float], ...]:
    if strength == 0 or rng.random() >= JITTER_PROBABILITY:
        return ()
    factors = [
        (name, rng.uniform(max(0.0, 1 - width * strength), 1 + width * strength))
        for name, width in (("brightness", BRIGHTNESS), ("contrast", CONTRAST), ("saturation", SATURATION))
    ]
    hue = min(0.5, HUE * strength)
    factors.append(("hue", rng.uniform(-hue, hue)))
    return tuple(factors[i] for i in rng.permutation(len(factors)))


JITTER = {
    "brightness": F.adjust_brightness,
    "contrast": F.adjust_contrast,
    "saturation": F.adjust_saturation,
    "hue": F.adjust_hue,
}


def render_view(image: Image.Image, view: View) -> UInt8[Tensor, "3 size size"]:
    """Execute a drawn view with PIL, operation by operation as the original does."""
    left, top, width, height = view.box
    crop = image.crop((left, top, left + width, top + height))
    crop = crop.resize((view.size, view.size), Image.Resampling.BICUBIC)
    if view.flip:
        crop = ImageOps.mirror(crop)
    for name, factor in view.jitter:
        crop = JITTER[name](crop, factor)
    if view.grayscale:
        crop = ImageOps.grayscale(crop).convert("RGB")
    if view.blur_radius > 0:
        crop = crop.filter(ImageFilter.GaussianBlur(view.blur_radius))
    if view.solarize:
        crop = ImageOps.solarize(crop, SOLARIZE_THRESHOLD)
    return torch.from_numpy(np.array(crop)).permute(2, 0, 1).contiguous()


def multi_crop(
    image: Image.Image, recipes: Sequence[ViewRecipe], rng: np.random.Generator
) -> list[UInt8[Tensor, "3 _s _s"]]:
    """Draw and render every view of an RGB image, bytes in [0, 255]."""
    return [render_view(image, draw_view(rng, recipe, *image.size)) for recipe in recipes]


def normalize(
    pixels: UInt8[Tensor, "*b 3 h w"], mean: Sequence[float], std: Sequence[float]
) -> Float[Tensor, "*b 3 h w"]:
    """Bytes to floats in [0, 1], less `mean`, over `std`, channel by channel."""
    channels = pixels.new_tensor([mean, std], dtype=torch.float32)[..., None, None]
    return (pixels / 255 - channels[0]) / channels[1]
