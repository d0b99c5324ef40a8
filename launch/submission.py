"""From a recipe to a job: check on the login node, claim the folder, snapshot the code, submit."""

import fcntl
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import chdir, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from submitit.core.utils import FailedJobError, FailedSubmissionError
from submitit.helpers import clean_env

from dino_ssl.config import RunConfig
from dino_ssl.config_finetune import FinetuneConfig
from dino_ssl.config_kinds import kind_of
from dino_ssl.config_yaml import write_config
from dino_ssl.errors import RunError, UsageError
from launch import queue, run_files
from launch.evaluations import with_evaluations
from launch.job import TrainingJob
from launch.profile_files import Chosen
from launch.profiles import Profile, ranks, tasks_of_node
from launch.run_files import Job
from launch.script import Executor, Place, executor, lead_seconds
from launch.snapshot import take_snapshot

LOCK = ".submitting"
"""Held for as long as something is submitted from a folder."""


@dataclass(frozen=True)
class Request:
    """A run that somebody wants on a cluster; `command` is what was typed."""

    config: RunConfig
    chosen: Chosen
    command: Sequence[str]
    cwd: Path

    @property
    def folder(self) -> Path:
        return self.config.output_dir

    @property
    def place(self) -> Place:
        return Place(f"dino-{self.folder.name}", self.folder / "logs", self.folder / "code", self.cwd)


def request(config: RunConfig, chosen: Chosen, command: Sequence[str], cwd: Path) -> Request:
    """A request whose paths mean the same on every node."""
    folder = (cwd / config.output_dir).resolve()
    config = with_evaluations(replace(config, output_dir=folder), chosen.profile, folder.name)
    return Request(config, chosen, command, cwd)


def check_request(wanted: Request, *, data_is_here: bool) -> None:
    """Everything that the job would refuse, found before it waits in a queue.

    Args:
        data_is_here: the login node sees the images, too.
    Raises:
        UsageError: what is wrong.
    """
    check_batch(wanted.config, wanted.chosen.profile)
    if wanted.config.device == "cuda" and wanted.chosen.profile.gpus_per_node == 0:
        raise UsageError(f"device=cuda, but {wanted.chosen.file} has gpus_per_node=0; write --device cpu, or GPUs")
    if data_is_here:
        _check_input(wanted)


def check_batch(config: RunConfig, profile: Profile) -> None:
    """Whether the global batch divides among the ranks."""
    from dino_ssl.data.order import share_out  # noqa: PLC0415  (torch takes seconds)

    try:
        share_out(config.batch_size, ranks(profile), config.micro_batch_size)
    except ValueError as error:
        raise UsageError(f"{error} ({profile.nodes} nodes x {tasks_of_node(profile)} ranks)") from error


def _check_input(wanted: Request) -> None:
    from dino_ssl.finetuning.start import started  # noqa: PLC0415
    from dino_ssl.training.prepare import open_input  # noqa: PLC0415
    from dino_ssl.training.trackers import missing_extras  # noqa: PLC0415

    log = wanted.config.log
    if missing := missing_extras(tensorboard=log.tensorboard, wandb=log.wandb):
        raise UsageError(*missing)
    with chdir(wanted.cwd):  # a run may be resumed from elsewhere
        config = wanted.config
        full = started(config)[0] if isinstance(config, FinetuneConfig) else config  # the weights can be read
        open_input(full, ranks=ranks(wanted.chosen.profile), given=config)


def executor_of(wanted: Request, dependency: str | None = None) -> Executor:
    """The executor of one run, its warning before the limit from the run's last checkpoint."""
    heart = run_files.heartbeat(wanted.folder) or {}
    timed = heart.get("checkpoint_seconds")
    lead = None if timed is None else lead_seconds(timed)
    return executor(wanted.chosen.profile, wanted.place, lead_seconds=lead, dependency=dependency)


def job_of(wanted: Request, *, is_link: bool = False) -> TrainingJob:
    """What a node will run."""
    return TrainingJob(str(wanted.folder / "config.yaml"), kind_of(wanted.config).command, is_link)


def submit(wanted: Request, *, links: int = 1, renew_code: bool = True) -> list[Job]:
    """Write the run's folder and submit it.

    Args:
        links: jobs that follow each other, each when the one before has ended, however it has.
        renew_code: take a new snapshot also where the folder has one.
    Raises:
        UsageError: the run is queued or running already.
        RunError: there is no Slurm, or it refuses.
    """
    queue.require()
    made: list[Job] = []
    with claimed(wanted.folder):
        refuse_if_busy(wanted.folder)
        write_folder(wanted, renew_code=renew_code)
        for _ in range(links):
            dependency = f"afterany:{made[-1].job}" if made else None
            job = job_of(wanted, is_link=links > 1)
            made.append(_submit_one(wanted, job, dependency))
    return made


def write_folder(wanted: Request, *, renew_code: bool = True) -> None:
    """What the job will read: its configuration and the code."""
    wanted.place.logs.mkdir(parents=True, exist_ok=True)
    if renew_code or not wanted.place.code.exists():
        take_snapshot(wanted.place.code)
    write_config(wanted.config, wanted.folder / "config.yaml")


def _submit_one(wanted: Request, job: TrainingJob, dependency: str | None) -> Job:
    (made,) = submit_all(executor_of(wanted, dependency), [job])
    record = job_record(wanted, made, wanted.place.logs)
    run_files.record_job(wanted.folder, record)
    return record


def submit_all(through: Executor, work: Sequence[TrainingJob]) -> list[str]:
    """Submit one job, or an array; the ids.

    Raises:
        RunError: Slurm refuses.
    """
    try:
        with _clean_environment():
            jobs = through.submit_array(list(work))
    except (FailedJobError, FailedSubmissionError) as error:
        raise RunError(f"Slurm refuses: {str(error).strip()}") from error
    return [job.job_id for job in jobs]


@contextmanager
def _clean_environment() -> Iterator[None]:
    """Without what a job gives to its own children, where one job submits another."""
    conf = {name: os.environ[name] for name in ("SLURM_CONF",) if name in os.environ}
    with clean_env():
        os.environ.update(conf)
        yield


def job_record(wanted: Request, job: str, logs: Path) -> Job:
    profile = wanted.chosen.profile
    return Job(
        job=job,
        log=str(logs / f"{job}_{{rank}}_log.out"),
        cluster=str(wanted.chosen.file),
        nodes=profile.nodes,
        ranks=ranks(profile),
        cwd=str(wanted.cwd),
        command=list(wanted.command),
        changes=dict(wanted.chosen.changes),
        time=time.time(),
    )


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Hold the folder while something is submitted from it; two at once would both find it free.

    Raises:
        UsageError: another submission of it is under way, or the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / LOCK).open("a")
    except OSError as error:
        raise UsageError(f"output_dir={folder} cannot be written ({error.strerror}); choose another") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UsageError(f"output_dir={folder}: another submission of it is under way; wait for it") from error
        yield


def refuse_if_busy(folder: Path) -> None:
    """Two jobs must not write one folder.

    Raises:
        UsageError: names the job that is queued or running.
        RunError: Slurm does not say.
    """
    for job, found in queue.queued(job.job for job in run_files.jobs(folder)).items():
        raise UsageError(
            f"output_dir={folder}: job {job} of this run is {found.state.lower()} already; wait for it, "
            f"stop it with `python -m launch.slurm cancel {folder}`, or write --output-dir for another run"
        )
    heart = run_files.heartbeat(folder)
    # Of its own jobs Slurm has just said that none is alive.
    if heart is not None and heart["job"] is None and run_files.beats(heart):
        raise UsageError(
            f"output_dir={folder}: process {heart['pid']} on {heart['host']} is training in it; "
            "stop it, or write --output-dir for another run"
        )
