"""Masks for the eye: laid over the frame in the colours of their palette."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image

from dino_ssl.evaluation.video_metrics import contour, dilated

STRENGTH = 0.5
"""Of the colour over an object, as a share."""
LINE = 500
"""A contour gets a pixel thicker for each so many pixels of the frame's short side."""
SHEET_WIDTH = 1600  # pixels
GAP = 8


def overlay(
    frame: UInt8[np.ndarray, "h w 3"], numbers: UInt8[np.ndarray, "h w"], palette: UInt8[np.ndarray, "256 3"]
) -> UInt8[np.ndarray, "h w 3"]:
    """Each object tinted, with its contour in the full colour; the background as it is."""
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
