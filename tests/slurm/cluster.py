"""A real Slurm of several nodes on this machine, for tests: `python cluster.py FOLDER`, as root.

Each node is a slurmd in namespaces of its own, with its own name, address, ports and processes; files are shared,
as a cluster's home would be. Everything runs below one process, which serves lines on stdin (`crash n1`, `boot n1`)
and takes all down when stdin ends: also when whoever started it was killed.
"""

import ctypes
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

NODES = ("n1", "n2", "n3")
# Debian package of each command.
PACKAGES = {
    "slurmctld": "slurmctld",
    "slurmd": "slurmd",
    "sbatch": "slurm-client",
    "munged": "munge",
    "ip": "iproute2",
    "unshare": "util-linux",
}
ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "USER": "root"}
BRIDGE = f"dino{os.getpid()}"
GRACE_SECONDS, KILL_WAIT_SECONDS, SLURMD_TIMEOUT_SECONDS = 30, 10, 15

# Waiting times that tests cannot afford are set low: a requeued job waits for cred_expire, 120 seconds by default.
SLURM_CONF = """\
ClusterName=test
SlurmctldHost={host}({net}.1)
SlurmctldPort={port}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.sock,cred_expire=5
SlurmUser=root
SlurmdUser=root
FirstJobId={first_job}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
MailProg=/bin/true
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=1000
SlurmdParameters=config_overrides
SlurmctldParameters=preempt_send_user_signal
ReturnToService=2
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PriorityType=priority/basic
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,batch_sched_delay=0,bf_interval=1
KillWait={kill_wait}
CompleteWait=0
MinJobAge=3600
InactiveLimit=0
SlurmdTimeout={slurmd_timeout}
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
{nodes}
PartitionName=main Nodes=ALL Default=YES State=UP MaxTime=INFINITE DefaultTime=60 PriorityTier=10 PreemptMode=OFF
PartitionName=preempt Nodes=ALL State=UP MaxTime=INFINITE DefaultTime=60 PriorityTier=1 GraceTime={grace}
"""
# The shell's background children would ignore SIGINT, and every job with them.
NODE = """\
set -e
hostname {name}
mount --bind {folder}/hosts /etc/hosts
[ ! -e /etc/resolv.conf ] || mount --bind {folder}/resolv.conf /etc/resolv.conf
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
ip link set lo up
until ip link show eth0 >/dev/null 2>&1; do sleep 0.02; done
ip addr add {address}/24 dev eth0
ip link set eth0 up
ip route add default via {net}.1
env --default-signal slurmd -D -N {name} -f {folder}/slurm.conf &
wait $!
"""


class Daemons:
    """The processes of the cluster in `folder`, which is removed with them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self.net = _free_network()
        self.address = {name: f"{self.net}.{10 + number}" for number, name in enumerate(NODES, 1)}

    def start(self) -> None:
        self.folder.chmod(0o755)  # munged wants its socket within everybody's reach
        self._write_files()
        run("ip", "link", "add", BRIDGE, "type", "bridge")
        run("ip", "addr", "add", f"{self.net}.1/24", "dev", BRIDGE)
        run("ip", "link", "set", BRIDGE, "up")
        places = {"socket": "sock", "key-file": "key", "seed-file": "seed", "pid-file": "pid", "log-file": "log"}
        munge = [f"--{option}={self.folder}/munge.{end}" for option, end in places.items()]
        self._spawn("munged", "munged", "--foreground", *munge)
        wait_for("munged", (self.folder / "munge.sock").exists)
        self._spawn("slurmctld", "slurmctld", "-D", "-f", str(self.folder / "slurm.conf"))
        for name in NODES:
            self.boot(name)
        wait_for("all nodes are idle", self._all_idle)

    def boot(self, name: str) -> None:
        """Power a node on."""
        (self.folder / f"spool-{name}").mkdir(exist_ok=True)
        script = NODE.format(name=name, folder=self.folder, address=self.address[name], net=self.net)
        spaces = "--net --uts --mount --pid --fork --kill-child --mount-proc"
        process = self._spawn(name, "unshare", *spaces.split(), "sh", "-c", script)
        here = Path("/proc/self/ns/net").readlink()
        wait_for(f"a network of {name}", lambda: Path(f"/proc/{process.pid}/ns/net").readlink() != here)
        end = f"{BRIDGE}-{name}"
        subprocess.run(["ip", "link", "del", end], check=False, capture_output=True)
        run("ip", "link", "add", end, "type", "veth", "peer", "name", "eth0", "netns", str(process.pid))
        run("ip", "link", "set", end, "master", BRIDGE, "up")

    def crash(self, name: str) -> None:
        """Power a node off: everything on it is gone without a word."""
        self.running[name].kill()
        self.running[name].wait()

    def stop(self) -> None:
        for process in self.running.values():
            process.kill()
            process.wait()
        subprocess.run(["ip", "link", "del", BRIDGE], check=False, capture_output=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _spawn(self, name: str, *command: str) -> subprocess.Popen[bytes]:
        with (self.folder / f"{name}.out").open("a") as out:
            self.running[name] = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True,
                env={**ENVIRONMENT, "SLURM_CONF": f"{self.folder}/slurm.conf"}, preexec_fn=_die_with_parent,  # noqa: PLW1509
            )  # fmt: skip
        return self.running[name]

    def _write_files(self) -> None:
        names = "".join(f"{address} {name}\n" for name, address in self.address.items())
        host = socket.gethostname().split(".")[0]
        (self.folder / "hosts").write_text(f"127.0.0.1 localhost\n{self.net}.1 {host}\n{names}")
        # A node has no way out: whatever is not in its hosts is refused at once.
        (self.folder / "resolv.conf").write_text("nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")
        port = _free_port()
        lines = [f"NodeName={name} NodeAddr={address} Port={port + 1}" for name, address in self.address.items()]
        nodes = "\n".join(f"{line} CPUs=64 RealMemory=256000 State=UNKNOWN" for line in lines)
        # Numbers unlike those of the last cluster, whose folders may be used again.
        first_job = int(time.time()) % 60_000_000 + 1
        text = SLURM_CONF.format(
            host=host, net=self.net, port=port, folder=self.folder, nodes=nodes, first_job=first_job,
            grace=GRACE_SECONDS, kill_wait=KILL_WAIT_SECONDS, slurmd_timeout=SLURMD_TIMEOUT_SECONDS,
        )  # fmt: skip
        (self.folder / "slurm.conf").write_text(text)
        (self.folder / "munge.key").write_bytes(os.urandom(1024))
        (self.folder / "munge.key").chmod(0o600)
        (self.folder / "state").mkdir()

    def _all_idle(self) -> bool:
        environment = {**ENVIRONMENT, "SLURM_CONF": f"{self.folder}/slurm.conf"}
        command = ["sinfo", "-h", "-N", "-p", "main", "-o", "%T"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        return done.stdout.split() == ["idle"] * len(NODES)


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGPIPE):
        signal.signal(number, signal.SIG_DFL)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def _free_network() -> str:
    """Of the addresses that are meant for tests of networks, RFC 2544."""
    taken = set(re.findall(r"198\.18\.\d+", run("ip", "-4", "addr")))
    return next(net for number in range(250) if (net := f"198.18.{number}") not in taken)


def delete_bridges_of_the_dead() -> None:
    """A cluster that was killed takes its processes with it, and leaves this."""
    for name in re.findall(r": (dino(?:\d+)):", run("ip", "link")):
        if not Path(f"/proc/{name.removeprefix('dino')}").exists():
            run("ip", "link", "del", name)


def run(*command: str) -> str:
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr}")
    return done.stdout


def wait_for(what: str, condition: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"{what}: not so after {seconds} s")
        time.sleep(0.05)


def why_not() -> str:
    """What keeps a cluster from running here; empty if nothing does."""
    if os.geteuid() != 0 or not Path("/etc/debian_version").exists():
        return "a Slurm of several nodes needs root on Debian"
    missing = {package for command, package in PACKAGES.items() if not shutil.which(command, path=ENVIRONMENT["PATH"])}
    if missing:
        return f"not installed: apt-get install {' '.join(sorted(missing))}"
    try:
        run("unshare", "--net", "--uts", "--mount", "--pid", "--fork", "--mount-proc", "true")
    except RuntimeError as error:
        return f"no namespaces here: {error}"
    return ""


def serve(daemons: Daemons) -> None:
    """Start, say so, obey until stdin ends."""
    try:
        daemons.start()
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        for line in sys.stdin:
            verb, node = line.split()
            {"crash": daemons.crash, "boot": daemons.boot}[verb](node)
            sys.stdout.write("done\n")
            sys.stdout.flush()
    finally:
        daemons.stop()


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: sys.exit("stopped"))
    delete_bridges_of_the_dead()
    serve(Daemons(Path(sys.argv[1])))
