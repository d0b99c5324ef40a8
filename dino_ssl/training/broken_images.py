"""The list of images that could not be read."""

from pathlib import Path

from dino_ssl.durable import naming
from dino_ssl.errors import RunError


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
        self._list(broken)
        self._met |= {name for name, _ in broken}
        if len(self._met) > self.max_share * self.num_images:
            raise RunError(
                f"{len(self._met)} of {self.num_images} images could not be read, more than the share "
                f"loader.max_broken={self.max_share:g} allows; they are listed in {self.path}: repair them, or write "
                "a larger --loader.max-broken to go on without them"
            )

    def _list(self, broken: list[tuple[str, str]]) -> None:
        new = {name: reason for name, reason in broken if name not in self._listed}
        if not new:
            return
        self._listed |= new.keys()
        with naming(self.path), self.path.open("a", encoding="utf-8") as file:
            file.writelines(f"{name}\t{reason}\n" for name, reason in new.items())


def _read(path: Path) -> set[str]:
    if not path.exists():
        return set()
    lines = path.read_text(encoding="utf-8").splitlines()
    return {line.partition("\t")[0] for line in lines}
