"""`dino-ssl pack`: any source -> WebDataset shards, with progress, a checksum for each shard, and a short table."""

import argparse
import os
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from tqdm import tqdm

from dino_ssl.config import PretrainConfig
from dino_ssl.config_schema import did_you_mean, nearest
from dino_ssl.data.sources import open_source
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
    "interrupted, the same command goes on; finished shards whose checksums hold are kept."
)
UNITS = {"kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
DEFAULT_SIZE = "512MB"
DEFAULT_PATTERN = "shard-%06d.tar"
SECONDS_BETWEEN_LINES = 10.0


class _Parser(argparse.ArgumentParser):
    """Mistakes become our errors; argparse itself would end the process."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message.removeprefix("argument "))


def pack(arguments: Sequence[str]) -> None:
    """`dino-ssl pack`.

    Raises:
        UsageError: a mistake in the arguments, the source or the folder.
        RunError: the disk refuses, no image can be read, or --verify found a difference.
    """
    if {"-h", "--help"} & set(arguments):
        sys.stdout.write(_parser().format_help())
        return
    words = _words(arguments)
    if words.verify is not None:
        _verify(words.verify)
        return
    folder, pattern = _output(words.output)
    source = open_source(words.source, words.data_root)
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
    with _progress(len(source), "images") as advance:
        made = packing.pack(source, chosen, advance)
    sys.stdout.write(_table(made))


def _parser() -> _Parser:
    usage = "dino-ssl pack SOURCE --output FOLDER [--FLAG VALUE ...]\n       dino-ssl pack --verify FOLDER"
    parser = _Parser(usage=usage, description=DESCRIPTION, add_help=False, allow_abbrev=False)
    add = parser.add_argument
    add("source", nargs="?", metavar="SOURCE", help="as for dino-ssl pretrain --data")
    add("--output", metavar="FOLDER", help="a folder, or a pattern for the shards' names: data/train-%%06d.tar")
    add("--shard-size", type=_size, metavar="SIZE", help=f"longest a shard gets, such as 1GB ({DEFAULT_SIZE})")
    add("--samples-per-shard", type=_from(1), metavar="N", help="instead of a size")
    short_side = "reduce the shorter side to so many pixels and write JPEGs; without it the images stay as they are"
    add("--short-side", type=_from(1), metavar="PIXELS", help=short_side)
    add("--quality", type=_from(1, 100), default=95, metavar="Q", help="of these JPEGs, 1 to 100 (%(default)s)")
    threads = len(os.sched_getaffinity(0))
    add("--threads", type=_from(1), default=threads, metavar="N", help="that read and encode (one for each core)")
    root = PretrainConfig().data_root
    add("--data-root", type=Path, default=root, metavar="DIR", help="folder of known data sets (%(default)s)")
    add("--seed", type=_from(0, 2**63), default=0, metavar="S", help="of the order of the images (%(default)s)")
    add("--verify", type=Path, metavar="FOLDER", help="compare the shards in a folder with their checksums")
    return parser


def _words(arguments: Sequence[str]) -> argparse.Namespace:
    """The arguments, each by itself sound, and together.

    Raises:
        UsageError: what is not.
    """
    words, unknown = _parser().parse_known_args(arguments)
    problems = list(_unknown(unknown))
    if words.verify is None and not problems:
        problems += ["SOURCE is missing; write what to pack, such as a folder"] if not words.source else []
        problems += ["--output is missing; write a folder for the shards"] if not words.output else []
    if words.verify is not None and (words.source or words.output):
        problems.append("--verify goes without SOURCE and --output")
    if words.shard_size and words.samples_per_shard:
        problems.append("--shard-size and --samples-per-shard exclude each other; write one of them")
    if problems:
        raise UsageError(*problems)
    return words


def _unknown(words: Sequence[str]) -> Iterator[str]:
    flags = [action.option_strings[0] for action in _parser()._actions if action.option_strings]
    for word in words:
        flag = word.partition("=")[0]
        if flag.startswith("-"):
            yield f"unknown flag {flag}{did_you_mean(nearest(flag, flags))}"
    if words and not any(word.startswith("-") for word in words):
        yield f"one SOURCE at a time: '{words[0]}' is too much"


def _from(least: int, most: int | None = None) -> Callable[[str], int]:
    rule = f"a whole number from {least} on" if most is None else f"a whole number from {least} to {most}"

    def number(text: str) -> int:
        if not (text.isascii() and text.isdecimal()) or int(text) < least or (most is not None and int(text) > most):
            raise argparse.ArgumentTypeError(f"'{text}' must be {rule}")
        return int(text)

    return number


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


@contextmanager
def _progress(total: int, what: str) -> Iterator[Callable[[int], object]]:
    """A bar on a terminal, a line now and then elsewhere."""
    if sys.stderr.isatty():
        with tqdm(total=total, unit=f" {what}", smoothing=0.05) as bar:
            yield bar.update
        return
    done, last = 0, time.monotonic()

    def advance(count: int) -> None:
        nonlocal done, last
        done += count
        if time.monotonic() - last >= SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            sys.stderr.write(f"{done:,} of {total:,} {what}\n")
            sys.stderr.flush()

    yield advance


def _verify(folder: Path) -> None:
    made = packing.read(folder)
    with _progress(len(made.shards), "shards") as advance:
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
