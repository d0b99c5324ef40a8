"""States of runs as a person wants to read them: one run on a screen, many in a table."""

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dino_ssl.training.progress import format_duration
from launch import run_files
from launch.profile_files import plural
from launch.run_state import RunState, look

HEADINGS = ("run", "state", "step", "epoch", "loss", "k-NN", "images/s", "ETA", "restarts")
LINES_OF_TRACEBACK = 30
LINES_OF_LOG = 12
LINES_OF_RESTARTS = 8


def status(folders: Sequence[Path], *, is_detailed: bool) -> str:
    """The text of `status`."""
    states, trouble = look(folders)
    note = [f"note: Slurm does not answer ({trouble}); this is what the files say"] if trouble else []
    if is_detailed:
        return "\n".join([*note, *(_screen(state) for state in states)])
    body = table(HEADINGS, [_row(state) for state in states])
    return "\n".join([*note, body, *problems(states)])


def problems(states: Sequence[RunState]) -> list[str]:
    """A line for each run that ended badly."""
    bad = [state for state in states if state.state in {"failed", "diverged", "collapsed", "lost"}]
    return [f"{shown_path(state.folder)}: {state.why or state.state}" for state in bad]


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as they need to be; the first to the left, numbers to the right."""
    widths = [max(len(row[i]) for row in [headings, *rows]) for i in range(len(headings))]
    numeric = [all(_is_number(row[i]) for row in rows) for i in range(len(headings))]
    lines = [
        "  ".join(
            cell.rjust(width) if is_number else cell.ljust(width)
            for cell, width, is_number in zip(row, widths, numeric, strict=True)
        ).rstrip()
        for row in [headings, *rows]
    ]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def _is_number(cell: str) -> bool:
    return cell in {"", "-"} or cell[0].isdigit() or (cell[0] == "-" and cell[1:2].isdigit())


def shown_path(folder: Path) -> str:
    """Relative to here where that is shorter."""
    relative = os.path.relpath(folder)
    return relative if len(relative) < len(str(folder)) else str(folder)


def step_of(state: RunState) -> str:
    return f"{state.step:,}" if state.total_steps is None else f"{state.step:,}/{state.total_steps:,}"


def _row(state: RunState) -> tuple[str, ...]:
    return (
        shown_path(state.folder),
        state.state,
        step_of(state),
        f"{state.epoch:.2f}",
        number(state.loss, ".3f"),
        percent(state.knn),
        number(state.images_per_second, ",.0f"),
        format_duration(state.eta) if state.eta is not None else "-",
        str(state.restarts),
    )


def number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}%"


def _screen(state: RunState) -> str:
    lines = [
        ("run", shown_path(state.folder)),
        ("state", state.state + (f": {state.why}" if state.why not in {"", state.state} else "")),
        ("job", _job(state)),
        ("step", _progress(state)),
        ("loss", number(state.loss, ".4f")),
        ("k-NN", _knn(state)),
        ("jobs say", _evaluations(state.folder)),
        ("speed", f"{number(state.images_per_second, ',.0f')} images/s"),
        ("ETA", _eta(state)),
        ("heartbeat", _age(state.folder)),
        *(("history" if i == 0 else "", line) for i, line in enumerate(_history(state.folder))),
    ]
    text = "\n".join(f"{name:<10}{value}".rstrip() for name, value in lines if value)
    return "\n".join([text, *_evidence(state)])


def _evidence(state: RunState) -> list[str]:
    """What a run that ended badly said last: the traceback of the rank that failed first, or the end of the log."""
    if state.failed_rank is not None:
        rank, said = state.failed_rank
        title, lines, most = f"rank {rank} failed:", said.splitlines(), LINES_OF_TRACEBACK
    elif state.state in {"failed", "lost"}:
        log = run_files.log_of(state.folder, state.job)
        title, lines, most = f"the end of {log}:", run_files.last_lines(log, LINES_OF_LOG), LINES_OF_LOG
    else:
        return []
    cut = ["  ..."] if len(lines) > most else []
    return ["", title, *cut, *(f"  {line}" for line in lines[-most:])] if lines else []


def _job(state: RunState) -> str:
    jobs = run_files.jobs(state.folder)
    if state.job is None or not jobs:
        return ""
    mine = next(job for job in jobs if job.job == state.job)
    return f"{mine.job} ({_size(mine.nodes, mine.ranks)}), log {shown_path(Path(mine.log.format(rank=0)))}"


def _progress(state: RunState) -> str:
    share = f" ({state.step / state.total_steps:.1%})" if state.total_steps else ""
    return f"{step_of(state)}{share}, epoch {state.epoch:.2f}"


def _knn(state: RunState) -> str:
    return "" if state.knn is None else f"{percent(state.knn)} (best {percent(state.best_knn)})"


def _evaluations(folder: Path) -> str:
    """What the jobs that evaluate checkpoints found last, and how many are not done."""
    lines = [line for line in run_files.metrics(folder) if run_files.EVALUATED_STEP in line]
    last = lines[-1] if lines else {}
    values = [f"{name.removeprefix('eval/')} {percent(last[name])}" for name in last if "top1" in name]
    said = [f"step {last[run_files.EVALUATED_STEP]:,}: {', '.join(values) or 'nothing'}"] if last else []
    waiting = run_files.open_evaluations(folder)
    return "; ".join([*said, *([f"{waiting} of them not done"] if waiting else [])])


def _eta(state: RunState) -> str:
    if state.eta is None:
        return ""
    cost = f", counting {format_duration(state.outage)} for each restart as so far" if state.outage else ""
    return f"{format_duration(state.eta)} of running{cost}"


def _age(folder: Path) -> str:
    heart = run_files.heartbeat(folder)
    if heart is None:
        return ""
    return f"{format_duration(max(0.0, time.time() - heart['time']))} ago, from {heart['host']}"


def _history(folder: Path) -> list[str]:
    """Starts and stops, the newest few."""
    lines = []
    for event in run_files.restarts(folder):
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event["time"]))
        job = f", job {event['job']}" if event["job"] else ""
        what = f"started, {_size(event['nodes'], event['ranks'])}{job}" if event["event"] == "start" else _end(event)
        lines.append(f"{when}  step {event['step']:,}: {what}")
    left_out = [f"... {len(lines) - LINES_OF_RESTARTS} earlier"] if len(lines) > LINES_OF_RESTARTS else []
    return [*left_out, *lines[-LINES_OF_RESTARTS:]]


def _size(nodes: int, ranks: int) -> str:
    return f"{nodes} {plural(nodes, 'node')}, {ranks} {plural(ranks, 'rank')}"


def _end(stop: dict[str, Any]) -> str:
    text = f": {stop['text']}" if stop["text"] not in {"", stop["reason"]} else ""
    return f"{stop['reason']} (exit code {stop['exit_code']}){text}"
