"""One tar -> the index of its samples, by WebDataset's rule.

Members that follow each other and share a key (their path up to the first dot of the base name) are one sample.
Its image is the member with an image's extension; one without a second extension comes before others
(`7.jpg` before `7.mask.png`). Its label is the text of a .cls member, or "label" or "class" of a .json member.
"""

import json
from array import array
from collections import Counter

from dino_ssl.data.tar.shard_index import ShardIndex, index_of_one, with_problems
from dino_ssl.data.tar.tar_members import LINKS, REGULAR, DamagedTar, Member, Window, members, shown

IMAGES = (b"jpg", b"jpeg", b"png", b"webp", b"bmp", b"ppm", b"pgm", b"tif", b"tiff", b"gif")
LONGEST_LABEL = 2**20  # bytes of a .cls or .json that is read
LARGEST_IMAGE = 2**31  # bytes; sizes are kept in 32 bits

WITHOUT_IMAGE = "without an image"
AGAIN = "whose key came before; the first counts (members of one sample have to follow each other: tar --sort=name)"
SEVERAL = "with several images; the first counts"
GIANT = "of 2 GiB or more, which are left out"
LINKED = "that are links, which hold no image"


def read_tar(descriptor: int, num_bytes: int) -> ShardIndex:
    """The index of a shard; what is wrong with the shard is in the index's `problems`."""
    samples, damage = _Samples(), []
    try:
        window = Window(descriptor)
        for member in members(window, num_bytes):
            samples.add(member, window)
        samples.finish()
    except DamagedTar as error:
        samples.finish(cut=error.member)
        damage = [f"{error.reason}; the {samples.count:,} samples before that are used"]
    except OSError as error:
        samples.finish()
        damage = [f"cannot be read: {error.strerror}; {samples.count:,} samples are used"]
    return with_problems(samples.index(), [*damage, *samples.problems()])


def unreadable(reason: str) -> ShardIndex:
    """The index of a shard of which nothing is known."""
    return with_problems(_Samples().index(), [reason])


def key_and_extensions(name: bytes) -> tuple[bytes, bytes] | None:
    """The path up to the first dot of the base name, and what follows, in lower case; None for other files."""
    folder, slash, base = name.rpartition(b"/")
    stem, dot, extensions = base.partition(b".")
    if not stem or not dot:  # .hidden, README
        return None
    return folder + slash + stem, extensions.lower()


def label_in(text: bytes, extension: bytes) -> str | None:
    """The label that a member holds; numbers in their shortest form; a negative number is no label."""
    if extension == b"cls":
        value = text.decode("utf-8", "surrogateescape").strip()
        return _canonical(value) or None
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError):
        return None
    found = [fields[key] for key in ("label", "class") if key in fields] if isinstance(fields, dict) else []
    plain = [value for value in found if isinstance(value, str | int) and not isinstance(value, bool)]
    return (_canonical(str(plain[0])) or None) if plain else None


def _canonical(value: str) -> str:
    if not value.removeprefix("-").isdecimal() or not value.isascii() or len(value) > 18:
        return value
    return str(int(value)) if int(value) >= 0 else ""


class _Samples:
    """The samples of a shard so far, and the one that is being put together."""

    def __init__(self) -> None:
        self._starts, self._sizes, self._ends, self._names = array("q"), array("q"), array("q"), bytearray()
        self._labels: list[str | None] = []
        self._known_labels: dict[str, str] = {}
        self._seen: set[bytes] = set()
        self._notes: Counter[str] = Counter()
        self._examples: dict[str, bytes] = {}
        self._begin(b"")

    @property
    def count(self) -> int:
        return len(self._starts)

    def _begin(self, key: bytes) -> None:
        self._key = key
        self._image: Member | None = None
        self._is_plain = False
        self._label: str | None = None
        self._label_is_cls = False

    def add(self, member: Member, window: Window) -> None:
        """Take the next member."""
        parts = key_and_extensions(member.name)
        if parts is None:
            return
        key, extensions = parts
        last = extensions.rpartition(b".")[2]
        if member.kind not in REGULAR:
            if member.kind in LINKS and last in IMAGES:
                self._note(LINKED, member.name)
            return
        if key != self._key:
            self.finish()
            self._begin(key)
        if last in IMAGES:
            self._add_image(member, is_plain=extensions == last)
        elif extensions in (b"cls", b"json") and not self._label_is_cls and member.size <= LONGEST_LABEL:
            label = label_in(window.read(member.start, member.size), extensions)
            # One string for each label, not one for each sample.
            self._label = self._label if label is None else self._known_labels.setdefault(label, label)
            self._label_is_cls = extensions == b"cls"

    def _add_image(self, member: Member, *, is_plain: bool) -> None:
        if member.size >= LARGEST_IMAGE:
            self._note(GIANT, member.name)
        elif self._image is None or (is_plain and not self._is_plain):
            self._image, self._is_plain = member, is_plain
        elif is_plain == self._is_plain:
            self._note(SEVERAL, self._key)

    def finish(self, cut: bytes | None = None) -> None:
        """Keep the sample that was put together, unless the member `cut` belongs to it: then it is not whole."""
        key, image, self._image = self._key, self._image, None
        is_cut = cut is not None and (key_and_extensions(cut) or (b"",))[0] == key
        self._key = b""
        if not key or is_cut:
            return
        if key in self._seen:
            self._note(AGAIN, key)
            return
        self._seen.add(key)
        if image is None:
            self._note(WITHOUT_IMAGE, key)
            return
        self._starts.append(image.start)
        self._sizes.append(image.size)
        self._names += image.name
        self._ends.append(len(self._names))
        self._labels.append(self._label)

    def _note(self, what: str, example: bytes) -> None:
        self._notes[what] += 1
        self._examples.setdefault(what, example)

    def problems(self) -> list[str]:
        """A line for each kind of problem, with its first example."""
        return [
            f"{count:,} sample{'s' if count > 1 else ''} {what}: '{shown(self._examples[what])}'"
            + (" is the first" if count > 1 else "")
            for what, count in self._notes.items()
        ]

    def index(self) -> ShardIndex:
        """The index of the samples that were finished."""
        names = bytes(self._names)
        return index_of_one(starts=self._starts, sizes=self._sizes, names=self._ends, blob=names, labels=self._labels)
