"""What happens to files: flipped bits, truncation, blocks swapped, zeroed or repeated, one file in another's place.

`python tests/fuzz/corruptions.py --seed 7 --count 100` holds every subject to 100 corruptions that no test knows, and
prints the line for seeds.txt of each that it does not survive.
"""

import argparse
import os
import sys
import tempfile
import time
import traceback
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

MOST_FLIPS = 4
SECONDS = 20.0
"""Longer, and a damaged file made the tool hang."""


def flipped(data: bytes, dice: np.random.Generator, other: bytes) -> bytes:
    changed = bytearray(data)
    for place in dice.integers(len(data) * 8, size=dice.integers(1, MOST_FLIPS + 1)).tolist():
        changed[place // 8] ^= 1 << (place % 8)
    return bytes(changed)


def truncated(data: bytes, dice: np.random.Generator, other: bytes) -> bytes:
    # Often near the end: a writer was killed in its last block.
    keep = dice.integers(len(data)) if dice.random() < 0.7 else len(data) - dice.integers(1, min(len(data), 64) + 1)
    return data[: int(keep)]


def swapped(data: bytes, dice: np.random.Generator, other: bytes) -> bytes:
    length = int(min(dice.choice([1, 4, 64, 512]), len(data) // 2))
    one = int(dice.integers(0, len(data) - 2 * length + 1))
    two = int(dice.integers(one + length, len(data) - length + 1))
    between, first, second = data[one + length : two], data[one : one + length], data[two : two + length]
    return data[:one] + second + between + first + data[two + length :]


def zeroed(data: bytes, dice: np.random.Generator, other: bytes) -> bytes:
    """A block that the disk never wrote."""
    length = int(min(dice.choice([1, 16, 512, 4096]), len(data)))
    start = int(dice.integers(0, len(data) - length + 1))
    return data[:start] + bytes(length) + data[start + length :]


def repeated(data: bytes, dice: np.random.Generator, other: bytes) -> bytes:
    """A block that was written twice; everything behind it moves."""
    start, length = int(dice.integers(len(data))), int(dice.choice([1, 16, 512]))
    return data[: start + length] + data[start:]


def exchanged(data: bytes, dice: np.random.Generator, other: bytes) -> bytes:
    return other


KINDS: dict[str, Callable[[bytes, np.random.Generator, bytes], bytes]] = {
    "flipped": flipped,
    "truncated": truncated,
    "swapped": swapped,
    "zeroed": zeroed,
    "repeated": repeated,
    "exchanged": exchanged,
}
OFTEN = ("flipped", "flipped", "flipped", "truncated", "truncated", "swapped", "zeroed", "repeated", "exchanged")


def corrupted(data: bytes, dice: np.random.Generator, other: bytes) -> tuple[str, bytes]:
    """The kind of damage and the bytes after it, which differ from those before."""
    while True:
        kind = str(dice.choice(OFTEN))
        found = KINDS[kind](data, dice, other) if data else b"\0"
        if found != data:
            return kind, found


@dataclass
class Subject:
    """A kind of file and what reads it.

    Attributes:
        folder: everything lies in it.
        files: may be damaged, below the folder; a second name (hard link) is not written through.
        look: given the damaged file and what was in it, reads as a user would and says what came of it in a word;
            an AssertionError says that damage passed in silence.
        changes: below the folder, files that a look may write.
    """

    name: str
    folder: Path
    files: Sequence[Path]
    look: Callable[[Path, bytes], str]
    changes: Callable[[Path], bool] = lambda path: False
    good: dict[Path, bytes] = field(default_factory=dict)

    def contents(self) -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in sorted(self.folder.rglob("*")) if path.is_file()}

    def must_stay(self, contents: dict[Path, bytes]) -> dict[Path, bytes]:
        return {path: data for path, data in contents.items() if not self.changes(path)}

    def put_back(self) -> None:
        found = self.contents()
        for stray in found.keys() - self.good.keys():
            stray.unlink()
        for path, data in self.good.items():
            if found.get(path) != data:
                put(path, data)


def trial(subject: Subject, number: int) -> tuple[str, str, str]:
    """Damage one file, look, and put everything back: the kind of damage, the file, and what came of it.

    Raises:
        AssertionError: the look fell over it, did not notice it, took too long, or other files are not as they were.
    """
    dice = np.random.default_rng([zlib.crc32(subject.name.encode()), number])
    subject.good = subject.good or subject.contents()
    path = subject.files[int(dice.integers(len(subject.files)))]
    before = subject.good[path]
    neighbours = [data for other, data in subject.good.items() if other.suffix == path.suffix and data != before]
    other = neighbours[int(dice.integers(len(neighbours)))] if neighbours else bytes(reversed(before))
    kind, after = corrupted(before, dice, other)
    put(path, after)
    began = time.monotonic()
    try:
        outcome = subject.look(path, before)
        expected = subject.must_stay({**subject.good, path: after})
        assert subject.must_stay(subject.contents()) == expected, "a file that was not damaged has changed"
        assert time.monotonic() - began < SECONDS, "it took too long"
    except BaseException as error:
        text = "".join(traceback.format_exception(error)[-6:])
        raise AssertionError(f"{subject.name} {number}: {path.name} {kind}: {text}") from error
    finally:
        subject.put_back()
    return kind, path.name, outcome


def put(path: Path, data: bytes) -> None:
    """Replace the file and not what else has its bytes."""
    path.unlink(missing_ok=True)
    path.write_bytes(data)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=100, help="corruptions of each subject")
    parser.add_argument("--only", default="", help="name of a subject")
    words = parser.parse_args()
    from subjects import subjects_named  # noqa: PLC0415  (imports this module)

    lost = 0
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder + "/cache"
        for subject in subjects_named(words.only, Path(folder)):
            outcomes: Counter[str] = Counter()
            for number in range(words.seed * 1_000_000, words.seed * 1_000_000 + words.count):
                try:
                    outcomes[" -> ".join(trial(subject, number)[::2])] += 1
                except AssertionError as error:
                    lost += 1
                    print(f"{subject.name} {number}\n{error}", file=sys.stderr)
            print(subject.name, dict(sorted(outcomes.items())))
    return min(lost, 1)


if __name__ == "__main__":
    sys.exit(main())
