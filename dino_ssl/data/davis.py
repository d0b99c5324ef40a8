"""Videos with masks in the layout of DAVIS 2017."""

import difflib
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dino_ssl.data.masks import Mask, read_mask
from dino_ssl.data.published_layout import not_laid_out
from dino_ssl.errors import UsageError

RESOLUTION = "480p"
TREE = """\
  DIR/ImageSets/2017/val.txt                    a sequence on each line
  DIR/JPEGImages/480p/SEQUENCE/00000.jpg        frames
  DIR/Annotations/480p/SEQUENCE/00000.png       masks: the colour's place in the palette is the object's number
"""


@dataclass(frozen=True)
class Clip:
    """A video, and the masks that are known of it.

    Attributes:
        frames: images, in the order of their names.
        masks: of the first frame at least.
    """

    name: str
    frames: tuple[Path, ...]
    masks: tuple[Path, ...]

    @property
    def annotated(self) -> bool:
        """Whether each frame has its mask, so that what is found can be compared."""
        return len(self.masks) == len(self.frames)

    def first_mask(self) -> Mask:
        """Raises UsageError."""
        return read_mask(self.masks[0])


@dataclass(frozen=True)
class Davis:
    """Sequences of one split."""

    name: str
    clips: tuple[Clip, ...]

    def fingerprint(self) -> str:
        """16 hexadecimal digits over names of sequences and frames, and over the masks."""
        digest = hashlib.sha256()
        for clip in self.clips:
            digest.update("\0".join([clip.name, *(frame.name for frame in clip.frames), ""]).encode())
            for mask in clip.masks:
                digest.update(mask.read_bytes())
        return digest.hexdigest()[:16]


def open_davis(root: Path, *, split: str = "val", sequences: Sequence[str] = ()) -> Davis:
    """Find the sequences of a split, or some of them.

    Raises:
        UsageError: the folder is laid out otherwise, or has no such sequence.
    """
    file = root / "ImageSets" / "2017" / f"{split}.txt"
    for place in (root / "JPEGImages" / RESOLUTION, root / "Annotations" / RESOLUTION, file):
        if not place.exists():
            raise not_laid_out(root, "DAVIS 2017", f"there is no {place}", TREE)
    listed = file.read_text(encoding="utf-8").split()
    if not listed:
        raise UsageError(f"{file} is empty; it must name a sequence on each line")
    if bad := [name for name in listed if name in (".", "..") or "/" in name]:
        raise UsageError(f"{file}: '{bad[0]}' is no name of a sequence; its masks would be written elsewhere")
    if unknown := [name for name in sequences if name not in listed]:
        near = difflib.get_close_matches(unknown[0], listed, n=3) or listed[:3]
        raise UsageError(f"sequences={unknown[0]} is not in {file}; it has {', '.join(near)}")
    clips = tuple(_clip(root, name) for name in sequences or listed)
    return Davis(f"{root}:{split}", clips)


def _clip(root: Path, name: str) -> Clip:
    folder = root / "JPEGImages" / RESOLUTION / name
    frames = tuple(sorted(folder.glob("*.jpg")))
    if not frames:
        raise not_laid_out(root, "DAVIS 2017", f"there is no frame {folder}/*.jpg", TREE)
    masks = [root / "Annotations" / RESOLUTION / name / f"{frame.stem}.png" for frame in frames]
    if not masks[0].is_file():
        raise not_laid_out(root, "DAVIS 2017", f"the first frame has no mask {masks[0]}", TREE)
    return Clip(name, frames, tuple(masks) if all(mask.is_file() for mask in masks) else (masks[0],))
