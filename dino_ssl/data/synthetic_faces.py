"""Drawn faces of made-up people, for trying out recipes and for tests: nothing is downloaded, nobody is on them.

A person is a set of proportions and colours; an image adds pose, light, expression and noise. The test split has other
people than the train split, as verification wants it. Numbers on these faces say nothing about photographs.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Float64, Int64, UInt8

VERSION = 1
"""Changes whenever the same index gives other pixels."""
SIDE = 112
SOFTNESS = 0.015
"""Width of the edges, as a share of half the image."""


@dataclass(frozen=True, eq=False)
class SyntheticFaces:
    """Images of people `first` to `first + people - 1`, drawn when they are asked for."""

    name: str
    first: int
    people: int
    each: int
    """Images of a person."""
    side: int = SIDE
    """Pixels."""

    @property
    def labels(self) -> Int64[np.ndarray, " n"]:
        return np.repeat(np.arange(self.people), self.each)

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(f"person{self.first + number:03d}" for number in range(self.people))

    @property
    def shard_sizes(self) -> None:
        """Any order is drawn equally fast."""

    def __len__(self) -> int:
        return self.people * self.each

    def raw(self, index: int) -> UInt8[np.ndarray, "side side 3"]:
        """The image; the same in every process."""
        person, image = divmod(range(len(self))[index], self.each)
        return drawn(self.first + person, image, self.side)

    def describe(self, index: int) -> str:
        """`synthetic_faces:train[12]`."""
        return f"{self.name}[{index}]"

    def fingerprint(self) -> str:
        """16 hexadecimal digits over what is drawn."""
        about = (VERSION, self.first, self.people, self.each, self.side)
        return hashlib.sha256(repr(about).encode()).hexdigest()[:16]


def open_synthetic_faces(split: str) -> SyntheticFaces:
    """64 people with 20 images each to train on; 32 others with 12 to test."""
    if split == "train":
        return SyntheticFaces("synthetic_faces:train", 0, 64, 20)
    return SyntheticFaces("synthetic_faces:test", 64, 32, 12)


@dataclass(frozen=True)
class _Person:
    """Lengths in halves of the image, colours in [0, 1]."""

    skin: Float64[np.ndarray, "3"]
    hair: Float64[np.ndarray, "3"]
    iris: Float64[np.ndarray, "3"]
    lips: Float64[np.ndarray, "3"]
    face: tuple[float, float]
    hairline: float
    eyes: tuple[float, float, float]
    """Half the distance, half the width, height above the middle."""
    brows: tuple[float, float, float]
    """Height above the eyes, thickness, slope."""
    nose: tuple[float, float]
    mouth: tuple[float, float]
    """Half the width, height below the middle."""


@lru_cache(256)
def _person(number: int) -> _Person:
    rng = np.random.default_rng([VERSION, number])
    draw: Callable[..., float] = rng.uniform
    tone = draw(0.35, 0.95)
    return _Person(
        skin=tone * np.array([1, draw(0.72, 0.85), draw(0.55, 0.75)]),
        hair=draw(0.05, 0.8) * np.array([1, draw(0.6, 0.95), draw(0.2, 0.9)]),
        iris=rng.uniform(0.1, 0.6, 3),
        lips=tone * np.array([1, draw(0.35, 0.65), draw(0.4, 0.65)]),
        face=(draw(0.62, 0.85), draw(0.85, 1.05)),
        hairline=draw(-0.75, -0.4),
        eyes=(draw(0.24, 0.38), draw(0.09, 0.16), draw(0.05, 0.22)),
        brows=(draw(0.12, 0.22), draw(0.02, 0.06), draw(-0.3, 0.3)),
        nose=(draw(0.05, 0.13), draw(0.15, 0.4)),
        mouth=(draw(0.16, 0.36), draw(0.42, 0.6)),
    )


def drawn(person: int, image: int, side: int = SIDE) -> UInt8[np.ndarray, "{side} {side} 3"]:
    """One image of one person."""
    rng = np.random.default_rng([VERSION, person, 1 + image])
    x, y = _places(rng, side)
    picture = np.broadcast_to(rng.uniform(0, 1, 3), (side, side, 3)).copy()
    _paint(picture, _person(person), x, y, smile=rng.normal(0, 0.06), gape=rng.uniform(0.03, 0.09))
    light = 1 + rng.normal(0, 0.25) * x + rng.normal(0, 0.15) * y
    picture *= (rng.uniform(0.75, 1.15) * light.clip(0.3, 1.7))[..., None]
    picture += rng.normal(0, 0.03, picture.shape)
    pixels: UInt8[np.ndarray, "{side} {side} 3"] = np.rint(picture.clip(0, 1) * 255).astype(np.uint8)
    return pixels


def _places(rng: np.random.Generator, side: int) -> tuple[Float64[np.ndarray, "s s"], Float64[np.ndarray, "s s"]]:
    """Where each pixel lies on a face that is turned, scaled and moved a little: x to the right, y down, in -1..1."""
    y, x = (np.mgrid[:side, :side] + 0.5) * 2 / side - 1
    angle, scale = rng.normal(0, 0.08), rng.normal(1, 0.04)
    shift_x, shift_y = rng.normal(0, 0.04, 2)
    turned_x = (np.cos(angle) * x + np.sin(angle) * y) / scale - shift_x
    turned_y = (np.cos(angle) * y - np.sin(angle) * x) / scale - shift_y
    # A head that looks aside is narrower on one side.
    return turned_x * (1 + rng.normal(0, 0.1) * turned_x), turned_y


def _paint(
    picture: Float64[np.ndarray, "s s 3"],
    who: _Person,
    x: Float64[np.ndarray, "s s"],
    y: Float64[np.ndarray, "s s"],
    *,
    smile: float,
    gape: float,
) -> None:
    """Layer upon layer, from the hair to the lips."""

    def ellipse(at: tuple[float, float], half: tuple[float, float], tilt: float = 0.0) -> Float64[np.ndarray, "s s"]:
        sharpness = max(min(half), 0.06) / SOFTNESS
        right, down = x - at[0], y - at[1] - tilt * (x - at[0])
        distance = np.hypot(right / half[0], down / half[1])
        inside: Float64[np.ndarray, "s s"] = 1 / (1 + np.exp(((distance - 1) * sharpness).clip(-40, 40)))
        return inside

    def put(colour: Float64[np.ndarray, "3"], share: Float64[np.ndarray, "s s"]) -> None:
        picture[:] += share[..., None] * (colour - picture)

    width, height = who.face
    put(who.hair, ellipse((0.0, -0.1), (width * 1.12, height * 1.02)))
    face = ellipse((0.0, 0.1), (width, height))
    put(who.skin, face / (1 + np.exp(((who.hairline - y) / 0.03).clip(-40, 40))))
    apart, wide, above = who.eyes
    raised, thick, slope = who.brows
    for sign in (-1.0, 1.0):
        put(np.full(3, 0.95), ellipse((sign * apart, -above), (wide, wide * 0.55)))
        put(who.iris, ellipse((sign * apart, -above), (wide * 0.45, wide * 0.45)))
        put(who.hair * 0.7, ellipse((sign * apart, -above - raised), (wide * 1.4, thick), sign * slope))
    broad, long = who.nose
    put(who.skin * 0.75, ellipse((0.0, -above + long + 0.1), (broad, 0.05)))
    put(who.skin * 0.9, ellipse((0.0, -above + long / 2 + 0.05), (broad * 0.4, long / 2)))
    half, below = who.mouth
    curve = smile * ((x / half) ** 2 - 1).clip(-1, 0.5)
    lips = ellipse((0.0, below), (half, gape)) * (1 - np.abs(curve).clip(0, 0.5))
    put(who.lips, lips)
    put(np.array([0.15, 0.05, 0.05]), lips * ellipse((0.0, below + smile / 2), (half * 0.8, gape * 0.35)))
