"""Any source -> image files in a folder for each class, as every other program reads them."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from dino_ssl.data.decoding import BrokenImage, escaped
from dino_ssl.data.sources import Source
from dino_ssl.data.tar.pack_file import SKIPPED_FILE
from dino_ssl.data.tar.pack_images import encoded
from dino_ssl.durable import naming, write_atomically
from dino_ssl.errors import RunError, UsageError

CHUNK = 4096
"""Images that are asked for at once."""


def write_class_folders(
    source: Source,
    folder: Path,
    advance: Callable[[int], object],
    *,
    short_side: int | None = None,
    quality: int = 95,
    threads: int = 1,
) -> tuple[int, list[tuple[str, str]]]:
    """Write each image as CLASS/INDEX.SUFFIX, without labels as INDEX.SUFFIX; what is there already is kept.

    Args:
        advance: called with 1 after each image.
        short_side, quality: as of `pack_images.Packing`.
    Returns:
        The number of images that are there, and (name, reason) of those that cannot be read, also in `SKIPPED_FILE`.
    Raises:
        UsageError: a class has a name that no folder can have.
        RunError: the disk refuses, a file is there that holds something else, or no image can be read.
    """
    for name in source.classes:
        if name in ("", ".", "..") or "/" in name or "\0" in name:
            raise UsageError(f"class '{name}' of '{source.name}' cannot be the name of a folder; rename it")
    digits = max(6, len(str(len(source) - 1)))

    def write(index: int) -> tuple[str, str] | None:
        below = folder if source.labels is None else folder / source.classes[int(source.labels[index])]
        try:
            image = encoded(source, index, short_side, quality)
        except BrokenImage as error:
            return source.describe(index), error.reason
        _keep(below / f"{index:0{digits}d}.{image.extension}", image.data)
        return None

    skipped = []
    with naming(folder), ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(source), CHUNK):
            for problem in pool.map(write, range(start, min(start + CHUNK, len(source)))):
                skipped += [problem] if problem else []
                advance(1)
        if len(skipped) == len(source):
            raise RunError(f"none of {len(source):,} images can be read: {': '.join(skipped[0])}")
        if skipped:
            lines = "".join(f"{escaped(name)}\t{escaped(reason)}\n" for name, reason in skipped)
            write_atomically(folder / SKIPPED_FILE, lines.encode())
    return len(source) - len(skipped), skipped


def _keep(path: Path, data: bytes) -> None:
    """Write a file under its name once it is whole; the same one is left as it is.

    Raises:
        RunError: there is another one.
    """
    if path.exists():
        if path.read_bytes() != data:
            raise RunError(f"{path} is another image; nothing was written over it: choose an empty folder")
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(data)
    temporary.replace(path)
