"""`dino-ssl attention --pca`: the patch features of all images in the colours of the same three directions."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from dino_ssl.commands.attention_images import see
from dino_ssl.commands.attention_inputs import Input
from dino_ssl.commands.attention_wish import Reader, Wish
from dino_ssl.commands.progress import progress
from dino_ssl.data.statistics import spread
from dino_ssl.evaluation.attention_index import Entry
from dino_ssl.evaluation.patch_pca import PatchColours, fit_colours
from dino_ssl.evaluation.tiles import GAP, Row, Tile, fitted, page

IMAGES_TO_FIT = 32
"""Spread over all: their patches are many enough for three directions."""
IMAGES_SHOWN = 24
WIDTH = 1400
TILE_HEIGHT = 210
"""Pixels of the page, as `WIDTH`."""


@dataclass(frozen=True)
class Painted:
    """An image and the colours of its patches, at the height of a tile."""

    image: UInt8[np.ndarray, "h w 3"]
    colours: UInt8[np.ndarray, "h w 3"]
    name: str


def draw_pca(items: Sequence[Input], reader: Reader, wish: Wish, *, foreground: bool) -> Entry:
    """Write pca.png for each image, and a page of the first ones for the eye.

    Args:
        items: images that could be read before.
    Raises:
        UsageError: all images together have too few patches.
    """
    with progress(min(len(items), IMAGES_TO_FIT) + len(items), "images for PCA") as advance:
        features = []
        for place in spread(len(items), IMAGES_TO_FIT):
            features.append(reader.patch_features(see(items[place], reader, wish).pixels[None])[0])
            advance(1)
        colours = fit_colours(features, foreground=foreground)
        shown: list[Painted] = []
        for item in items:
            painted = _paint(item, colours, reader, wish)
            shown += [painted] if len(shown) < IMAGES_SHOWN else []
            advance(1)
    path = wish.folder / "pca.png"
    about = f"{reader.encoder.name}  ·  the patch features' first three principal components as red, green and blue"
    page("PCA of patch features", [about], list(_rows(shown)), legend=None).save(path)
    return Entry("PCA of patch features", [path])


def _paint(item: Input, colours: PatchColours, reader: Reader, wish: Wish) -> Painted:
    seen = see(item, reader, wish)
    painted = colours.paint(reader.patch_features(seen.pixels[None])[0])
    height, width = seen.pixels.shape[1:]
    Image.fromarray(painted).resize((width, height), Image.Resampling.NEAREST).save(wish.folder / item.name / "pca.png")
    patch = max(1, TILE_HEIGHT // len(painted))
    large = painted.repeat(patch, 0).repeat(patch, 1)
    return Painted(fitted(seen.shown, *large.shape[:2]), large, item.name.name)


def _rows(shown: Sequence[Painted]) -> Iterator[Row]:
    """Each image above its colours, as many side by side as the page is wide."""
    row: list[Tile] = []
    for painted in shown:
        between = np.full((GAP // 2, painted.image.shape[1], 3), 255, np.uint8)
        tile = Tile(np.concatenate([painted.image, between, painted.colours]), painted.name)
        if row and Row([*row, tile]).width > WIDTH:
            yield Row(row)
            row = []
        row.append(tile)
    yield Row(row)
