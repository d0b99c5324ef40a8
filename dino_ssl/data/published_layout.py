"""Data sets in the layout in which they were published, and what to say when they are not."""

from pathlib import Path

from dino_ssl.errors import UsageError


def not_laid_out(root: Path, data_set: str, missing: str, tree: str) -> UsageError:
    """An error that shows the expected tree.

    Args:
        missing: what was looked for and not found, in words.
        tree: lines of paths below DIR, each with what it is.
    """
    return UsageError(f"data={root} is not laid out as {data_set}: {missing}; expected is\n{tree.rstrip()}")
