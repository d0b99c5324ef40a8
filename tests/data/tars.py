"""Tars for the tests beside this file, and a naive reader of them to compare with."""

import io
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import Image

from dino_ssl.data.tar.shards import Shards, open_shards

Entries = Iterable[tuple[str, bytes]]
IMAGES = ("jpg", "jpeg", "png", "webp", "bmp", "ppm", "pgm", "tif", "tiff", "gif")


def picture(value: int, side: int = 4) -> bytes:
    """A small PNG in one colour."""
    stream = io.BytesIO()
    Image.new("RGB", (side, side), (value % 256, value // 256, 0)).save(stream, "PNG")
    return stream.getvalue()


def write_tar(path: Path, entries: Entries, tar_format: int = tarfile.GNU_FORMAT) -> Path:
    """Write files by name; names are text in which bytes that are no UTF-8 are surrogates."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tar_format, encoding="utf-8", errors="surrogateescape") as tar:
        for name, data in entries:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def pictures(numbers: Sequence[int], *, label: bool = False) -> list[tuple[str, bytes]]:
    """Samples 000007.png, perhaps with the last digit as 000007.cls."""
    entries = [[(f"{n:06d}.png", picture(n)), (f"{n:06d}.cls", str(n % 10).encode())] for n in numbers]
    return [entry for sample in entries for entry in (sample if label else sample[:1])]


def opened(spec: Path | str) -> Shards:
    return open_shards(str(spec), str(spec))


def contents(source: Shards) -> list[bytes]:
    return [source.raw(index) for index in range(len(source))]


def read_naively(path: Path) -> list[tuple[str, bytes, bytes | None]]:
    """(name, image, text of the .cls) of each sample, as the rule of WebDataset is written, by the standard library."""
    groups: list[tuple[str, dict[str, tuple[str, bytes]]]] = []
    with tarfile.open(path, encoding="utf-8", errors="surrogateescape") as tar:
        for member in tar:
            folder, slash, base = member.name.rpartition("/")
            stem, _, extension = base.partition(".")
            if not member.isreg() or not stem or not extension:
                continue
            key = folder + slash + stem
            if not groups or groups[-1][0] != key:
                groups.append((key, {}))
            groups[-1][1][extension.lower()] = (member.name, tar.extractfile(member).read())
    samples = []
    for _, members in groups:
        images = [members[extension] for extension in members if extension in IMAGES]
        samples += [(*image, members.get("cls", ("", None))[1]) for image in images[:1]]
    return samples
