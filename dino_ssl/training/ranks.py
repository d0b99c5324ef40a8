"""Which process of how many this is: from torchrun, submitit or Slurm, before anything is connected."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from dino_ssl.errors import UsageError

# Slurm numbers the steps of a job from 0; the batch script and an interactive shell are steps of a job, too, with
# numbers from here on.
FIRST_SPECIAL_STEP = 0xFFFFFFF0
# That many nodes do not read one disk at once: 200 of them within 20 seconds.
SECONDS_PER_NODE, LONGEST_WAIT = 0.1, 20.0


@dataclass(frozen=True)
class Placement:
    """This process among those of its run.

    Attributes:
        node: number of this node.
        local_rank, local_world_size: among the processes of this node.
        launcher: who said so, for people.
        has_address: whether the launcher also said where rank 0 listens (MASTER_ADDR, MASTER_PORT).
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    num_nodes: int = 1
    launcher: str = "one process"
    has_address: bool = False
    node: int = 0

    def __str__(self) -> str:
        if self.world_size == 1:
            return f"one process ({self.launcher})" if self.launcher != "one process" else "one process"
        return f"{self.world_size} ranks on {self.num_nodes} nodes, from {self.launcher}"


def seconds_to_wait(here: Placement) -> float:
    """How long this node waits before it reads what all read; nothing on the first, so on one node."""
    return min(here.node * SECONDS_PER_NODE, LONGEST_WAIT)


def placement(environment: Mapping[str, str] = os.environ) -> Placement:
    """Ask torchrun first, since it may run inside of a Slurm job, then submitit, then Slurm.

    Raises:
        UsageError: a variable that should be a number is none.
    """
    try:
        for ask in (_torchrun, _submitit_local, _slurm_step):
            found = ask(environment)
            if found is not None:
                return found
    except (KeyError, ValueError) as error:
        raise UsageError(
            f"the launcher's environment is not whole ({type(error).__name__}: {error}); start the ranks with "
            "torchrun or srun, or unset RANK and WORLD_SIZE for one process"
        ) from error
    return Placement()


def _torchrun(environment: Mapping[str, str]) -> Placement | None:
    if not {"RANK", "WORLD_SIZE"} & environment.keys():
        return None
    world_size, local = int(environment["WORLD_SIZE"]), int(environment.get("LOCAL_WORLD_SIZE", "1"))
    return Placement(
        rank=int(environment["RANK"]),
        world_size=world_size,
        local_rank=int(environment.get("LOCAL_RANK", "0")),
        local_world_size=local,
        num_nodes=int(environment.get("GROUP_WORLD_SIZE", "1")),
        node=int(environment.get("GROUP_RANK", "0")),
        launcher="torchrun" if "TORCHELASTIC_RUN_ID" in environment else "RANK and WORLD_SIZE",
        has_address=True,
    )


def _submitit_local(environment: Mapping[str, str]) -> Placement | None:
    """Submitit on one machine; on a cluster its processes are tasks of a Slurm step like any other."""
    if environment.get("SUBMITIT_EXECUTOR") != "local":
        return None
    world_size, num_nodes = int(environment["SUBMITIT_LOCAL_NTASKS"]), int(environment["SUBMITIT_LOCAL_NNODES"])
    return Placement(
        rank=int(environment["SUBMITIT_LOCAL_GLOBALID"]),
        world_size=world_size,
        local_rank=int(environment["SUBMITIT_LOCAL_LOCALID"]),
        local_world_size=world_size // num_nodes,
        num_nodes=num_nodes,
        launcher="submitit",
    )


def _slurm_step(environment: Mapping[str, str]) -> Placement | None:
    """A task that srun started; the batch script of a job carries SLURM_PROCID=0 and SLURM_NTASKS and is none."""
    if int(environment.get("SLURM_STEP_ID", FIRST_SPECIAL_STEP)) >= FIRST_SPECIAL_STEP:
        return None
    node = int(environment["SLURM_NODEID"])
    return Placement(
        rank=int(environment["SLURM_PROCID"]),
        world_size=int(environment["SLURM_STEP_NUM_TASKS"]),
        local_rank=int(environment["SLURM_LOCALID"]),
        local_world_size=tasks_per_node(environment["SLURM_STEP_TASKS_PER_NODE"])[node],
        num_nodes=int(environment["SLURM_STEP_NUM_NODES"]),
        node=node,
        launcher="submitit" if environment.get("SUBMITIT_EXECUTOR") == "slurm" else "Slurm",
    )


def cores_of_this_rank() -> int:
    """Slurm gives each task its own, if it is told how many; other ranks of a node share what they all see."""
    seen = len(os.sched_getaffinity(0))
    given = os.environ.get("SLURM_CPUS_PER_TASK")
    return min(seen, int(given)) if given else max(1, seen // placement().local_world_size)


def tasks_per_node(text: str) -> list[int]:
    """Slurm's `2(x3),1` as [2, 2, 2, 1]."""
    counts: list[int] = []
    for part in text.split(","):
        count, _, times = part.partition("(x")
        counts += [int(count)] * int(times.rstrip(")") or 1)
    return counts


@dataclass(frozen=True)
class SlurmJob:
    """The job that this process belongs to.

    Attributes:
        name: as scontrol takes it; of an array job ARRAY_TASK, since the number of one of its tasks is also that
            of the whole array.
        restart: times that it was requeued before this start.
    """

    name: str
    restart: int


def slurm_job(environment: Mapping[str, str] = os.environ) -> SlurmJob | None:
    if "SLURM_JOB_ID" not in environment:
        return None
    name = environment["SLURM_JOB_ID"]
    if "SLURM_ARRAY_TASK_ID" in environment:
        name = f"{environment['SLURM_ARRAY_JOB_ID']}_{environment['SLURM_ARRAY_TASK_ID']}"
    return SlurmJob(name, int(environment.get("SLURM_RESTART_COUNT", "0")))
