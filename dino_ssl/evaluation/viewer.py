"""A page on which a person asks patches of a photograph what they attend to: one file, no server, no network.

The page holds the factors of the attention's logits and computes the softmax of the row that is asked: every patch can
be asked in every head of every block, which as a table of weights would be ten times the bytes.
"""

import base64
import hashlib
import io
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from html import escape
from importlib import resources
from pathlib import Path

import matplotlib
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from dino_ssl.data.decoding import escaped
from dino_ssl.durable import write_atomically
from dino_ssl.errors import UsageError
from dino_ssl.evaluation import viewer_blocks
from dino_ssl.models.attention_map import AttentionMap

BUDGET = 100_000_000
"""Bytes of a page; `write_viewer` says what gives way."""
PICTURE_SIDES = (1600, 800, 400)
"""Longest side of the photograph on the page, pixels: the first that fits."""
PAGES = resources.files("dino_ssl") / "evaluation" / "pages"
PALETTE = "inferno"  # perceptually uniform
LOSSLESS_SIDE = 256  # pixels; up to here a lossless picture costs little, and is magnified pixel by pixel
JPEG_QUALITY = 90
BESIDE = 400
"""Bytes of a block, or of a scene, beside its factors and its picture: tags, sizes, texts."""


@dataclass(frozen=True)
class Shown:
    """One model on one image.

    Attributes:
        title: the model and where its weights are from.
        maps: attention of one image by the number of its block, on the CPU, in float32.
        note: what the maps are where they are no attention.
    """

    title: str
    maps: dict[int, AttentionMap]
    note: str = ""


@dataclass(frozen=True)
class Scene:
    """One image and what one or two models make of it.

    Attributes:
        name: of the file, as it is.
        pixels: the photograph at any size; the grids of patches cover exactly its area.
    """

    name: str
    pixels: UInt8[np.ndarray, "h w 3"]
    models: list[Shown]


@dataclass(frozen=True)
class _Choice:
    """What of a scene goes onto the page: its picture, and the last blocks of each model in so many bits a number."""

    picture: str
    num_blocks: int
    bits: int

    def maps(self, model: Shown) -> dict[int, AttentionMap]:
        return {number: model.maps[number] for number in sorted(model.maps)[-self.num_blocks :]}

    def num_bytes(self, scene: Scene) -> int:
        maps = [attention for model in scene.models for attention in self.maps(model).values()]
        return len(self.picture) + sum(viewer_blocks.num_bytes(each, self.bits) + BESIDE for each in [*maps, *maps[:1]])


def write_viewer(path: Path, scenes: Iterable[Scene], *, num_scenes: int, budget: int = BUDGET) -> list[str]:
    """Write the page; scenes are taken one by one.

    An image may use its even share of the bytes that are left. Where that is not enough, first the precision gives way
    (16 bits for each number, then 8), then blocks from the first on, then the size of the picture; an image for which
    even that is too much is not shown. The page says so beside each image, with the largest error of its weights.

    Args:
        num_scenes: how many images there are.
        budget: of the whole file, bytes.
    Returns:
        What did not go onto the page, a sentence for each image concerned.
    Raises:
        UsageError: attention that the page cannot show, or no image fits.
    """
    contents = _Contents(budget - len(_page("", [], [])))
    said = [contents.add(scene, num_scenes - number) for number, scene in enumerate(scenes)]
    entries = contents.entries
    if not entries:
        raise UsageError(f"no image fits into a viewer of {budget:,} bytes; give fewer or smaller images")
    path.parent.mkdir(parents=True, exist_ok=True)
    title = str(entries[0]["name"]) if len(entries) == 1 else f"{len(entries)} images"
    write_atomically(path, _page(f"Attention: {title}", entries, contents.blocks).encode())
    return [sentence for sentence in said if sentence]


@dataclass
class _Contents:
    """What is on the page so far, and the bytes that are left."""

    left: int
    entries: list[dict[str, object]] = field(default_factory=list)
    blocks: list[str] = field(default_factory=list)

    def add(self, scene: Scene, num_to_share: int) -> str:
        """Take in a scene, which may have its part of the bytes; say what was left out, if anything was."""
        _check(scene)
        choice = _fitting(scene, self.left // max(1, num_to_share))
        if choice is None:
            return f"{escaped(scene.name)} is not in the viewer: the page would become too large"
        number, left_out = len(self.entries), _left_out(scene, choice)
        self.left -= choice.num_bytes(scene)
        self.entries.append(_entry(scene, choice, number, left_out))
        self.blocks += _block_tags(scene, choice, number)
        return f"{escaped(scene.name)} in the viewer: {left_out}" if left_out else ""


def _check(scene: Scene) -> None:
    assert 1 <= len(scene.models) <= 2, "one model, or two to compare"
    for model in scene.models:
        assert model.maps, f"{model.title}: no block was given"
        for number, attention in model.maps.items():
            viewer_blocks.check(attention, f"{escaped(scene.name)}: block {number} of {model.title}")


def _fitting(scene: Scene, room: int) -> _Choice | None:
    """The first that fits, from the best to the least."""
    most = max(len(model.maps) for model in scene.models)
    for side in PICTURE_SIDES:
        picture = _data_uri(scene.pixels, side)
        for bits, num_blocks in [(16, most), *((8, fewer) for fewer in range(most, 0, -1))]:
            choice = _Choice(picture, num_blocks, bits)
            if choice.num_bytes(scene) <= room:
                return choice
    return None


def _data_uri(pixels: UInt8[np.ndarray, "h w 3"], side: int) -> str:
    image = Image.fromarray(pixels)
    lossless = max(image.size) <= LOSSLESS_SIDE
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    data = io.BytesIO()
    image.save(data, "PNG" if lossless else "JPEG", quality=JPEG_QUALITY)
    return f"data:image/{'png' if lossless else 'jpeg'};base64,{base64.b64encode(data.getvalue()).decode()}"


def _left_out(scene: Scene, choice: _Choice) -> str:
    """A sentence, or nothing."""
    most = max(len(model.maps) for model in scene.models)
    blocks = f"the last {choice.num_blocks} of {most} blocks" if choice.num_blocks < most else ""
    precision = "8 bits for each number instead of 16" if choice.bits < 16 else ""
    lost = " and ".join(filter(None, (blocks, precision)))
    return f"{lost}, so that the page does not become too large" if lost else ""


def _entry(scene: Scene, choice: _Choice, number: int, left_out: str) -> dict[str, object]:
    """A scene as the script reads it."""
    about = filter(None, (f"On this page: {left_out}." if left_out else "", _precision(scene, choice)))
    return {
        "name": escaped(scene.name),
        "size": [scene.pixels.shape[1], scene.pixels.shape[0]],
        "picture": choice.picture,
        "about": " ".join(about),
        "models": [
            {
                "title": escaped(model.title),
                "note": model.note,
                "blocks": [
                    _sizes(attention, choice.bits) | {"number": block, "id": _id(number, which, block)}
                    for block, attention in choice.maps(model).items()
                ],
            }
            for which, model in enumerate(scene.models)
        ],
    }


def _precision(scene: Scene, choice: _Choice) -> str:
    """A sentence on how exact the weights are."""
    maps = [attention for model in scene.models for attention in choice.maps(model).values()]
    largest, misplaced = np.array([viewer_blocks.errors(attention, choice.bits) for attention in maps]).max(0)
    return (
        f"Weights on this page differ from the exact ones by {largest:.1g} at most; {100 * misplaced:.1g} % of a "
        "query's weight, on average, lies elsewhere (worst block, queries spread over the image)."
    )


def _sizes(attention: AttentionMap, bits: int) -> dict[str, object]:
    _, heads, keys, width = attention.key.shape
    first = ["class token"] if attention.has_class_token and attention.num_prefix_tokens else []
    registers = [f"register {i + 1}" for i in range(attention.num_prefix_tokens - len(first))]
    grid = list(attention.grid)
    return {"heads": heads, "keys": keys, "width": width, "bits": bits, "grid": grid, "tokens": first + registers}


def _block_tags(scene: Scene, choice: _Choice, number: int) -> Iterator[str]:
    """One tag for each block, so that the browser decodes only what is looked at."""
    for which, model in enumerate(scene.models):
        for block, attention in choice.maps(model).items():
            text = viewer_blocks.packed(attention, choice.bits)
            yield f'<script type="text/plain" id="{_id(number, which, block)}">{text}</script>'


def _id(scene: int, model: int, block: int) -> str:
    return f"factors-{scene}-{model}-{block}"


def _page(title: str, entries: Sequence[dict[str, object]], blocks: Sequence[str]) -> str:
    names = ("viewer.html", "viewer.css", "viewer_numbers.js", "viewer.js")
    template, style, *scripts = ((PAGES / name).read_text(encoding="utf-8") for name in names)
    script = "\n".join(scripts)
    colours = matplotlib.colormaps[PALETTE](np.arange(256), bytes=True)[:, :3]
    data = {"scenes": entries, "palette": base64.b64encode(colours.tobytes()).decode()}
    parts = {
        "title": escape(title),
        "style": style,
        "style_digest": _digest(style),
        # Inside a script element only "<" can mean anything to HTML.
        "data": json.dumps(data, allow_nan=False).replace("<", "\\u003c"),
        "blocks": "\n".join(blocks),
        "script": script,
        "script_digest": _digest(script),
    }
    # In one pass, so that no part is looked through for the places of others.
    return re.sub(r"\{\{(\w+)\}\}", lambda place: parts[place[1]], template)


def _digest(text: str) -> str:
    """As a content security policy names an inline script or style."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
