"""Whether a file of tensors is what was written: PyTorch's reader does not look."""

import hashlib
import re
import zipfile
import zlib
from pathlib import Path

from dino_ssl.errors import RunError


def verify(path: Path) -> None:
    """Read the checkpoint `path` whole and compare it with its checksum.

    Without a `.sha256` file beside it, the checksums inside the archive decide, and nothing in it may take more
    bytes than the archive has: PyTorch compresses nothing, and what expands could fill the memory.

    Raises:
        RunError: it is damaged or cannot be read; says which file and why.
    """
    try:
        recorded = sidecar(path).read_bytes() if sidecar(path).exists() else b""
        expected = re.match(rb"[0-9a-f]{64}\b", recorded)
        damage = _damage_by_archive(path) if expected is None else _damage_by_digest(path, expected[0])
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror or error}") from error
    if damage:
        raise RunError(f"{path} is damaged: {damage}")


def _damage_by_digest(path: Path, expected: bytes) -> str:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return "" if digest.encode() == expected else f"its SHA-256 is not the one in {sidecar(path).name}"


# What zipfile makes of garbage, found by changing every byte of a checkpoint.
_GARBAGE = (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError, ValueError)


def _damage_by_archive(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > path.stat().st_size:
                return "it would expand to more than it holds"
            broken = next((e.filename for e in archive.infolist() if _is_marked_as_folder(e)), None)
            broken = broken or archive.testzip()
    except _GARBAGE as error:
        return f"{error}"
    return f"wrong checksum of {broken}" if broken else ""


def _is_marked_as_folder(entry: zipfile.ZipInfo) -> bool:
    """Torch would take arbitrary memory for the bytes of `entry`, without a word."""
    return bool(entry.external_attr & 0x10)


def write_sidecar(path: Path) -> None:
    """Put the checksum of a file beside it, from where `verify` takes it: of formats that have none inside."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    sidecar(path).write_text(f"{digest}  {path.name}\n", encoding="utf-8")


def sidecar(path: Path) -> Path:
    """Where the checksum of a file stands, in the format of `sha256sum`."""
    return path.with_name(path.name + ".sha256")
