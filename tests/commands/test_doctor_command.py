"""`dino-ssl doctor`: a line for each thing, and exit code 1 for what would keep a run from working."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

from dino_ssl.cli import main
from dino_ssl.training import doctor
from dino_ssl.training.doctor import Finding, slurm


def verdicts(text: str) -> dict[str, str]:
    """Name -> verdict; names may have two words."""
    return {line[9:23].strip(): line.split()[0] for line in text.splitlines()}


def test_a_machine_that_can_train_has_no_fault_and_nothing_is_left_behind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(3):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / f"{number}.png")
    before = sorted(tmp_path.rglob("*"))
    words = ["--device", "cpu", "--output-dir", str(tmp_path / "runs" / "new"), "--data", str(tmp_path)]
    assert main(["doctor", *words]) == 0
    found = verdicts(capsys.readouterr().out)
    assert {"versions", "device", "cores", "shared memory", "room", "output folder", "crop kernel"} <= found.keys()
    assert {"data", "ranks", "Slurm"} <= found.keys() and "FAULT" not in found.values()
    assert sorted(tmp_path.rglob("*")) == before


def test_faults_are_named_and_make_the_exit_code_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")
    assert main(["doctor", "--device", "cpu", "--output-dir", str(tmp_path), "--data", str(tmp_path)]) == 1
    out, err = capsys.readouterr()
    assert verdicts(out)["data"] == "FAULT" and "broken.png: not an image" in out
    assert err.startswith("error: a fault: data")


def test_a_set_with_some_broken_images_is_a_warning(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no image")
    found = doctor.images(str(tmp_path), tmp_path)
    assert found.verdict == "warning" and "1 of 2 cannot be read" in found.text


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_a_fault(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        assert list(doctor.disk(tmp_path / "runs"))[-1].verdict == "FAULT"
    finally:
        tmp_path.chmod(0o700)


def test_slurm_that_does_not_answer_is_a_fault_in_its_job_and_no_requeue_a_warning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def silent(command: Sequence[str]) -> str:
        raise subprocess.TimeoutExpired(command, 20)

    assert slurm(silent).verdict == "warning"
    with monkeypatch.context() as job:
        job.setenv("SLURM_JOB_ID", "12")
        assert slurm(silent).verdict == "FAULT"
    assert slurm(lambda command: "JobRequeue              = 1\n") == Finding("Slurm", "ok", "answers, not in a job")
    found = slurm(lambda command: "JobRequeue              = 0\n")
    assert found.verdict == "warning" and "use chain" in found.text


def test_two_ranks_meet_and_add_up(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", "-m", "dino_ssl"]
    words = ["doctor", "--device", "cpu", "--output-dir", str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, *words], capture_output=True, text=True, check=False, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "a sum of ranks is 3 of 3" in done.stdout
    assert done.stdout.count("versions") == 1
