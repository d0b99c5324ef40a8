"""Render drawn views with PIL, operation by operation as the original does: the oracle of the other renderers."""

import math

import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import Image, ImageFilter, ImageOps
from torchvision.transforms import functional as F

from dino_ssl.data.crops import OPERATIONS, SOLARIZE_THRESHOLD
from dino_ssl.data.decoding import bands

JITTER = {
    "brightness": F.adjust_brightness,
    "contrast": F.adjust_contrast,
    "saturation": F.adjust_saturation,
    "hue": F.adjust_hue,
}


def render(
    pixels: UInt8[np.ndarray, "h w c"], views: Shaped[np.ndarray, " v"], out: UInt8[np.ndarray, "v c s s"]
) -> None:
    """Render the views (VIEW) of one image into `out`."""
    images = bands(pixels)
    for view, room in zip(views, out, strict=True):
        rendered = [np.array(_render(image, view, room.shape[-1])) for image in images]
        room[:] = rendered[0].transpose(2, 0, 1) if pixels.shape[2] == 3 else np.stack(rendered)


def _render(image: Image.Image, view: np.void, size: int) -> Image.Image:
    crop = _resized_crop(image, view["box"].tolist(), size)
    if view["flip"]:
        crop = ImageOps.mirror(crop)
    for operation in view["order"][view["order"] >= 0]:
        if image.mode == "RGB" or OPERATIONS[operation] in ("brightness", "contrast"):
            crop = JITTER[OPERATIONS[operation]](crop, float(view["factors"][operation]))
    if view["grayscale"] and image.mode == "RGB":
        crop = ImageOps.grayscale(crop).convert("RGB")
    if view["blur_radius"] > 0:
        crop = crop.filter(ImageFilter.GaussianBlur(float(view["blur_radius"])))
    if view["solarize"]:
        crop = ImageOps.solarize(crop, SOLARIZE_THRESHOLD)
    return crop


def _resized_crop(image: Image.Image, box: list[float], size: int) -> Image.Image:
    """Cut out the pixels that the box touches, so that the filter sees no others, then resize the box."""
    left, top, width, height = box
    x, y = math.floor(left), math.floor(top)
    crop = image.crop((x, y, math.ceil(left + width), math.ceil(top + height)))
    inside = (left - x, top - y, left - x + width, top - y + height)
    return crop.resize((size, size), Image.Resampling.BICUBIC, box=inside)
