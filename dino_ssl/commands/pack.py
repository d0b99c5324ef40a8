"""`dino-ssl pack`: any source -> WebDataset shards, with progress, a checksum for each shard, and a short table."""

import argparse
import os
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from dino_ssl.commands.parsing import Parser, whole
from dino_ssl.commands.progress import progress
from dino_ssl.config import PretrainConfig
from dino_ssl.data.aligned_faces import open_aligned
from dino_ssl.data.class_folders import write_class_folders
from dino_ssl.data.sources import Source, open_source, problems_of
from dino_ssl.data.tar import packing
from dino_ssl.data.tar.pack_file import SKIPPED_FILE, PackFile
from dino_ssl.data.tar.pack_images import Packing
from dino_ssl.data.tar.remote import is_remote
from dino_ssl.data.tar.shard_index_files import PACK_FILE
from dino_ssl.data.tar.shards import is_shards
from dino_ssl.errors import UsageError

DESCRIPTION = (
    "Write the images of a SOURCE into WebDataset shards: plain tars, mixed once, which even a network disk reads at "
    "full speed. Labels go along. Images that cannot be read are left out and listed in skipped.txt. If it is "
    "interrupted, the same command goes on; finished shards whose checksums hold are kept. With --class-folders: "
    "into a folder for each class instead."
)
UNITS = {"kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
DEFAULT_SIZE = "512MB"
DEFAULT_PATTERN = "shard-%06d.tar"


def run(arguments: Sequence[str]) -> None:
    """`dino-ssl pack`.

    Raises:
        UsageError: a mistake in the arguments, the source or the folder.
        RunError: the disk refuses, no image can be read, or --verify found a difference.
    """
    words = _parser().read(arguments)
    if words is None:
        return
    _check(words)
    if words.verify is not None:
        _verify(words.verify)
        return
    folder, pattern = _output(words.output)
    source = _source(words)
    if words.class_folders:
        _write_folders(source, folder, words)
        return
    chosen = Packing(
        folder=folder,
        pattern=pattern,
        shard_bytes=words.shard_size if words.shard_size or words.samples_per_shard else _size(DEFAULT_SIZE),
        shard_samples=words.samples_per_shard,
        short_side=words.short_side,
        quality=words.quality,
        seed=words.seed,
        threads=words.threads,
    )
    with progress(len(source), "images") as advance:
        made = packing.pack(source, chosen, advance)
    sys.stdout.write(_table(made))


def _parser() -> Parser:
    usage = "dino-ssl pack SOURCE --output FOLDER [--FLAG VALUE ...]\n       dino-ssl pack --verify FOLDER"
    parser = Parser(command="pack", usage=usage, description=DESCRIPTION)
    add = parser.add_argument
    add("source", nargs="?", metavar="SOURCE", help="as for dino-ssl pretrain --data")
    add("--output", metavar="FOLDER", help="a folder, or a pattern for the shards' names: data/train-%%06d.tar")
    add("--shard-size", type=_size, metavar="SIZE", help=f"longest a shard gets, such as 1GB ({DEFAULT_SIZE})")
    add("--samples-per-shard", type=whole(1), metavar="N", help="instead of a size")
    short_side = "reduce the shorter side to so many pixels and write JPEGs; without it the images stay as they are"
    add("--short-side", type=whole(1), metavar="PIXELS", help=short_side)
    add("--quality", type=whole(1, 100), default=95, metavar="Q", help="of these JPEGs, 1 to 100 (%(default)s)")
    threads = len(os.sched_getaffinity(0))
    add("--class-folders", action="store_true", help="write image files, a folder for each class, and no shards")
    align = "SOURCE is a .csv that also has x1 y1 ... x5 y5: eyes, nose, corners of the mouth; faces of 112 pixels"
    add("--align", action="store_true", help=align)
    add("--threads", type=whole(1), default=threads, metavar="N", help="that read and encode (one for each core)")
    root = PretrainConfig().data_root
    add("--data-root", type=Path, default=root, metavar="DIR", help="folder of known data sets (%(default)s)")
    add("--seed", type=whole(0, 2**63), default=0, metavar="S", help="of the order of the images (%(default)s)")
    add("--verify", type=Path, metavar="FOLDER", help="compare the shards in a folder with their checksums")
    return parser


def _check(words: argparse.Namespace) -> None:
    """Whether the arguments go together.

    Raises:
        UsageError: they do not.
    """
    problems = []
    if words.verify is None:
        problems += ["SOURCE is missing; write what to pack, such as a folder"] if not words.source else []
        problems += ["--output is missing; write a folder for the shards"] if not words.output else []
    if words.verify is not None and (words.source or words.output):
        problems.append("--verify goes without SOURCE and --output")
    if words.shard_size and words.samples_per_shard:
        problems.append("--shard-size and --samples-per-shard exclude each other; write one of them")
    if words.class_folders and (words.shard_size or words.samples_per_shard or words.output.endswith(".tar")):
        problems.append("--class-folders writes no shards; leave out their size, and write a folder after --output")
    if problems:
        raise UsageError(*problems)


def _source(words: argparse.Namespace) -> Source:
    source = open_aligned(Path(words.source)) if words.align else open_source(words.source, words.data_root)
    for problem in problems_of(source):
        print(problem, file=sys.stderr)
    return source


def _write_folders(source: Source, folder: Path, words: argparse.Namespace) -> None:
    with progress(len(source), "images") as advance:
        written, skipped = write_class_folders(
            source, folder, advance, short_side=words.short_side, quality=words.quality, threads=words.threads
        )
    where = f", listed in {folder / SKIPPED_FILE}" if skipped else ""
    sys.stdout.write(f"images   {written:,}\nclasses  {len(source.classes):,}\nskipped  {len(skipped):,}{where}\n")


def _size(text: str) -> int:
    """Bytes from text such as 512MB."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmg]i?b)", text.lower(), re.ASCII)
    if not found or float(found[1]) == 0:
        raise argparse.ArgumentTypeError(f"'{text}' must be a number and kB, MB, GB, KiB, MiB or GiB, such as 512MB")
    return int(float(found[1]) * UNITS[found[2]])


def _output(text: str) -> tuple[Path, str]:
    """Folder, and pattern of the shards' names."""
    if is_remote(text):
        raise UsageError(f"--output {text}: shards are written to a folder of this machine; copy that afterwards")
    path = Path(text).expanduser() if text.startswith("~/") else Path(text)
    folder, pattern = (path.parent, path.name) if path.suffix == ".tar" else (path, DEFAULT_PATTERN)
    if not re.fullmatch(r"[^%]*%0\d+d[^%]*\.tar", pattern):
        raise UsageError(f"--output {text}: write a folder, or a name with the place of the number, such as x-%06d.tar")
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--output {folder} is a file; write a folder")
    return folder, pattern


def _verify(folder: Path) -> None:
    made = packing.read(folder)
    with progress(len(made.shards), "shards") as advance:
        packing.verify(made, advance)
    sys.stdout.write(f"{len(made.shards):,} shards in {folder} are as they were written\n")


def _table(made: PackFile) -> str:
    skipped = f"{len(made.skipped):,}" + (f", listed in {made.folder / SKIPPED_FILE}" if made.skipped else "")
    return (
        f"images   {made.samples:,}\n"
        f"shards   {len(made.shards):,}\n"
        f"bytes    {_readable(made.num_bytes)}\n"
        f"skipped  {skipped}\n"
        f"{made.encoding}; checksums in {made.folder / PACK_FILE}\n\n"
        f"next: dino-ssl pretrain --data {shlex.quote(_data(made))}\n"
    )


def _readable(num_bytes: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= size:
            return f"{num_bytes / size:.1f} {unit}"
    return f"{num_bytes} bytes"


def _data(made: PackFile) -> str:
    """The shards as a SOURCE: their folder, or what lies beside other files."""
    folder = str(made.folder)
    if not is_shards(folder):
        names = [shard.name for shard in made.shards.values()]
        return str(made.folder / ("{" + ",".join(names) + "}" if len(names) > 1 else names[0]))
    return folder if "/" in folder else f"./{folder}"  # a known name would win over the folder
