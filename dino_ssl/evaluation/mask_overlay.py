"""Masks for the eye: laid over the frame in the colours of their palette."""

from collections.abc import Sequence
from colorsys import hsv_to_rgb

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image

from dino_ssl.data.masks import default_palette
from dino_ssl.evaluation.video_metrics import contour, dilated

STRENGTH = 0.5
"""Of the colour over an object, as a share."""
LINE = 500
"""A contour gets a pixel thicker for each so many pixels of the frame's short side."""
GOLDEN_SHARE = (5**0.5 - 1) / 2
"""Of the colour circle from one object to the next: however many there are, no two are alike."""
SHEET_WIDTH = 1600  # pixels
GAP = 8


def shown_palette(palette: UInt8[np.ndarray, "256 3"]) -> UInt8[np.ndarray, "256 3"]:
    """Colours somebody chose stay; those of DAVIS are dark and partly grey, and give way to bright ones all round."""
    if not np.array_equal(palette, default_palette()):
        return palette
    bright = [hsv_to_rgb(number * GOLDEN_SHARE % 1, 0.8, 1) for number in range(256)]
    return (255 * np.array(bright)).round().astype(np.uint8)


def laid_over(
    frame: UInt8[np.ndarray, "h w 3"], numbers: UInt8[np.ndarray, "h w"], palette: UInt8[np.ndarray, "256 3"]
) -> UInt8[np.ndarray, "h w 3"]:
    """The frame with each object tinted, its contour in the full colour, and the background as it is."""
    tinted = (1 - STRENGTH) * frame + STRENGTH * palette[numbers]
    picture = np.where((numbers > 0)[..., None], tinted, frame).round().astype(np.uint8)
    lines = np.where(_lines(numbers), numbers, 0)
    return np.where((lines > 0)[..., None], palette[lines], picture).astype(np.uint8)


def sheet(frames: Sequence[UInt8[np.ndarray, "h w 3"]], columns: int = 3) -> Image.Image:
    """Frames of one size in rows, each made smaller to fit."""
    height, width, _ = frames[0].shape
    columns = min(columns, len(frames))
    room = (SHEET_WIDTH - GAP) // columns - GAP
    shown = min(width, room), round(height * min(width, room) / width)
    rows = -(-len(frames) // columns)
    page = Image.new("RGB", (GAP + columns * (shown[0] + GAP), GAP + rows * (shown[1] + GAP)), "white")
    for place, frame in enumerate(frames):
        row, column = divmod(place, columns)
        small = Image.fromarray(frame).resize(shown, Image.Resampling.LANCZOS)
        page.paste(small, (GAP + column * (shown[0] + GAP), GAP + row * (shown[1] + GAP)))
    return page


def _lines(numbers: UInt8[np.ndarray, "h w"]) -> np.ndarray:
    edges = np.zeros(numbers.shape, bool)
    for number in np.unique(numbers[numbers > 0]):
        one = contour(torch.from_numpy(numbers == number)[None])
        edges |= dilated(one, min(numbers.shape) // LINE + 1)[0].numpy()
    return edges
