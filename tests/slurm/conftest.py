"""The cluster of these tests: started once, empty before each test, gone at the end whatever happens.

Where it cannot run the tests are skipped with the reason; DINO_SSL_REQUIRE_SLURM=1 makes that a failure.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import wait_for, why_not


class Cluster:
    """Nodes n1, n2 and n3; partitions main (default) and preempt, whose jobs give way to those of main."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.conf = folder / "slurm.conf"
        script = str(Path(__file__).with_name("cluster.py"))
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, script, str(folder)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True,
        )  # fmt: skip
        self._wait_for("ready")

    def stop(self) -> None:
        if self._process.poll() is None:
            self._process.communicate()
        self._errors.close()

    def crash(self, node: str) -> None:
        """Power off."""
        self._tell(f"crash {node}")

    def boot(self, node: str) -> None:
        self._tell(f"boot {node}")
        self.wait_until(f"{node} is up", lambda: self.call("sinfo", "-h", "-n", node, "-o", "%T").split()[0] == "idle")

    def call(self, *command: str) -> str:
        """A command of Slurm's, which has to succeed."""
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        return done.stdout

    def submit(self, script: Path, *options: str) -> str:
        """The number of the job."""
        return self.call("sbatch", "--parsable", *options, str(script)).strip()

    def state(self, job: str) -> str:
        """Slurm's word; jobs that ended are known for an hour."""
        return self.call("squeue", "-h", "-t", "all", "-j", job, "-o", "%T").strip()

    def detail(self, job: str, key: str) -> str:
        """A value of `scontrol show job`."""
        fields = self.call("scontrol", "show", "job", "-o", job).split()
        return next(field.removeprefix(f"{key}=") for field in fields if field.startswith(f"{key}="))

    def wait_until(self, what: str, condition, seconds: float = 120) -> None:
        wait_for(what, condition, seconds)

    def empty(self) -> None:
        """Cancel every job, and wait until no node works."""
        self.call("scancel", "--state=PENDING", "-u", "root")
        self.call("scancel", "-u", "root")
        for job in self.call("squeue", "-h", "-o", "%A").split():
            # One that a signal of scancel had requeue itself.
            subprocess.run(["scontrol", "update", f"job={job}", "Requeue=0"], capture_output=True, check=False)
            self.call("scancel", job)
        self.wait_until("the cluster is empty", lambda: self.states() == ["idle"] * 3)

    def states(self) -> list[str]:
        """Of the nodes."""
        return self.call("sinfo", "-hN", "-p", "main", "-o", "%T").split()

    def _tell(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()
        self._wait_for("done")

    def _wait_for(self, answer: str) -> None:
        assert self._process.stdout is not None
        if self._process.stdout.readline() != f"{answer}\n":
            self._process.communicate()
            self._errors.seek(0)
            said = self._errors.read()
            self.stop()
            raise RuntimeError(f"the test cluster failed: {said}")


@pytest.fixture(scope="session")
def running_cluster() -> Iterator[Cluster]:
    if reason := why_not():
        if os.environ.get("DINO_SSL_REQUIRE_SLURM") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    # A short path, since sockets lie in it, and one that every user may enter, which munged demands.
    folder = Path(tempfile.mkdtemp(prefix="slurm", dir="/tmp"))
    cluster = None
    try:
        cluster = Cluster(folder)
        before = os.environ.get("SLURM_CONF")
        os.environ["SLURM_CONF"] = str(cluster.conf)
        yield cluster
    finally:
        if cluster is not None:
            cluster.stop()
            os.environ.pop("SLURM_CONF") if before is None else os.environ.update(SLURM_CONF=before)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def cluster(running_cluster: Cluster) -> Iterator[Cluster]:
    yield running_cluster
    running_cluster.empty()
