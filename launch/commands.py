"""The commands of `python -m launch.slurm`: words in, lines out."""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from dino_ssl.config_kinds import PRETRAIN, kind_of
from dino_ssl.config_yaml import load_any_config
from dino_ssl.errors import RunError, UsageError
from launch import queue, run_files, status_text, sweeps
from launch import tail as tailing
from launch.evaluations import configure_for_cluster
from launch.profile_files import choose
from launch.profile_help import profile_help
from launch.run_files import Job
from launch.snapshot import describe
from launch.submission import Request, check_request, executor_of, request
from launch.submission import submit as submit_request
from launch.words import Words, take_apart

SWITCHES = ("dry_run", "test_only", "data_elsewhere")
VALUES = ("cluster",)


def submit(arguments: Sequence[str]) -> int:
    """`submit RECIPE.yaml ...`."""
    words = take_apart(arguments, switches=SWITCHES, values=VALUES)
    return _go(_request(words, ["submit", *arguments]), words)


def chain(arguments: Sequence[str]) -> int:
    """`chain N RECIPE.yaml ...` or `chain N RUN`."""
    match list(arguments):
        case [number, *rest] if number.isdecimal() and int(number) >= 1:
            words = take_apart(rest, switches=SWITCHES, values=VALUES)
        case _:
            raise UsageError("chain takes a number of jobs first: chain 5 RECIPE.yaml --output-dir RUN")
    command = ["chain", *arguments]
    is_there = bool(words.rest) and run_files.is_run(Path(words.rest[0]))
    wanted = _request_again(words, command) if is_there else _request(words, command)
    return _go(wanted, words, links=int(number))


def resume(arguments: Sequence[str]) -> int:
    """`resume RUN`: with the code and the profile that it had, unless told otherwise."""
    words = take_apart(arguments, switches=(*SWITCHES, "new_code"), values=VALUES)
    wanted = _request_again(words, ["resume", *arguments])
    return _go(wanted, words, renew_code="new_code" in words.switches)


def _request(words: Words, command: Sequence[str]) -> Request:
    """What the words ask for; every mistake in the profile, the recipe and the flags comes at once."""
    problems = list(words.problems)
    try:
        config, notes = configure_for_cluster(words.rest)
    except UsageError as error:
        problems += error.problems
    chosen = choose(words.values.get("cluster"), words.changes, problems)
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    return request(config, chosen, command, Path.cwd())


def _request_again(words: Words, command: Sequence[str]) -> Request:
    """The run in the folder that the first word names, with the other words on top."""
    folder = _the_run(words.rest[:1])
    last = next(reversed(run_files.jobs(folder)), None)
    # The folder may have been moved since its configuration was written.
    kind = kind_of(load_any_config(folder / "config.yaml"))
    named = [] if kind is PRETRAIN else kind.command.split()
    words.rest = [*named, str(folder / "config.yaml"), "--output-dir", str(folder), *words.rest[1:]]
    words.changes = {**(last.changes if last else {}), **words.changes}
    words.values = {**({"cluster": last.cluster} if last else {}), **words.values}
    again = _request(words, command)
    return replace(again, cwd=Path(last.cwd) if last else again.cwd)


def _the_run(words: Sequence[str]) -> Path:
    if not words or not run_files.is_run(Path(words[0])):
        raise UsageError(f"{words[0] if words else 'nothing'} is no run's folder; write the output_dir of a run")
    return Path(words[0]).resolve()


def _go(wanted: Request, words: Words, *, links: int = 1, renew_code: bool = True) -> int:
    """Check, then print the script, ask Slurm, or submit."""
    # The script alone goes to stdout, for a file.
    print(wanted.chosen.line(), file=sys.stderr if "dry_run" in words.switches else sys.stdout)
    check_request(wanted, data_is_here="data_elsewhere" not in words.switches)
    if "dry_run" in words.switches:
        print(executor_of(wanted).script())
        return 0
    if "test_only" in words.switches:
        print(queue.test_only(executor_of(wanted).script()))
        return 0
    _warn_of_local_disk(wanted.folder)
    made = submit_request(wanted, links=links, renew_code=renew_code)
    print_jobs(wanted, made)
    return 0


def print_jobs(wanted: Request, made: Sequence[Job]) -> None:
    """Where everything is, and what to type next."""
    folder = shlex.quote(str(wanted.folder))
    print(f"run       {wanted.folder}")
    print(f"code      {wanted.place.code} ({describe(wanted.place.code)})")
    print(f"job       {', then '.join(job.job for job in made)}")
    print(f"log       {made[0].log.format(rank=0)}")
    print("follow    " + "\n          ".join(f"python -m launch.slurm {verb} {folder}" for verb in ("status", "tail")))


def _warn_of_local_disk(folder: Path) -> None:
    """The folder has to be seen by all nodes; nothing but its name tells here."""
    local = next((p for p in ("/tmp", "/var/tmp", "/dev/shm", "/local") if folder.is_relative_to(p)), None)
    if local:
        print(
            f"note: {folder} lies in {local}, which is each machine's own on most clusters; "
            "a job there finds nothing. Write --output-dir on a shared disk",
            file=sys.stderr,
        )


def sweep(arguments: Sequence[str]) -> int:
    """`sweep GRID.yaml ...`."""
    words = take_apart(arguments, switches=(*SWITCHES, "wait", "table"), values=(*VALUES, "cap", "output_dir"))
    return sweeps.run(words, ["sweep", *arguments])


def status(arguments: Sequence[str]) -> int:
    """`status [RUN ...]`; without a folder those below runs/."""
    folders = [Path(word) for word in arguments] or [Path("runs")]
    found = [run for folder in folders for run in run_files.runs_in(folder)]
    if not found:
        raise UsageError(f"no run in {', '.join(map(str, folders))}; write the output_dir of a run")
    print(status_text.status(found, is_detailed=len(found) == 1))
    return 0


def tail(arguments: Sequence[str]) -> int:
    """`tail RUN [--rank N] [--once]`."""
    words = take_apart(arguments, switches=("once",), values=("rank", "lines"))
    number = words.values.get("rank", "0")
    lines = words.values.get("lines", "20")
    for flag, value in (("--rank", number), ("--lines", lines)):
        if not value.isdecimal():
            words.problems.append(f"{flag}={value} must be a whole number")
    if words.problems:
        raise UsageError(*words.problems)
    folder = _the_run(words.rest)
    tailing.follow(folder, int(number), lines=int(lines), is_once="once" in words.switches)
    return 0


def cancel(arguments: Sequence[str]) -> int:
    """`cancel RUN ...`: every job of the runs that waits or runs."""
    folders = [run for word in arguments for run in run_files.runs_in(Path(word)) or [_the_run([word])]]
    if not folders:
        raise UsageError("cancel takes the folders of runs, or of a sweep")
    whose = {job.job: folder for folder in folders for job in run_files.jobs(folder)}
    alive = queue.queued(whose)
    if not alive:
        print("none of its jobs is in the queue")
        return 0
    queue.ask("scancel", *alive)
    for job in alive:
        run_files.record_cancel(whose[job], job)
    print(f"cancelled {', '.join(f'{job} (was {found.state.lower()})' for job, found in alive.items())}")
    return 0


def requeue(arguments: Sequence[str]) -> int:
    """`requeue RUN`: a job that trains is asked to save first."""
    folder = _the_run(arguments)
    running = {j: q for j, q in queue.queued(job.job for job in run_files.jobs(folder)).items() if q.state == "RUNNING"}
    if not running:
        raise RunError(f"no job of {folder} is running; `python -m launch.slurm resume {folder}` starts it again")
    heart = run_files.heartbeat(folder)
    for job in running:
        if run_files.beats(heart) and heart is not None and heart["job"] == job:
            queue.ask("scancel", "--signal=USR2", job)
            print(f"job {job} saves and goes back to the queue")
        else:  # before its first step the signal would kill it
            queue.ask("scontrol", "requeue", job)
            print(f"job {job} goes back to the queue")
    return 0


def profile(arguments: Sequence[str]) -> int:
    """`profile [NAME]`."""
    words = take_apart(arguments)
    if not words.rest:
        print(profile_help())
        return 0
    chosen = choose(words.rest[0], words.changes, words.problems)
    print(chosen.line())
    print(chosen.file.read_text(encoding="utf-8").rstrip())
    return 0
