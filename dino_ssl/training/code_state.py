"""Which code runs: the commit, and what differs from it."""

import json
import subprocess
from pathlib import Path
from typing import Any

SNAPSHOT, CHANGES = "snapshot.json", "changes.diff"
"""Beside the code of a job of `launch`: what it was copied from, and what differed from that commit."""
LONGEST_DIFF = 200_000
"""Characters of what differs from the commit; of more, the first."""


def describe_code(root: Path) -> dict[str, Any]:
    """`commit`, `changed` files and `diff`, of a checkout or of a job's copy of one; commit None where neither is."""
    if (root / SNAPSHOT).is_file():
        found = json.loads((root / SNAPSHOT).read_text(encoding="utf-8"))
        changes = root / CHANGES
        diff = changes.read_text(encoding="utf-8", errors="replace") if changes.is_file() else ""
        return {"commit": found["commit"], "changed": found["changed"], "diff": diff[:LONGEST_DIFF]}
    commit = git(root, "rev-parse", "HEAD")
    changed = git(root, "status", "--porcelain", "-z", "--untracked-files=all") or b""
    diff = (git(root, "diff", "--binary", "HEAD") or b"").decode("utf-8", "replace")
    return {
        "commit": commit.decode().strip() if commit else None,
        "changed": [line for line in changed.decode("utf-8", "replace").split("\0") if line],
        "diff": diff[:LONGEST_DIFF],
    }


def git(root: Path, *words: str) -> bytes | None:
    """What git says; None where `root` is no checkout of its own, or has no commit, or git is not installed."""
    if not (root / ".git").exists():
        return None
    try:
        done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout if done.returncode == 0 else None


def in_words(code: dict[str, Any]) -> str:
    """A `describe_code` such as "commit 1a2b3c4d, 2 files changed"."""
    if code["commit"] is None:
        return "not from a git checkout"
    changed = f", {len(code['changed'])} files changed" if code["changed"] else ""
    return f"commit {code['commit'][:12]}{changed}"
