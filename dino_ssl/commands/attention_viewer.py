"""`dino-ssl attention --viewer`: the images on a page where every patch can be asked."""

import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from dino_ssl.commands.attention_inputs import Input
from dino_ssl.commands.attention_wish import Reader, Wish, chosen_blocks
from dino_ssl.commands.progress import progress
from dino_ssl.data.decoding import Decoded, decode, printable, read
from dino_ssl.data.whole_image import as_rgb, resized
from dino_ssl.evaluation.attention_index import Entry
from dino_ssl.evaluation.queries import asked_by_patch, num_shown_blocks
from dino_ssl.evaluation.viewer import PICTURE_SIDES, Scene, Shown, write_viewer
from dino_ssl.models.weights import load_encoder

FINER_NOTE = "Where a block looks from a finer grid, a patch is asked by the mean over the places that lie in it."


def viewed(reader: Reader, words: Namespace) -> list[tuple[Reader, list[int]]]:
    """The networks that the viewer shows, and of each the blocks: all unless some are asked for.

    Raises:
        UsageError: what is to be compared cannot be read, or has not the blocks that are asked for.
    """
    readers = [reader]
    if words.compare:
        other = load_encoder(words.compare, key=words.key)
        print(f"{other.name} from {other.origin}: {other.report}")
        readers.append(Reader.of(other, reader.device))
    return [(each, chosen_blocks(words.block or [None], num_shown_blocks(each.encoder.backbone))) for each in readers]


def draw_viewer(items: Sequence[Input], networks: list[tuple[Reader, list[int]]], wish: Wish) -> Entry:
    """Write viewer.html.

    Raises:
        RunError: an image does not go through a network.
    """
    path = wish.folder / "viewer.html"
    with progress(len(items), "images for the viewer") as advance:
        scenes = _scenes(items, networks, wish, advance)
        for sentence in write_viewer(path, scenes, num_scenes=len(items)):
            print(sentence, file=sys.stderr)
    return Entry("Ask every patch", [], [path])


def _scenes(
    items: Sequence[Input], networks: list[tuple[Reader, list[int]]], wish: Wish, advance: Callable[[int], object]
) -> Iterator[Scene]:
    for item in items:
        models = []
        for reader, blocks in networks:
            photograph = _photograph(item, reader.encoder.channels)
            models.append(_shown(photograph, reader, blocks, wish))
        yield Scene(str(item.name), as_rgb(photograph.pixels), models)
        advance(1)


def _photograph(item: Input, channels: int) -> Decoded:
    return decode(
        read(item.path), printable(item.path), channels=channels, enough_pixels=float(max(PICTURE_SIDES) ** 2)
    )


def _shown(photograph: Decoded, reader: Reader, blocks: list[int], wish: Wish) -> Shown:
    size = reader.input_size(photograph.width, photograph.height, wish)
    pixels = resized(photograph.pixels, *size)[None]
    maps, notes = {}, []
    for block in blocks:
        attention, note = reader.attention(pixels, block)
        if attention.queries_per_patch > 1:
            note = FINER_NOTE
        if attention.queries_per_patch > 1 or attention.bias is not None:
            attention = asked_by_patch(attention)
        maps[block] = replace(attention, query=attention.query.float().cpu(), key=attention.key.float().cpu())
        notes.append(note)
    return Shown(f"{reader.encoder.name}, {reader.encoder.origin}", maps, " ".join(dict.fromkeys(filter(None, notes))))
