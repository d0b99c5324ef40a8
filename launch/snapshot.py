"""The code of a run, as it is when the run is submitted: what changes later does not reach a job that is requeued."""

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from dino_ssl.errors import UsageError
from dino_ssl.training.code_state import CHANGES, SNAPSHOT, describe_code, git

ROOT = Path(__file__).resolve().parent.parent
LARGEST = 200_000_000  # bytes
COMPILED = ("*.so", "*.pyd")
"""Git ignores the compiled kernel; the run needs it."""


def take_snapshot(folder: Path, root: Path = ROOT) -> None:
    """Copy the code below `root` to `folder`, in one step, in the place of an earlier snapshot.

    Of a git checkout these are the files that git tracks and the new ones that it does not ignore; beside them
    lie snapshot.json, with the commit, and changes.diff, with what differs from it.

    Raises:
        UsageError: the files are too large to be code.
    """
    # Git may not ignore the run's folder where that lies in the checkout.
    inside = root in folder.parent.parents
    files = [file for file in _files(root) if not (inside and (root / file).is_relative_to(folder.parent))]
    _check_size(root, files)
    unfinished = folder.with_name(f"{folder.name}.tmp")
    shutil.rmtree(unfinished, ignore_errors=True)
    for file in files:
        target = unfinished / file
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(root / file, target, follow_symlinks=False)
    (unfinished / SNAPSHOT).write_text(json.dumps(_describe(root), indent=2) + "\n")
    (unfinished / CHANGES).write_bytes(git(root, "diff", "--binary", "HEAD") or b"")
    if folder.is_symlink():  # a point of a sweep, which shared its code
        folder.unlink()
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.rename(folder)


def describe(folder: Path) -> str:
    """The snapshot in `folder` in a few words, such as "commit 1a2b3c4d with changes"."""
    try:
        found = json.loads((folder / SNAPSHOT).read_text())
    except (OSError, ValueError):
        return "no snapshot"
    if found["commit"] is None:
        return "not from a git checkout"
    changes = f" with {len(found['changed'])} files changed" if found["changed"] else ""
    return f"commit {found['commit'][:8]}{changes}"


def _files(root: Path) -> Iterator[Path]:
    listed = git(root, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    if listed is None:
        yield from _python_files(root)
        return
    for name in dict.fromkeys(listed.decode().split("\0")):
        if name and ((root / name).is_file() or (root / name).is_symlink()):
            yield Path(name)
    for pattern in COMPILED:
        yield from (path.relative_to(root) for path in sorted((root / "dino_ssl").rglob(pattern)))


def _python_files(root: Path) -> Iterator[Path]:
    """Without git: the packages, less what Python writes."""
    for package in ("dino_ssl", "launch", "eval"):
        for path in sorted((root / package).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                yield path.relative_to(root)


def _check_size(root: Path, files: list[Path]) -> None:
    sizes = {file: (root / file).lstat().st_size for file in files}
    if sum(sizes.values()) > LARGEST:
        largest = ", ".join(str(file) for file in sorted(sizes, key=lambda file: -sizes[file])[:3])
        raise UsageError(
            f"{root} holds {sum(sizes.values()):,} bytes that git does not ignore, too many for a copy in every "
            f"run's folder (largest: {largest}); list what is no code in .gitignore"
        )


def _describe(root: Path) -> dict[str, object]:
    code = describe_code(root)
    del code["diff"]  # lies beside it, whole
    return {"from": str(root), "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), **code}
