"""Render drawn views with wheels only: PyTorch resizes, OpenCV does the rest; for machines without the kernel.

The views are PIL's within half a grey level on average. Fractional boxes are rounded to whole pixels.
"""

import cv2
import numpy as np
import torch
from jaxtyping import Shaped, UInt8
from torch.nn import functional as F

from dino_ssl.data.crops import SOLARIZE_THRESHOLD

_BYTES = np.arange(256, dtype=np.float64)
# OpenCV rounds where PIL truncates; just under a half, so that whole numbers stay what they are.
_TRUNCATE = -0.499

Picture = UInt8[np.ndarray, "s s c"]


def render(
    pixels: UInt8[np.ndarray, "h w c"], views: Shaped[np.ndarray, " v"], out: UInt8[np.ndarray, "v c s s"]
) -> None:
    """Render the views (VIEW) of one image into `out`."""
    for view, room in zip(views, out, strict=True):
        picture = _resized(pixels, view["box"], room.shape[-1])
        if picture.shape[2] == 3:
            cv2.split(_changed(picture, view), list(room))
        else:
            for channel in range(picture.shape[2]):
                room[channel] = _changed(np.ascontiguousarray(picture[..., channel : channel + 1]), view)[..., 0]


def _resized(pixels: UInt8[np.ndarray, "h w c"], box: Shaped[np.ndarray, "4"], size: int) -> Picture:
    left, top = np.rint(box[:2]).astype(int)
    right, bottom = np.maximum(np.rint(box[:2] + box[2:]).astype(int), (left + 1, top + 1))
    # Channels last is the layout that PyTorch's byte kernel is fast for.
    crop = torch.from_numpy(pixels[top:bottom, left:right].copy()).permute(2, 0, 1)[None]
    resized = F.interpolate(crop, (size, size), mode="bicubic", antialias=True)
    result: Picture = cv2.merge(list(resized[0].numpy())).reshape(size, size, -1)
    return result


def _changed(picture: Picture, view: np.void) -> Picture:
    """Everything after the resize, in the original's order; hue and saturation are for RGB alone."""
    if view["flip"]:
        picture = cv2.flip(picture, 1).reshape(picture.shape)
    for operation in view["order"][view["order"] >= 0]:
        picture = _JITTER[operation](picture, float(view["factors"][operation]))
    if view["grayscale"] and picture.shape[2] == 3:
        picture = _grey(picture)
    if view["blur_radius"] > 0:
        blurred = cv2.GaussianBlur(picture, (0, 0), view["blur_radius"], borderType=cv2.BORDER_REPLICATE)
        picture = blurred.reshape(picture.shape)
    if view["solarize"]:
        picture = _looked_up(picture, np.where(_BYTES < SOLARIZE_THRESHOLD, _BYTES, 255 - _BYTES))
    return picture


def _looked_up(picture: Picture, table: Shaped[np.ndarray, "256"]) -> Picture:
    result: Picture = cv2.LUT(picture, table.clip(0, 255).astype(np.uint8)).reshape(picture.shape)
    return result


def _grey(picture: Picture) -> Picture:
    result: Picture = cv2.cvtColor(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    return result


def _brightness(picture: Picture, factor: float) -> Picture:
    return _looked_up(picture, factor * _BYTES)


def _contrast(picture: Picture, factor: float) -> Picture:
    luma = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY) if picture.shape[2] == 3 else picture
    mean = int(cv2.mean(luma)[0] + 0.5)
    return _looked_up(picture, mean + factor * (_BYTES - mean))


def _saturation(picture: Picture, factor: float) -> Picture:
    if picture.shape[2] != 3:
        return picture
    result: Picture = cv2.addWeighted(picture, factor, _grey(picture), 1 - factor, _TRUNCATE)
    return result


def _hue(picture: Picture, turns: float) -> Picture:
    if picture.shape[2] != 3:
        return picture
    colours = cv2.cvtColor(picture, cv2.COLOR_RGB2HSV_FULL)
    colours[..., 0] += np.int32(turns * 255).astype(np.uint8)  # wraps around, as PIL's hue does
    result: Picture = cv2.cvtColor(colours, cv2.COLOR_HSV2RGB_FULL)
    return result


_JITTER = (_brightness, _contrast, _saturation, _hue)
