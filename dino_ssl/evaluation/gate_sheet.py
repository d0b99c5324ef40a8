"""A picture of where a teacher and a student look in the same faces: a row for each resolution, maps side by side."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from dino_ssl.evaluation.heat import coloured, enlarged, overlaid, unit_range
from dino_ssl.evaluation.tiles import Row, Tile, fitted, page

SIDE = 112
"""Of a tile, pixels."""
EXPLAINED = (
    "Over the images: where in them; the bar below: which channels. Cosines between teacher and student: of places / "
    "of channels."
)
STRIPE = 14
"""Height of the channels' bar, pixels."""


@dataclass(frozen=True)
class Gaze:
    """What two networks do at one place: a block, or the last self-attention.

    Attributes:
        name: of the place: `block 7`, `attention`.
        teacher, student: maps over places; of any range, as before a sigmoid.
        teacher_channels, student_channels: weights of the channels, if there are any.
    """

    name: str
    teacher: Float[Tensor, "h w"]
    student: Float[Tensor, "h w"]
    teacher_channels: Float[Tensor, " c"] | None = None
    student_channels: Float[Tensor, " c"] | None = None

    def similarity(self) -> str:
        """Cosines between teacher and student, of places / of channels: what A-SKD raises."""
        spatial = _cosine(self.teacher.flatten(), self.student.flatten())
        if self.teacher_channels is None or self.student_channels is None:
            return f"cosine {spatial:.2f}"
        return f"cosine {spatial:.2f} / {_cosine(self.teacher_channels, self.student_channels):.2f}"


@dataclass(frozen=True)
class Sight:
    """One face at one resolution.

    Attributes:
        name: of the resolution: `4x (28 px)`.
        sharp, seen: what the teacher and the student got.
    """

    name: str
    sharp: UInt8[np.ndarray, "h w 3"]
    seen: UInt8[np.ndarray, "y x 3"]
    gazes: Sequence[Gaze]


def gate_sheet(title: str, lines: Sequence[str], sights: Sequence[Sight]) -> Image.Image:
    """Draw them: the two images, then for each place the teacher's map beside the student's, over their images.

    Each map spans the colours from its own least to its own most.
    """
    rows = [
        Row(
            [
                Tile(_face(sight.sharp), "teacher's"),
                Tile(_face(sight.seen), "student's"),
                *(tile for gaze in sight.gazes for tile in _tiles(sight, gaze)),
            ],
            heading=sight.name,
            columns=["image", "", *(name for gaze in sight.gazes for name in (gaze.name, ""))],
        )
        for sight in sights
    ]
    return page(title, [*lines, EXPLAINED], rows, legend=("least of a map", "most"))


def _tiles(sight: Sight, gaze: Gaze) -> list[Tile]:
    return [
        Tile(_drawn(sight.sharp, gaze.teacher, gaze.teacher_channels), "teacher"),
        Tile(_drawn(sight.seen, gaze.student, gaze.student_channels), gaze.similarity()),
    ]


def _drawn(
    pixels: UInt8[np.ndarray, "h w 3"], weights: Float[Tensor, "y x"], channels: Float[Tensor, " c"] | None
) -> UInt8[np.ndarray, "tall wide 3"]:
    values = enlarged(unit_range(weights.float()), (SIDE, SIDE), "bilinear")
    picture = overlaid(_face(pixels), values)
    if channels is None:
        return picture
    # Sorted they would all look alike: as they stand, the mean of as many as share a pixel.
    row = (
        F.adaptive_avg_pool1d(unit_range(channels.float()[None])[None], SIDE)[0]
        if len(channels) > SIDE
        else (enlarged(unit_range(channels.float()[None]), (1, SIDE), "nearest"))
    )
    gap = np.full((2, SIDE, 3), 255, np.uint8)
    return np.concatenate([picture, gap, coloured(row.expand(STRIPE, -1))])


def _face(pixels: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "side side 3"]:
    return fitted(pixels, SIDE, SIDE)


def _cosine(one: Float[Tensor, " n"], other: Float[Tensor, " n"]) -> float:
    return torch.cosine_similarity(one.double(), other.double(), dim=0).item()
