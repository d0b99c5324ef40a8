"""What a cluster wants to hear of a job: the keys of a profile, their types and their rules.

A profile is a flat YAML file; `launch.profile_files` finds and reads it.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, get_type_hints

from dino_ssl.config_schema import convert, did_you_mean, nearest, shown


@dataclass(frozen=True)
class Profile:
    """One cluster, or one way of using it; what is None is left to Slurm's own default."""

    hosts: tuple[str, ...] = ()
    """Login nodes on which this profile is taken without --cluster, such as ["login*.example.org"]."""
    partition: str | None = None
    """Partition, or several with commas."""
    account: str | None = None
    """Account that is charged."""
    qos: str | None = None
    """Quality of service."""
    constraint: str | None = None
    """Features that the nodes must have, such as a100."""
    exclude: str | None = None
    """Nodes that are not to be used."""
    nodes: int = 1
    """Nodes of a job."""
    gpus_per_node: int = 1
    """GPUs of each node, with one rank for each; 0 trains on CPUs."""
    gpu_type: str | None = None
    """Kind of GPU, where Slurm wants it named: --gpus-per-node=a100:8."""
    tasks_per_node: int | None = None
    """Ranks of each node; None: one for each GPU, or one."""
    cpus_per_gpu: int | None = None
    """CPU cores for each GPU."""
    cpus_per_node: int | None = None
    """CPU cores of each node, shared out among its ranks."""
    memory_per_gpu: float | None = None
    """Memory for each GPU, GB."""
    memory_per_node: float | None = None
    """Memory of each node, GB; 0 asks for all of it."""
    time: str = "24:00:00"
    """Limit of one start, as [DAYS-]HOURS:MINUTES[:SECONDS] or minutes; a requeued job gets it anew."""
    setup: tuple[str, ...] = ()
    """Shell lines that run on the first node before the ranks start, such as module load."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Environment variables of the job."""
    srun_args: tuple[str, ...] = ()
    """Further arguments of srun, such as ["--cpu-bind=none"]."""
    sbatch: Mapping[str, str | bool] = field(default_factory=dict)
    """Further options of sbatch, such as {reservation: friday}."""
    python: str | None = None
    """Command that starts Python in the job, such as one in a container; None: the Python that submits."""
    requeue: bool = True
    """Let the job go back to the queue after preemption and at its limit; false where a site forbids it: use chain."""
    signal_seconds: int | None = None
    """Warning before the limit, seconds; None: three times the last checkpoint's duration and 30 more, or 120."""


KINDS: dict[str, Any] = get_type_hints(Profile)
MANY = ("hosts", "setup", "environment", "srun_args", "sbatch")
SINGLE = {key: kind for key, kind in KINDS.items() if key not in MANY}
"""Keys with one value, which are flags of the command line, too."""

# Options of sbatch that the launcher writes itself, and the key that decides about them.
OWN_OPTIONS = {
    "mem": "memory_per_node",
    "mem-per-gpu": "memory_per_gpu",
    "cpus-per-task": "cpus_per_gpu",
    "gpus": "gpus_per_node",
    "ntasks-per-node": "tasks_per_node",
    "ntasks": "tasks_per_node",
    "no-requeue": "requeue",
    "signal": "signal_seconds",
    "export": "environment",
    **{key.replace("_", "-"): key for key in SINGLE},
}
NEVER = {"array", "chdir", "dependency", "error", "job-name", "open-mode", "output", "wrap", "parsable"}
"""Options of sbatch that nobody but the launcher may set."""


def take(values: dict[str, Any], where: str, key: str, value: object) -> str | None:
    """Enter `key: value` into `values`; returns what is wrong with it, or None.

    Args:
        where: begin of the message, such as "FILE:LINE: ".
    """
    if key not in KINDS:
        return f"{where}unknown key '{key}'{did_you_mean(nearest(key, KINDS))}"
    try:
        values[key] = _converted(key, value)
    except ValueError as rule:
        return f"{where}{key}={shown(value)} {rule}"
    return None


def _converted(key: str, value: object) -> Any:
    match key:
        case "environment" | "sbatch":
            return _table(value, flags=key == "sbatch")
        case "time":
            return _minutes_text(value)
        case _ if key in SINGLE:
            return convert(value, KINDS[key])
        case _:
            return _texts(value)


def _texts(value: object) -> tuple[str, ...]:
    if isinstance(value, str):
        return tuple(line for line in value.splitlines() if line.strip())
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return tuple(value)
    raise ValueError("must be a list of texts, one after each `- `")


def _table(value: object, *, flags: bool) -> dict[str, str | bool]:
    if not isinstance(value, dict):
        raise ValueError("must be lines of `NAME: value`, two spaces further in")
    return {str(name): _cell(str(name), item, flags=flags) for name, item in value.items()}


def _cell(name: str, value: object, *, flags: bool) -> str | bool:
    if flags and value is True:
        return True
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        return str(value)
    raise ValueError(f"has {name}: {shown(value)}, which must be text or a number; write it in quotes")


def _minutes_text(value: object) -> str:
    text = str(value)
    if isinstance(value, bool) or minutes_of(text) is None:
        raise ValueError('must be minutes, HOURS:MINUTES:SECONDS or DAYS-HOURS:MINUTES; write such as "1-12:00"')
    return text


def minutes_of(time: str) -> int | None:
    """Whole minutes, rounded up, of a limit as Slurm writes it; None if it is none.

    Slurm reads 1:30 as minutes and seconds, people as hours and minutes: that alone is refused.
    """
    patterns = (
        r"(?P<m>\d+)",
        r"(?P<h>\d+):(?P<m>\d+):(?P<s>\d+)",
        r"(?P<d>\d+)-(?P<h>\d+)(:(?P<m>\d+)(:(?P<s>\d+))?)?",
    )
    found = next((match for match in (re.fullmatch(p, time) for p in patterns) if match), None)
    if found is None:
        return None
    part = {name: int(number or 0) for name, number in found.groupdict().items()}
    seconds = sum(part.get(name, 0) * size for name, size in zip("dhms", (86400, 3600, 60, 1), strict=True))
    return math.ceil(seconds / 60)


def check(profile: Profile) -> list[str]:
    """Every rule that the values break, alone or together."""
    return [*_ranges(profile), *_pairs(profile), *_options(profile)]


def _ranges(profile: Profile) -> Iterator[str]:
    smallest = {"nodes": 1, "gpus_per_node": 0, "tasks_per_node": 1, "cpus_per_gpu": 1, "cpus_per_node": 1}
    smallest |= {"memory_per_gpu": 0, "memory_per_node": 0, "signal_seconds": 1}
    for member in fields(profile):
        value = getattr(profile, member.name)
        if member.name in smallest and value is not None and not smallest[member.name] <= value < math.inf:
            yield f"{member.name}={value} must be at least {smallest[member.name]}"
    if minutes_of(profile.time) == 0:
        yield f"time={profile.time} must be at least a minute"


def _pairs(profile: Profile) -> Iterator[str]:
    for what in ("cpus", "memory"):
        per_gpu, per_node = getattr(profile, f"{what}_per_gpu"), getattr(profile, f"{what}_per_node")
        if per_gpu is not None and per_node is not None:
            yield f"{what}_per_gpu={per_gpu} and {what}_per_node={per_node} say the same thing twice; keep one"
        elif per_gpu is not None and profile.gpus_per_node == 0:
            yield f"{what}_per_gpu={per_gpu} says nothing with gpus_per_node=0; write {what}_per_node"
    if profile.gpu_type is not None and profile.gpus_per_node == 0:
        yield f"gpu_type={profile.gpu_type} says nothing with gpus_per_node=0; leave it out"
    cpus = cpus_of_node(profile)
    if cpus is not None and 0 < cpus < tasks_of_node(profile):
        yield f"cpus_per_node={cpus} is less than one for each of {tasks_of_node(profile)} ranks; write more"


def _options(profile: Profile) -> Iterator[str]:
    for name in profile.environment:
        if not re.fullmatch(r"[A-Za-z_]\w*", name):
            yield f"environment has {name!r}, which is no name of a variable"
    for option in profile.sbatch:
        if option.lstrip("-") in OWN_OPTIONS:
            yield f"sbatch has {option!r}; write the key {OWN_OPTIONS[option.lstrip('-')]} instead"
        elif option.lstrip("-") in NEVER:
            yield f"sbatch has {option!r}, which the launcher sets itself; leave it out"
    for argument in profile.srun_args:
        if not argument.startswith("-"):
            yield f"srun_args has {argument!r}; write options as --name=value, each an item of its own"


def tasks_of_node(profile: Profile) -> int:
    """Ranks of each node."""
    return profile.tasks_per_node or max(1, profile.gpus_per_node)


def ranks(profile: Profile) -> int:
    """Ranks of the whole job."""
    return profile.nodes * tasks_of_node(profile)


def cpus_of_node(profile: Profile) -> int | None:
    """CPU cores of each node; None: Slurm's default."""
    return profile.cpus_per_node if profile.cpus_per_gpu is None else profile.cpus_per_gpu * profile.gpus_per_node


def memory_of_node(profile: Profile) -> float | None:
    """Memory of each node, GB; None: Slurm's default."""
    per_gpu = profile.memory_per_gpu
    return profile.memory_per_node if per_gpu is None else per_gpu * profile.gpus_per_node
