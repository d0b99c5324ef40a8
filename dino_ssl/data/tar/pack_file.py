"""index.json, beside packed shards: how they were made, what is in them, and their checksums."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dino_ssl.data.decoding import escaped
from dino_ssl.data.tar.shard_index_files import FIRST_FORMAT, MADE_BY, PACK_FILE, SUM, check_sum, sum_of
from dino_ssl.data.tar.shard_writer import sha256_of
from dino_ssl.durable import naming, write_atomically
from dino_ssl.errors import UsageError

FORMAT = 2
SKIPPED_FILE = "skipped.txt"
"""One `image<tab>reason` a line."""


@dataclass(frozen=True)
class PackedShard:
    """A finished shard.

    Attributes:
        first, end: the positions in the shuffled order that it covers; those of skipped images are among them.
        num_bytes: length of the file.
        skipped: (image, reason) of each image that could not be read.
    """

    name: str
    first: int
    end: int
    samples: int
    num_bytes: int
    sha256: str
    skipped: list[tuple[str, str]]


@dataclass
class PackFile:
    """The contents of index.json.

    Attributes:
        source: name of the source, for people.
        options: everything on which the shards depend; the same options of the same source make the same shards.
        encoding: what was done to the images, for people.
        shards: finished ones by number.
    """

    folder: Path
    source: str
    options: dict[str, Any]
    encoding: str
    classes: list[str]
    complete: bool = False
    shards: dict[int, PackedShard] = field(default_factory=dict)

    @property
    def samples(self) -> int:
        return sum(shard.samples for shard in self.shards.values())

    @property
    def num_bytes(self) -> int:
        return sum(shard.num_bytes for shard in self.shards.values())

    @property
    def skipped(self) -> list[tuple[str, str]]:
        """(image, reason) of every image that could not be read."""
        return [entry for shard in self.shards.values() for entry in shard.skipped]

    def is_whole(self, number: int) -> bool:
        """Whether a finished shard is on the disk as it was written."""
        shard = self.shards[number]
        path = self.folder / shard.name
        return path.is_file() and path.stat().st_size == shard.num_bytes and sha256_of(path) == shard.sha256

    def save(self) -> None:
        """Replace index.json in one step.

        Raises:
            RunError: the disk refuses.
        """
        about = {
            "made_by": MADE_BY,
            "format": FORMAT,
            "complete": self.complete,
            "source": self.source,
            "encoding": self.encoding,
            "samples": self.samples,
            "options": self.options,
            "classes": self.classes,
            "shards": [asdict(shard) for shard in self.shards.values()],
        }
        about[SUM] = sum_of(about)
        path = self.folder / PACK_FILE
        with naming(path):
            write_atomically(path, (json.dumps(about, indent=1) + "\n").encode())

    def save_skipped(self) -> None:
        """List the skipped images in a file of their own; none if there are none.

        Raises:
            RunError: the disk refuses.
        """
        path = self.folder / SKIPPED_FILE
        text = "".join(f"{escaped(name)}\t{escaped(reason)}\n" for name, reason in self.skipped)
        with naming(path):
            if text:
                write_atomically(path, text.encode("utf-8", "backslashreplace"))
            else:
                path.unlink(missing_ok=True)


def read_pack_file(folder: Path) -> PackFile | None:
    """What `PackFile.save` wrote; None if there is no index.json.

    Raises:
        UsageError: it is damaged, or of another program.
    """
    path = folder / PACK_FILE
    try:
        about = json.loads(path.read_bytes())
        if about["made_by"] == MADE_BY and about["format"] in (FIRST_FORMAT, FORMAT):
            check_sum(about)
            return _pack_file(folder, about)
        problem = f"is not by this version of `{MADE_BY}`"
    except FileNotFoundError:
        return None
    except OSError as error:
        problem = f"cannot be read: {error.strerror}"
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        problem = "is damaged or of another program"
    raise UsageError(f"{path} {problem}; choose another folder, or remove the file and the shards beside it")


def _pack_file(folder: Path, about: dict[str, Any]) -> PackFile:
    if bad := [shard["name"] for shard in about["shards"] if Path(shard["name"]).name != shard["name"]]:
        raise KeyError(bad[0])  # it would be read, or removed, elsewhere
    shards = [PackedShard(**{**shard, "skipped": [tuple(e) for e in shard["skipped"]]}) for shard in about["shards"]]
    return PackFile(
        folder=folder,
        source=about["source"],
        options=about["options"],
        encoding=about["encoding"],
        classes=about["classes"],
        complete=about["complete"],
        shards=dict(enumerate(shards)),
    )


def start_or_resume(new: PackFile) -> PackFile:
    """The folder's own index.json if it was made with the options of `new`; `new` itself for a folder without shards.

    Raises:
        UsageError: other options or another source, or shards of another program.
    """
    old = read_pack_file(new.folder)
    if old is None:
        if strange := next(new.folder.glob("*.tar"), None):
            raise UsageError(f"--output {new.folder} holds shards without {PACK_FILE}: {strange.name}; choose another")
        return new
    differing = [key for key, value in new.options.items() if old.options.get(key) != value]
    if {"images", "fingerprint"} & set(differing):
        raise UsageError(f"--output {new.folder} holds shards of another source, {old.source}; choose another folder")
    if differing == ["order"]:
        raise UsageError(
            f"--output {new.folder} holds shards that another version mixed otherwise; choose another folder"
        )
    if differing:
        differing = [key for key in differing if key != "order"]
        said = ", ".join(f"--{key} {old.options.get(key)} (now {new.options[key]})" for key in differing)
        raise UsageError(
            f"--output {new.folder} holds shards made with {said}; write the same, or choose another folder"
        )
    return old
