"""Verification sets of InsightFace (lfw.bin, agedb_30.bin, ...): a pickle of encoded images and of what is the same.

A pickle is a program. These are read by a machine of our own that knows lists, bytes, numbers, booleans and tuples:
nothing in it can call anything. Files that hold arrays go through `unpickling`, which knows these, too.
"""

import hashlib
import pickletools
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

from dino_ssl.data import decoding, unpickling
from dino_ssl.errors import UsageError

MAX_BYTES = 2**32
"""Longest file that is read; the largest that is about, 7,000 pairs, has 0.1 GB."""
MAX_PAIRS = 2**20
MOST_REMEMBERED = 2**22
"""Objects that a pickle of arrays may refer back to."""
NAMES = ("GLOBAL", "INST", "STACK_GLOBAL", "BINUNICODE", "SHORT_BINUNICODE")
"""Operations that name what is to be called; the last two hold the names for the one before."""


@dataclass(frozen=True, eq=False)
class EncodedImages:
    """Encoded images in memory, without labels."""

    images: Sequence[bytes]
    name: str

    @property
    def labels(self) -> None:
        """Nothing is known of them."""

    @property
    def classes(self) -> tuple[str, ...]:
        return ()

    @property
    def shard_sizes(self) -> None:
        """Any order reads equally fast."""

    def __len__(self) -> int:
        return len(self.images)

    def raw(self, index: int) -> bytes:
        """The image's bytes."""
        return self.images[index]

    def describe(self, index: int) -> str:
        """The file and the image's place: `lfw.bin[12]`."""
        return f"{self.name}[{index}]"

    def fingerprint(self) -> str:
        """16 hexadecimal digits over all bytes."""
        digest = hashlib.sha256(f"{len(self)}\0".encode())
        for image in self.images:
            digest.update(hashlib.sha256(image).digest())
        return digest.hexdigest()[:16]


def read_bin(file: Path) -> tuple[EncodedImages, Bool[np.ndarray, " p"]]:
    """Images, of which 2i and 2i + 1 are the pair i, and whether both show one person.

    Raises:
        UsageError: the file is missing, too long, damaged, asks for anything to be called, or holds something else;
            says at which byte.
    """
    try:
        if file.stat().st_size > MAX_BYTES:
            raise UsageError(f"{file} has {file.stat().st_size:,} bytes; a set of pairs has at most {MAX_BYTES:,}")
        content = file.read_bytes()
    except OSError as error:
        raise UsageError(f"{file} cannot be opened: {error.strerror}") from None
    found = _value(file, content)
    match found:
        case (images, is_same) if _is_row(images) and _is_row(is_same):
            return _checked(file, list(images), list(is_same))
        case _:
            raise UsageError(f"{file} holds a {type(found).__name__}, not images and a list of which are the same")


def _is_row(value: Any) -> bool:
    return isinstance(value, list | tuple) or (isinstance(value, np.ndarray) and value.ndim > 0)


def _checked(file: Path, images: list[Any], is_same: list[Any]) -> tuple[EncodedImages, Bool[np.ndarray, " p"]]:
    if not len(images) == 2 * len(is_same) > 0 or len(is_same) > MAX_PAIRS:
        numbers = f"{len(images):,} images and {len(is_same):,} pairs"
        raise UsageError(f"{file} has {numbers}; there must be two images for each of 1 to {MAX_PAIRS:,} pairs")
    encoded = [_encoded(image) for image in images]
    if None in encoded:
        place = encoded.index(None)
        raise UsageError(f"{file}: image {place} is a {type(images[place]).__name__}, not the bytes of an image")
    if odd := [place for place, value in enumerate(is_same) if not _is_flag(value)]:
        raise UsageError(f"{file}: pair {odd[0]} is marked {is_same[odd[0]]!r:.40}; it must be true or false")
    name = decoding.printable(file)
    return EncodedImages([image for image in encoded if image is not None], name), np.array(is_same, bool)


def _encoded(image: Any) -> bytes | None:
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 1:
        return image.tobytes()
    return image if isinstance(image, bytes) else None


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool | int | np.bool_ | np.integer) and value in (0, 1)


def _value(file: Path, content: bytes) -> Any:
    """What the pickle builds."""
    machine = _Machine()
    last = 0
    try:
        for opcode, argument, place in pickletools.genops(BytesIO(content)):
            last = place or 0
            if opcode.name in NAMES:
                return _arrays(file, content)
            machine.step(opcode.name, argument)
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError, struct.error) as error:
        said = f"byte {last:,}: {error or type(error).__name__}"
        raise UsageError(f"{file} is damaged or no set of pairs, from {said}; fetch it again") from None
    if not machine.stack:
        raise UsageError(f"{file} is damaged or no set of pairs: it ends before anything is in it; fetch it again")
    return machine.stack[-1]


def _arrays(file: Path, content: bytes) -> Any:
    """The same with arrays; places to remember things at are bounded before, as all up to the largest are made."""
    for opcode, argument, place in pickletools.genops(BytesIO(content)):
        if opcode.name in ("LONG_BINPUT", "PUT") and int(argument or 0) > MOST_REMEMBERED:
            raise UsageError(f"{file} is damaged or malicious, at byte {place:,}: place {argument:,} to remember at")
    return unpickling.load_value(file)


class _Machine:
    """Runs the few operations that building lists of bytes and booleans takes."""

    MARK = object()

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def step(self, name: str, argument: Any) -> None:
        """One operation.

        Raises:
            ValueError: it is none of these; others, where it makes no sense.
        """
        match name:
            case "PROTO" | "FRAME" | "STOP":
                pass
            case "MARK":
                self.stack.append(self.MARK)
            case "EMPTY_LIST":
                self.stack.append([])
            case "SHORT_BINSTRING" | "BINSTRING":  # of Python 2, which had no other bytes
                self.stack.append(argument.encode("latin1"))
            case "SHORT_BINBYTES" | "BINBYTES" | "BINBYTES8" | "BININT1":
                self.stack.append(argument)
            case "NEWTRUE" | "NEWFALSE":
                self.stack.append(name == "NEWTRUE")
            case "BINPUT" | "LONG_BINPUT" | "MEMOIZE":
                self.memo[len(self.memo) if argument is None else argument] = self.stack[-1]
            case "BINGET" | "LONG_BINGET":
                self.stack.append(self.memo[argument])
            case _:
                self._gather(name)

    def _gather(self, name: str) -> None:
        match name:
            case "APPEND":
                value = self.stack.pop()
                self._list().append(value)
            case "APPENDS":
                values = self._since_mark()
                self._list().extend(values)
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                number = int(name[-1])
                self.stack[-number:] = [tuple(self.stack[-number:])]
            case "TUPLE":
                values = self._since_mark()
                self.stack.append(tuple(values))
            case _:
                raise ValueError(f"{name}, which lists of images and booleans do not need, was not run")

    def _list(self) -> list[Any]:
        target = self.stack[-1]
        if not isinstance(target, list):
            raise ValueError("something is appended to what is no list")
        return target

    def _since_mark(self) -> list[Any]:
        place = len(self.stack) - 1 - self.stack[::-1].index(self.MARK)
        values = self.stack[place + 1 :]
        del self.stack[place:]
        return values
