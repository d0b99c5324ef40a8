"""`sweep GRID.yaml`: one array, one folder for each point, one table; typed again, it runs what is not done."""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dino_ssl.config import RunConfig
from dino_ssl.errors import UsageError
from launch import queue, run_files, status_text
from launch.evaluations import configure_for_cluster
from launch.grids import Point, read_grid
from launch.profile_files import choose
from launch.run_state import RunState, look
from launch.script import Executor, Place, executor
from launch.snapshot import describe, take_snapshot
from launch.submission import Request, check_request, claimed, job_of, job_record, request, submit_all, write_folder
from launch.words import Words

LONGEST_PAUSE = 30.0  # seconds between two looks at the queue


@dataclass(frozen=True)
class Sweep:
    """A folder, its points and what is asked for each."""

    folder: Path
    points: list[Point]
    requests: list[Request]
    cap: int | None

    @property
    def place(self) -> Place:
        """Of the array; the points share their code and the folder of their logs."""
        first = self.requests[0]
        return Place(f"dino-{self.folder.name}", self.folder / "logs", self.folder / "code", first.cwd)

    def executor(self) -> Executor:
        return executor(self.requests[0].chosen.profile, self.place, cap=self.cap)


def run(words: Words, command: Sequence[str]) -> int:
    """The command, taken apart."""
    sweep = plan(words, command)
    if "table" in words.switches:
        print(sweep_table(sweep))
        return 0
    print(sweep.requests[0].chosen.line(), file=sys.stderr if "dry_run" in words.switches else sys.stdout)
    check_request(sweep.requests[0], data_is_here="data_elsewhere" not in words.switches)
    if words.switches & {"dry_run", "test_only"}:
        script = sweep.executor().script(len(sweep.points))
        print(queue.test_only(script) if "test_only" in words.switches else script)
        return 0
    submit(sweep)
    if "wait" not in words.switches:
        return 0
    wait(sweep)
    print(sweep_table(sweep))
    return 0 if all(run_files.last_stop(request.folder) == "done" for request in sweep.requests) else 1


def plan(words: Words, command: Sequence[str]) -> Sweep:
    """Check every point.

    Raises:
        UsageError: every mistake in the grid, the profile, the recipes and the flags, each once.
    """
    if not words.rest or not words.rest[0].endswith((".yaml", ".yml")):
        raise UsageError("sweep takes a grid first: sweep GRID.yaml RECIPE.yaml --cluster NAME")
    grid, *rest = words.rest
    points = read_grid(Path(grid))
    problems = [*words.problems, *_cap_problems(words.values.get("cap"))]
    configs = [_configured([*rest, *point.flags()], problems) for point in points]
    chosen = choose(words.values.get("cluster"), words.changes, list(dict.fromkeys(problems)))
    found = [config for config in configs if config is not None]
    folder = Path(words.values.get("output_dir", Path("runs") / Path(grid).stem)).expanduser().resolve()
    requests = [
        request(replace(config, output_dir=folder / point.name), chosen, command, Path.cwd())
        for point, config in zip(points, found, strict=True)
    ]
    cap = words.values.get("cap")
    return Sweep(folder, points, requests, None if cap is None else int(cap))


def _cap_problems(cap: str | None) -> list[str]:
    if cap is None or (cap.isdecimal() and int(cap) >= 1):
        return []
    return [f"--cap={cap} must be a whole number of tasks, at least 1"]


def _configured(words: Sequence[str], problems: list[str]) -> RunConfig | None:
    try:
        return configure_for_cluster(words)[0]
    except UsageError as error:
        problems += error.problems
        return None


def submit(sweep: Sweep) -> None:
    """Submit the points that are neither done nor in the queue, as one array."""
    queue.require()
    with claimed(sweep.folder):
        alive = _alive(sweep)
        todo = [r for r in sweep.requests if r.folder not in alive and run_files.last_stop(r.folder) != "done"]
        print(f"sweep     {sweep.folder}: {len(sweep.points)} points, {len(todo)} to submit, {len(alive)} in the queue")
        if not todo:
            return
        # Tasks that wait or run must find the code that they were submitted with.
        if not alive or not sweep.place.code.exists():
            take_snapshot(sweep.place.code)
        sweep.place.logs.mkdir(parents=True, exist_ok=True)
        for wanted in todo:
            _make_folder(wanted, sweep.place.code)
        ids = submit_all(sweep.executor(), [job_of(w) for w in todo])
        for wanted, job in zip(todo, ids, strict=True):
            run_files.record_job(wanted.folder, job_record(wanted, job, sweep.place.logs))
    print(f"code      {sweep.place.code} ({describe(sweep.place.code)})")
    print(f"jobs      {ids[0]}" + (f" to {ids[-1]}" if len(ids) > 1 else ""))
    print(f"follow    python -m launch.slurm status {sweep.folder}")


def _make_folder(wanted: Request, code: Path) -> None:
    wanted.folder.mkdir(parents=True, exist_ok=True)
    link = wanted.folder / "code"
    if not link.exists():
        link.symlink_to(Path("..") / code.name)
    write_folder(wanted, renew_code=False)


def _alive(sweep: Sweep) -> set[Path]:
    jobs = {job.job: r.folder for r in sweep.requests for job in run_files.jobs(r.folder)}
    return {jobs[job] for job in queue.queued(jobs)}


def wait(sweep: Sweep) -> None:
    """Until none of the points is in the queue."""
    pause, before = 1.0, -1
    while alive := _alive(sweep):
        if len(alive) != before:
            print(f"{len(alive)} of {len(sweep.points)} points in the queue", file=sys.stderr)
        before = len(alive)
        time.sleep(pause)
        pause = min(LONGEST_PAUSE, 1.5 * pause)


def sweep_table(sweep: Sweep) -> str:
    """The points, best k-NN first, then what is not right."""
    states, trouble = look([request.folder for request in sweep.requests])
    order = sorted(range(len(states)), key=lambda i: (-(states[i].knn or 0), i))
    knobs = list(sweep.points[0].values)
    headings = ["point", *knobs, "state", "step", "loss", "k-NN", "best", "images/s", "restarts"]
    rows = [_row(sweep.points[i], states[i]) for i in order]
    note = [f"note: Slurm does not answer ({trouble}); this is what the files say"] if trouble else []
    bad = status_text.problems(states)
    again = ["the same command without --table runs again what is not done"] if bad else []
    return "\n".join([*note, status_text.table(headings, rows), *bad, *again])


def _row(point: Point, state: RunState) -> list[str]:
    values = [str(value) for value in point.values.values()]
    return [
        f"{point.number:03d}",
        *values,
        state.state if run_files.is_run(state.folder) else "not submitted",
        status_text.step_of(state),
        status_text.number(state.loss, ".3f"),
        status_text.percent(state.knn),
        status_text.percent(state.best_knn),
        status_text.number(state.images_per_second, ",.0f"),
        str(state.restarts),
    ]
