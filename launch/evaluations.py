"""The command with which a run on the cluster starts the jobs that evaluate its checkpoints."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from dino_ssl.config import PretrainConfig, RunConfig
from dino_ssl.config_flags import configure
from dino_ssl.config_kinds import PRETRAIN, kind_in
from launch.profiles import Profile, cpus_of_node, memory_of_node, tasks_of_node
from launch.script import Place, executor

FROM_PROFILE = "sbatch"
"""Stands for the command until the profile is known."""
# Of the training job alone: its warning, its logs, its folder.
NOT_THEIRS = ("signal", "output", "error", "open-mode", "chdir", "wckey")


def configure_for_cluster(words: Sequence[str]) -> tuple[RunConfig, list[str]]:
    """`configure`, for a run whose `evaluate.submit` (of pretraining) the profile will say, unless a flag does."""
    kind, rest = kind_in(words)
    submit = ["--evaluate.submit", FROM_PROFILE] if kind is PRETRAIN else []
    return configure([*submit, *rest], kind)


def with_evaluations(config: RunConfig, profile: Profile, name: str) -> RunConfig:
    """The configuration with the profile's command; the jobs are called after `name`, the run's."""
    if not isinstance(config, PretrainConfig) or config.evaluate.submit != FROM_PROFILE:
        return config
    command = sbatch_command(profile, name) if config.evaluate.every_epochs else ""
    return replace(config, evaluate=replace(config.evaluate, submit=command))


def sbatch_command(profile: Profile, name: str) -> str:
    """`sbatch` with the profile's options for one of its ranks: one GPU, or none where it has none."""
    script = executor(_one_rank(profile), Place(f"{name}-evaluation", Path("logs"), Path("code"), Path())).script()
    options = [line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH ")]
    kept = [option for option in options if option.removeprefix("--").partition("=")[0] not in NOT_THEIRS]
    # Each writes its own log beside its results.
    return " ".join(["sbatch", "--parsable", *kept, "--output=/dev/null"])


def _one_rank(profile: Profile) -> Profile:
    cpus, memory, ranks = cpus_of_node(profile), memory_of_node(profile), tasks_of_node(profile)
    return replace(
        profile,
        nodes=1,
        tasks_per_node=1,
        gpus_per_node=min(1, profile.gpus_per_node),
        cpus_per_gpu=None,
        cpus_per_node=None if cpus is None else max(1, cpus // ranks),
        memory_per_gpu=None,
        memory_per_node=None if memory is None else memory / ranks,
    )
