"""The test cluster leaves nothing behind, even where the tests that started it were killed."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from cluster import run, wait_for, why_not

SCRIPT = Path(__file__).with_name("cluster.py")


def bridges():
    return set(re.findall(r": (dino\d+):", run("ip", "link")))


def processes(folder):
    """Command lines of all that name the cluster's folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes()
        except OSError:  # ended since
            continue
        if str(folder).encode() in line:
            found.append(line)
    return found


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, None], ids=["killed", "terminated", "at its end"])
def test_processes_bridge_and_folder_go_with_whoever_started_the_cluster(running_cluster, end):
    assert why_not() == ""
    folder, before = Path(f"/tmp/slurm-of-test-{os.getpid()}"), bridges()
    folder.mkdir()
    # The cluster's stdin is a pipe of this program's, and ends with it.
    started = f"subprocess.Popen([sys.executable, {str(SCRIPT)!r}, {str(folder)!r}], stdin=subprocess.PIPE)"
    starter = f"import subprocess, sys; cluster = {started}; sys.stdin.readline()"
    process = subprocess.Popen([sys.executable, "-c", starter], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    wait_for("the cluster is up", lambda: len(processes(folder)) >= 6 and bridges() > before)
    if end is not None:
        process.send_signal(end)
    process.communicate()
    wait_for("nothing is left", lambda: not processes(folder) and bridges() == before and not folder.exists())
