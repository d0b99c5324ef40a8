"""The list of images that could not be read."""

from pathlib import Path

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
        self.limit = max_share * num_images
        self.reasons = _read(path)

    def add(self, broken: list[tuple[str, str]]) -> None:
        """Note images met in a batch.

        Raises:
            RunError: the share of unreadable images is too large.
        """
        new = {name: reason for name, reason in broken if name not in self.reasons}
        if not new:
            return
        self.reasons |= new
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(f"{name}\t{reason}\n" for name, reason in new.items())
        if len(self.reasons) > self.limit:
            raise RunError(
                f"{len(self.reasons)} images could not be read, more than loader.max_broken allows "
                f"({self.limit:g}); they are listed in {self.path}: repair or remove them, or raise the limit"
            )


def _read(path: Path) -> dict[str, str]:
    if not path.exists():
        return {}
    lines = path.read_text(encoding="utf-8").splitlines()
    return dict(line.split("\t", 1) for line in lines if "\t" in line)
