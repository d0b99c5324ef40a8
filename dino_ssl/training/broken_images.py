"""The list of images that could not be read."""

import logging
from pathlib import Path

from dino_ssl.data.decoding import escaped
from dino_ssl.durable import naming
from dino_ssl.errors import RunError

logger = logging.getLogger("dino_ssl")


class BrokenImages:
    """Unreadable images of this rank: counted once each, listed in the run's folder, bounded by a share.

    Args:
        path: where the list is kept, one `file<tab>reason` a line.
        num_images: in the whole data set.
        max_share: above this share of the data set the run stops.
    """

    def __init__(self, path: Path, num_images: int, max_share: float) -> None:
        self.path = path
        self.num_images = num_images
        self.max_share = max_share
        # Images that an earlier process listed may be repaired by now: they count when they are met again.
        self._listed = _read(path)
        self._met: set[str] = set()

    def add(self, broken: list[tuple[str, str]]) -> None:
        """Note images met in a batch.

        Raises:
            RunError: the share of unreadable images is too large.
        """
        cells = {escaped(name): escaped(reason) for name, reason in broken}
        self._list(cells)
        if cells and not self._met:
            logger.warning("an image could not be read, another takes its place; all are listed in %s", self.path)
        self._met |= cells.keys()
        if len(self._met) > self.max_share * self.num_images:
            raise RunError(
                f"{len(self._met)} of {self.num_images} images could not be read, more than the share "
                f"loader.max_broken={self.max_share:g} allows; they are listed in {self.path}: repair them, or write "
                "a larger --loader.max-broken to go on without them"
            )

    def __len__(self) -> int:
        """Images in the list, those of earlier processes included."""
        return len(self._listed)

    def _list(self, broken: dict[str, str]) -> None:
        new = {name: reason for name, reason in broken.items() if name not in self._listed}
        if not new:
            return
        self._listed |= new.keys()
        with naming(self.path), self.path.open("a", encoding="utf-8") as file:
            file.writelines(f"{name}\t{reason}\n" for name, reason in new.items())


def _read(path: Path) -> set[str]:
    if not path.exists():
        return set()
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    return {line.partition("\t")[0] for line in lines if line}
