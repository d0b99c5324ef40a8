"""What a run says of the code, the packages and the machines that made it."""

import json
import subprocess
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from small_runs import a_config, checkpoint_path, run_here

from dino_ssl.training.code_state import LONGEST_DIFF, describe_code, in_words
from dino_ssl.training.provenance import Energy, packages


def git(root: Path, *words: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    return subprocess.run(
        ["git", "-C", str(root), *identity, *words], capture_output=True, text=True, check=True
    ).stdout


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    root = tmp_path / "code"
    root.mkdir()
    git(root, "init", "-q")
    (root / "a.py").write_text("one\n")
    git(root, "add", "a.py")
    git(root, "commit", "-qm", "first")
    return root


def test_code_is_its_commit_and_what_differs_from_it(checkout: Path) -> None:
    commit = git(checkout, "rev-parse", "HEAD").strip()
    assert describe_code(checkout) == {"commit": commit, "changed": [], "diff": ""}
    (checkout / "a.py").write_text("two\n")
    (checkout / "new.py").write_text("new\n")
    found = describe_code(checkout)
    assert found["diff"] == git(checkout, "diff", "--binary", "HEAD") and "+two" in found["diff"]
    assert found["changed"] == [" M a.py", "?? new.py"]
    assert in_words(found) == f"commit {commit[:12]}, 2 files changed"


def test_a_long_difference_is_cut_and_no_checkout_has_no_commit(checkout: Path, tmp_path: Path) -> None:
    (checkout / "a.py").write_text("line\n" * LONGEST_DIFF)
    assert len(describe_code(checkout)["diff"]) == LONGEST_DIFF
    nowhere = describe_code(tmp_path)
    assert nowhere == {"commit": None, "changed": [], "diff": ""} and in_words(nowhere) == "not from a git checkout"


def test_the_code_of_a_job_is_what_it_was_copied_from(tmp_path: Path) -> None:
    (tmp_path / "snapshot.json").write_text(json.dumps({"commit": "1a2b", "changed": [" M a.py"], "from": "/x"}))
    (tmp_path / "changes.diff").write_text("+two\n")
    assert describe_code(tmp_path) == {"commit": "1a2b", "changed": [" M a.py"], "diff": "+two\n"}


def test_packages_have_the_versions_that_are_installed() -> None:
    found = packages()
    assert {"torch", "timm", "numpy", "pillow"} <= found.keys()
    assert all(version(name) == number for name, number in found.items())


def test_a_run_and_each_of_its_checkpoints_say_what_made_them(tmp_path: Path) -> None:
    config = a_config(tmp_path, steps=2, seed=7)
    run = run_here(config)
    told = json.loads((config.output_dir / "run.json").read_text())
    assert told["seed"] == 7 and told["data"]["fingerprint"] == run.fingerprint
    assert told["code"].keys() == {"commit", "changed", "diff"} and told["packages"] == packages()
    assert len(told["hosts"]) == 1
    for step in (1, 2):
        state = torch.load(checkpoint_path(config, step), weights_only=True)
        assert state["made_with"] == {name: told[name] for name in ("code", "packages", "python", "hosts")}
        assert state["config"]["seed"] == 7 and state["data"]["fingerprint"] == run.fingerprint


def test_a_cpu_tells_no_energy() -> None:
    assert Energy(torch.device("cpu")).kwh() is None
