"""`dino-ssl stats`: what a data set is made of, and a picture of what the model will see."""

import os
import re
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from tqdm import tqdm

from dino_ssl.commands.output_folder import output_folder
from dino_ssl.commands.parsing import Parser, whole
from dino_ssl.config import PretrainConfig
from dino_ssl.config_kinds import PRETRAIN
from dino_ssl.config_schema import build
from dino_ssl.config_yaml import preset_names, read_layers
from dino_ssl.data.decoding import BrokenImage
from dino_ssl.data.sources import Source, open_source
from dino_ssl.data.statistics import Statistics, examine, spread, summarise
from dino_ssl.data.statistics_report import describe, files_of
from dino_ssl.durable import naming
from dino_ssl.errors import UsageError

NUM_PICTURES = 8
SMALL_IMAGES = 64
"""Median of the shorter side, pixels, up to which the preset for small images draws the views."""
MOST_THREADS = 16
SUMMARY = "Sizes, colours, broken images and copies of a data set, and a contact sheet of its crops."


def run(arguments: Sequence[str]) -> None:
    """`dino-ssl stats`.

    Raises:
        UsageError: a mistake in the arguments, a SOURCE that cannot be opened or read, a folder that cannot be written.
    """
    words = _parser().read(arguments)
    if words is None:
        return
    source = open_source(words.source, words.data_root)
    # Of other sources than folders the name is no folder.
    folder = output_folder(words.output_dir or Path("stats") / _file_name(words.source), [Path(source.name)])
    found = _look(source, words.max_images, words.channels or channels_of(source))
    with naming(folder):
        for name, text in files_of(source, found).items():
            (folder / name).write_text(text, encoding="utf-8")
    print(describe(source, found, folder), end="")
    _draw_sheet(source, found, words.preset or _preset_for(found), folder / "contact_sheet.png")


def _parser() -> Parser:
    parser = Parser(command="stats", description=SUMMARY)
    add = parser.add_argument
    add("source", metavar="SOURCE", help="as after dino-ssl pretrain --data")
    root = PretrainConfig().data_root
    add("--data-root", type=Path, default=root, metavar="DIR", help="folder of known data sets (%(default)s)")
    add("--output-dir", type=Path, metavar="DIR", help="where the numbers, lists and picture go (stats/SOURCE)")
    most = "images to look at, spread over the set; 0 for all (%(default)s)"
    add("--max-images", type=whole(0), default=10_000, metavar="N", help=most)
    channels = "channels to convert to: 1 grey, 3 colour, any other as arrays have it (3)"
    add("--channels", type=whole(1), metavar="C", help=channels)
    preset = f"whose crops are drawn (small_images where half the images have up to {SMALL_IMAGES} pixels a side)"
    add("--preset", choices=preset_names(), metavar="NAME", help=preset)
    return parser


def _file_name(spec: str) -> str:
    """The SOURCE as the name of a folder."""
    return re.sub(r"[^\w.=-]+", "-", spec, flags=re.ASCII).strip("-.")[-80:] or "images"


def channels_of(source: Source) -> int:
    """What the images are converted to if nobody says: RGB, or what arrays have beside one and three channels."""
    with suppress(BrokenImage):
        raw = source.raw(0)
        if not isinstance(raw, bytes) and raw.shape[2] != 1:
            return int(raw.shape[2])
    return 3


def _look(source: Source, max_images: int, channels: int) -> Statistics:
    indices = spread(len(source), max_images or len(source))
    threads = min(MOST_THREADS, len(os.sched_getaffinity(0)))
    images = examine(source, indices, channels=channels, threads=threads)
    columns = min(80, shutil.get_terminal_size().columns)
    with tqdm(images, total=len(indices), ncols=columns, unit="image", leave=False, disable=None) as shown:
        try:
            return summarise(iter(shown), channels)
        except ValueError as error:
            raise UsageError(f"data source '{source.name}': {error}") from None


def _preset_for(found: Statistics) -> str | None:
    return "small_images" if min(found.width.median, found.height.median) <= SMALL_IMAGES else None


def _draw_sheet(source: Source, found: Statistics, preset: str | None, path: Path) -> None:
    # torchvision and the configuration's network take seconds to import; help and mistakes should not wait for them.
    from dino_ssl.data.contact_sheet import contact_sheet  # noqa: PLC0415
    from dino_ssl.training.build import build_crops  # noqa: PLC0415

    config = build(read_layers([], preset, PRETRAIN).values, PRETRAIN) if preset else PretrainConfig()
    indices = [int(found.readable[place]) for place in spread(len(found.readable), NUM_PICTURES)]
    try:
        sheet = contact_sheet(source, indices, build_crops(config), channels=found.channels, seed=config.seed)
    except BrokenImage as error:
        print(f"no contact sheet: {error}")
        return
    with naming(path):
        sheet.save(path)
    print(f"contact sheet  {path} (crops of {f'preset {preset}' if preset else 'the defaults'})")
