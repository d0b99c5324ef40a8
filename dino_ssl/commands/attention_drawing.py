"""`dino-ssl attention` once its arguments are sound: draw every input, then the pages over all of them."""

import sys
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dino_ssl.commands.attention_images import draw_image
from dino_ssl.commands.attention_inputs import Input
from dino_ssl.commands.attention_pca import draw_pca
from dino_ssl.commands.attention_video import VideoWish, draw_video
from dino_ssl.commands.attention_viewer import draw_viewer, viewed
from dino_ssl.commands.attention_wish import Reader, Wish, chosen_blocks
from dino_ssl.commands.options import device_of, encoder_of
from dino_ssl.commands.progress import progress
from dino_ssl.data.decoding import BrokenImage
from dino_ssl.durable import naming
from dino_ssl.errors import RunError
from dino_ssl.evaluation.attention_index import Entry, write_index
from dino_ssl.evaluation.queries import num_shown_blocks

SHOWN = 10
"""Lines about skipped inputs that are printed; the page has all."""


@dataclass(frozen=True)
class Drawn:
    """What has been done.

    Attributes:
        images: that could be read.
        entries: for the page.
        skipped: what could not be read, and why.
    """

    images: list[Input] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)


def draw(inputs: Sequence[Input], folder: Path, words: Namespace) -> None:
    """Draw what the arguments ask for and say where it is.

    Raises:
        UsageError: the network has not what is asked for.
        RunError: no input can be read, one does not go through the network, or the disk refuses.
    """
    reader = Reader.of(encoder_of(words), device_of(words))
    wish = _wish(words, folder, reader)
    networks = viewed(reader, words) if words.viewer else []
    with naming(folder):
        drawn = _draw_each(inputs, reader, wish, words)
        if not drawn.entries:
            raise RunError(f"none of the {len(inputs)} inputs can be read; the first is {drawn.skipped[0]}")
        pages: list[Entry] = []
        if networks and drawn.images:
            pages.append(draw_viewer(drawn.images, networks, wish))
        if words.pca and drawn.images:
            pages.append(draw_pca(drawn.images, reader, wish, foreground=words.foreground))
        page = write_index(
            folder,
            f"Attention of {reader.encoder.name}",
            reader.encoder.origin,
            [*pages, *drawn.entries],
            drawn.skipped,
        )
    _say(drawn, page)


def _wish(words: Namespace, folder: Path, reader: Reader) -> Wish:
    heads = words.head or [None]
    return Wish(
        folder=folder,
        blocks=chosen_blocks(words.block or [-1], num_shown_blocks(reader.encoder.backbone)),
        heads=None if None in heads else heads,
        query=words.query,
        threshold=words.threshold,
        upsampling=words.upsample,
        side=words.side,
        square=words.square,
    )


def _draw_each(inputs: Sequence[Input], reader: Reader, wish: Wish, words: Namespace) -> Drawn:
    drawn, video_wish = Drawn(), VideoWish(words.video_shows, words.video_format, words.fps, words.max_frames)
    with progress(len(inputs), "inputs") as advance:
        for item in inputs:
            try:
                if item.is_video:
                    entry, broken = draw_video(item, reader, wish, video_wish)
                    drawn.skipped.extend([broken] if broken else [])
                else:
                    entry = draw_image(item, reader, wish)
                    drawn.images.append(item)
                drawn.entries.append(entry)
            except BrokenImage as error:
                drawn.skipped.append(str(error))
            advance(1)
    return drawn


def _say(drawn: Drawn, page: Path) -> None:
    for line in drawn.skipped[:SHOWN]:
        print(f"skipped {line}", file=sys.stderr)
    if len(drawn.skipped) > SHOWN:
        print(f"skipped {len(drawn.skipped) - SHOWN:,} more, listed on the page", file=sys.stderr)
    print(f"drawn: {len(drawn.entries):,}, skipped: {len(drawn.skipped):,}; look at {page}")
