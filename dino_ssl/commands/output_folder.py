"""Where a command puts pictures that must not be taken for images of the data."""

from collections.abc import Sequence
from pathlib import Path

from dino_ssl.errors import UsageError


def output_folder(folder: Path, images: Sequence[Path]) -> Path:
    """Make the folder, with those above it.

    Args:
        images: where the data come from; what is no folder is no matter.
    Raises:
        UsageError: it lies in a folder of images, or cannot be made.
    """
    for place in images:
        if place.is_dir() and folder.resolve().is_relative_to(place.resolve()):
            raise UsageError(
                f"output_dir={folder} lies in the folder of images, {place}, where the pictures would be taken for "
                "some; write --output-dir with a folder outside"
            )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"output_dir={folder} cannot be written ({error.strerror}); write --output-dir with another folder"
        ) from error
    return folder
