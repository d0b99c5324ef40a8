"""The snapshot of the code is what lies in the checkout, and says how it differs from its commit."""

import json
import subprocess
from pathlib import Path

import pytest

from dino_ssl.errors import UsageError
from launch import snapshot
from launch.snapshot import describe, take_snapshot


def git(folder: Path, *words: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    return subprocess.run(["git", *identity, *words], cwd=folder, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def checkout(tmp_path) -> Path:
    """A commit, then a change, a deletion, a new file, an ignored one, and a compiled kernel."""
    root = tmp_path / "checkout"
    (root / "dino_ssl").mkdir(parents=True)
    for name in ("dino_ssl/a.py", "dino_ssl/b.py", "gone.py"):
        (root / name).write_text(f"# {name}\n")
    (root / "link").symlink_to("dino_ssl/a.py")
    (root / ".gitignore").write_text("*.so\ndata/\n")
    git(root, "init", "-q")
    git(root, "add", ".")
    git(root, "commit", "-qm", "first")
    (root / "dino_ssl/a.py").write_text("# changed\n")
    (root / "gone.py").unlink()
    (root / "new name.py").write_text("# new\n")
    (root / "data").mkdir()
    (root / "data/large").write_text("x")
    (root / "dino_ssl/_k.abi3.so").write_bytes(b"machine code")
    return root


def names_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}


OF_THE_SNAPSHOT = {"snapshot.json", "changes.diff"}


def test_it_has_tracked_and_new_files_as_they_are_and_the_compiled_kernel(checkout, tmp_path):
    take_snapshot(tmp_path / "code", checkout)
    assert names_in(tmp_path / "code") - OF_THE_SNAPSHOT == {
        ".gitignore", "dino_ssl/a.py", "dino_ssl/b.py", "dino_ssl/_k.abi3.so", "new name.py", "link",
    }  # fmt: skip
    for name in names_in(tmp_path / "code") - OF_THE_SNAPSHOT:
        assert (tmp_path / "code" / name).read_bytes() == (checkout / name).read_bytes()
    assert (tmp_path / "code/link").is_symlink()


def test_the_commit_and_its_diff_give_the_tracked_files_again(checkout, tmp_path):
    take_snapshot(tmp_path / "code", checkout)
    commit = json.loads((tmp_path / "code/snapshot.json").read_text())["commit"]
    git(tmp_path, "clone", "-q", str(checkout), "again")
    git(tmp_path / "again", "checkout", "-q", commit)
    git(tmp_path / "again", "apply", str(tmp_path / "code/changes.diff"))
    assert (tmp_path / "again/dino_ssl/a.py").read_text() == "# changed\n"
    assert not (tmp_path / "again/gone.py").exists()


def test_it_is_described_by_its_commit_and_the_number_of_changes(checkout, tmp_path):
    commit = git(checkout, "rev-parse", "HEAD")[:8]
    take_snapshot(tmp_path / "code", checkout)
    assert describe(tmp_path / "code") == f"commit {commit} with 3 files changed"
    git(checkout, "add", ".")
    git(checkout, "commit", "-qm", "second")
    take_snapshot(tmp_path / "code", checkout)
    assert describe(tmp_path / "code") == f"commit {git(checkout, 'rev-parse', 'HEAD')[:8]}"
    assert "gone.py" not in names_in(tmp_path / "code")


def test_without_git_the_packages_are_copied(tmp_path):
    root = tmp_path / "unpacked"
    for name in ("dino_ssl/a.py", "launch/b.py", "launch/__pycache__/b.pyc", "runs/old/large"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    take_snapshot(tmp_path / "code", root)
    assert names_in(tmp_path / "code") - OF_THE_SNAPSHOT == {"dino_ssl/a.py", "launch/b.py"}
    assert describe(tmp_path / "code") == "not from a git checkout"


def test_data_among_the_code_is_refused_by_name(checkout, tmp_path, monkeypatch):
    monkeypatch.setattr(snapshot, "LARGEST", 100)
    (checkout / "images.tar").write_bytes(bytes(101))
    with pytest.raises(UsageError, match=r"largest: images\.tar, .*\.gitignore"):
        take_snapshot(tmp_path / "code", checkout)
    assert not (tmp_path / "code").exists()


def test_a_run_inside_the_checkout_is_no_part_of_its_own_snapshot(checkout):
    (checkout / "out/logs").mkdir(parents=True)
    (checkout / "out/logs/1_0_log.out").write_text("x")
    for _ in range(2):
        take_snapshot(checkout / "out/code", checkout)
        assert not (checkout / "out/code/out").exists()
    assert (checkout / "out/code/dino_ssl/b.py").exists()


def test_what_is_left_of_an_earlier_snapshot_is_replaced_but_the_code_of_a_sweep_is_not(checkout, tmp_path):
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared/of_all").write_text("x")
    (tmp_path / "code").symlink_to("shared")
    (tmp_path / "code.tmp").mkdir()
    (tmp_path / "code.tmp/torn").write_text("x")
    take_snapshot(tmp_path / "code", checkout)
    assert not (tmp_path / "code").is_symlink()
    assert "torn" not in names_in(tmp_path / "code")
    assert (tmp_path / "shared/of_all").exists()
