"""Profile and run folder -> the parameters of submitit, and the sbatch script that it makes of them."""

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from submitit.slurm.slurm import SlurmExecutor

from launch.profiles import Profile, cpus_of_node, memory_of_node, minutes_of, tasks_of_node

LEAD_SECONDS = 120
"""Warning before the time limit when no checkpoint was ever timed; Slurm may give it up to a minute earlier."""
# A variable of the login shell would be taken for torchrun's.
RANK_VARIABLES = "RANK LOCAL_RANK WORLD_SIZE LOCAL_WORLD_SIZE MASTER_ADDR MASTER_PORT"


@dataclass(frozen=True)
class Place:
    """Where a job works; every path is absolute, and seen by all nodes.

    Attributes:
        name: of the job, as squeue shows it.
        logs: folder of the script, the pickle and the logs.
        code: folder that is imported from.
        cwd: working folder, in which relative paths of the recipe are meant.
    """

    name: str
    logs: Path
    code: Path
    cwd: Path


class Executor(SlurmExecutor):
    """submitit's executor, which also makes its script where there is no Slurm."""

    @classmethod
    def affinity(cls) -> int:
        return 2

    def script(self, num_points: int = 1) -> str:
        """The text that `sbatch` gets; of an array for more than one point."""
        extra = {"map_count": num_points} if num_points > 1 else {}
        self.parameters |= extra
        text: str = self._make_submission_file_text(self._submitit_command_str, "")
        for key in extra:
            del self.parameters[key]
        return text


def executor(
    profile: Profile,
    place: Place,
    *,
    lead_seconds: int | None = None,
    dependency: str | None = None,
    cap: int | None = None,
) -> Executor:
    """An executor that submits with the profile's parameters.

    Args:
        lead_seconds: warning before the limit that the last checkpoint suggests; the profile's own goes first.
        dependency: as sbatch writes it, such as afterany:12.
        cap: most tasks of an array that run at once.
    """
    # Our own handlers replace submitit's, whose count of timeouts must not get in the way before they do.
    made = Executor(place.logs, max_num_timeout=1_000, python=profile.python)
    given = parameters(profile, place, lead_seconds=lead_seconds, dependency=dependency)
    made.update_parameters(**given, **({} if cap is None else {"array_parallelism": cap}))
    return made


def parameters(
    profile: Profile, place: Place, *, lead_seconds: int | None = None, dependency: str | None = None
) -> dict[str, Any]:
    """What submitit's SlurmExecutor is told; keys that stay at Slurm's own default are left out."""
    cpus, memory = cpus_of_node(profile), memory_of_node(profile)
    tasks = tasks_of_node(profile)
    found: dict[str, Any] = {
        "job_name": place.name,
        "partition": profile.partition,
        "account": profile.account,
        "qos": profile.qos,
        "constraint": profile.constraint,
        "exclude": profile.exclude,
        "nodes": profile.nodes,
        "ntasks_per_node": tasks,
        "gpus_per_node": _gpus(profile),
        "cpus_per_task": None if cpus is None else cpus // tasks,
        "mem": None if memory is None else _megabytes(memory),
        "time": minutes_of(profile.time),
        "signal_delay_s": profile.signal_seconds or lead_seconds or LEAD_SECONDS,
        "dependency": dependency,
        "stderr_to_stdout": True,
        "setup": _setup(profile, place),
        "srun_args": _srun_args(profile, None if cpus is None else cpus // tasks),
        "additional_parameters": _further_options(profile, place),
    }
    # submitit's own default, "submitit", is refused where Slurm tracks such keys.
    return {key: value for key, value in found.items() if value is not None} | {"wckey": None}


def lead_seconds(checkpoint_seconds: float) -> int:
    """A warning that leaves room for the step under way and a save on a slower day."""
    return max(60, math.ceil(3 * checkpoint_seconds) + 30)


def _gpus(profile: Profile) -> str | int | None:
    if profile.gpus_per_node == 0:
        return None
    return f"{profile.gpu_type}:{profile.gpus_per_node}" if profile.gpu_type else profile.gpus_per_node


def _megabytes(gigabytes: float) -> str:
    return f"{gigabytes:g}G" if float(gigabytes).is_integer() else f"{round(gigabytes * 1024)}M"


def _setup(profile: Profile, place: Place) -> list[str]:
    return [
        *profile.setup,
        f"unset {RANK_VARIABLES}",
        *(f"export {name}={shlex.quote(value)}" for name, value in profile.environment.items()),
        # The snapshot wins over the working folder and over an editable install.
        f"export PYTHONPATH={shlex.quote(str(place.code))}${{PYTHONPATH:+:$PYTHONPATH}} PYTHONSAFEPATH=1",
    ]


def _srun_args(profile: Profile, cpus_per_task: int | None) -> Sequence[str]:
    """One failed rank ends the job; since 22.05 srun does not inherit the cores of sbatch."""
    cores = [] if cpus_per_task is None else [f"--cpus-per-task={cpus_per_task}"]
    return ["--kill-on-bad-exit=1", "--open-mode=append", *cores, *profile.srun_args]


def _further_options(profile: Profile, place: Place) -> dict[str, Any]:
    options = {name.lstrip("-"): value for name, value in profile.sbatch.items()}
    return options | {"chdir": str(place.cwd), "requeue" if profile.requeue else "no-requeue": True}
