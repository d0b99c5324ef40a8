"""Writing one shard: a plain tar whose bytes depend on its samples alone, complete or not there."""

import hashlib
import io
import os
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from dino_ssl.durable import naming, sync_folder

BLOCK, RECORD = tarfile.BLOCKSIZE, tarfile.RECORDSIZE


class ShardWriter:
    """A tar that is being written.

    Attributes:
        samples: written so far.
        num_bytes, sha256: of the whole file, once it is closed.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.samples = 0
        self._hashed = _Hashed(file)
        # USTAR is the oldest form that everything reads; without a time, equal samples make equal tars.
        self._tar = tarfile.open(fileobj=self._hashed, mode="w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115

    def size_with(self, sample: dict[str, bytes]) -> int:
        """Length of the finished tar, bytes, if one more sample were written."""
        more = sum(BLOCK + -(-len(data) // BLOCK) * BLOCK for data in sample.values())
        return -(-(self._tar.offset + more + 2 * BLOCK) // RECORD) * RECORD

    def add(self, key: str, sample: dict[str, bytes]) -> None:
        """Write a sample: contents by extension."""
        for extension, data in sample.items():
            member = tarfile.TarInfo(f"{key}.{extension}")
            member.size = len(data)
            self._tar.addfile(member, io.BytesIO(data))
        self.samples += 1

    def close(self) -> None:
        """Write the end mark."""
        self._tar.close()
        self.num_bytes = self._hashed.tell()
        self.sha256 = self._hashed.digest.hexdigest()


class _Hashed(io.RawIOBase):
    """A file whose bytes are hashed on their way."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.digest = hashlib.sha256()

    def write(self, data: bytes) -> int:  # type: ignore[override]
        self.digest.update(data)
        return self._file.write(data)

    def tell(self) -> int:
        return self._file.tell()


@contextmanager
def new_shard(path: Path) -> Iterator[ShardWriter]:
    """A shard that gets its name when everything is on the disk; before that, or after an error, nothing is there.

    Raises:
        RunError: the disk refuses.
    """
    temporary = path.with_name(path.name + ".tmp")
    with naming(path):
        try:
            with temporary.open("wb") as file:
                writer = ShardWriter(file)
                yield writer
                writer.close()
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
            sync_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def sha256_of(path: Path) -> str | None:
    """The file's checksum; None if it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None
