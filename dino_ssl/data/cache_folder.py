"""Where this user's machine keeps what can be made again: it may be deleted at any time."""

import os
from pathlib import Path


def cache_folder(*below: str) -> Path | None:
    """${XDG_CACHE_HOME:-~/.cache}/dino_ssl/..., made if need be; None where nothing can be written."""
    home = os.environ.get("XDG_CACHE_HOME", "")
    try:
        # A relative path is to be ignored: XDG Base Directory Specification.
        folder = (Path(home) if home.startswith("/") else Path.home() / ".cache").joinpath("dino_ssl", *below)
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # RuntimeError: a user without a home
        return None
    return folder if os.access(folder, os.W_OK) else None
