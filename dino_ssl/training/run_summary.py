"""A run in a few numbers, and what it is made of, from the files in its folder."""

import hashlib
import json
import shlex
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from dino_ssl.config_kinds import kind_of
from dino_ssl.config_schema import flatten, shown
from dino_ssl.config_yaml import load_any_config
from dino_ssl.training import run_folder
from dino_ssl.training.code_state import in_words
from dino_ssl.training.run_folder import EVALUATED_STEP

KNN = "eval/knn_top1"
"""What a run of pretraining is judged by while it trains; of others the first accuracy in the journal is taken."""


@dataclass(frozen=True)
class Summary:
    """One run.

    Attributes:
        state, why: see `run_folder.state_from_files`.
        total_steps: None before the first sign of life.
        score: its name without `eval/`, and the last and best accuracy in [0, 1]; None without one.
        hours: while a process was at it, all starts together.
        restarts: starts after the first.
        kwh: of all starts; None where the GPU does not tell.
    """

    folder: Path
    state: str
    why: str
    step: int
    total_steps: int | None
    loss: float | None
    score: tuple[str, float, float] | None
    hours: float
    restarts: int
    kwh: float | None


def summary(folder: Path) -> Summary:
    """What the files in a run's folder say."""
    heart, events, metrics = run_folder.heartbeat(folder), run_folder.restarts(folder), run_folder.metrics(folder)
    state, why = run_folder.state_from_files(events, heart, is_submitted=(folder / run_folder.JOBS).exists())
    running = [heart] if heart is not None and run_folder.beats(heart) else []
    energies = [event["kwh"] for event in [*events, *running] if isinstance(event.get("kwh"), float)]
    return Summary(
        folder=folder,
        state=state,
        why=why,
        step=heart["step"] if heart else metrics[-1]["step"] if metrics else 0,
        total_steps=heart["total_steps"] if heart else None,
        loss=next((line["train/loss"] for line in reversed(metrics) if line.get("train/loss") is not None), None),
        score=_score(metrics),
        hours=_seconds(events, heart, metrics) / 3600,
        restarts=max(0, sum(event["event"] == "start" for event in events) - 1),
        kwh=sum(energies) if energies else None,
    )


def _score(metrics: list[dict[str, Any]]) -> tuple[str, float, float] | None:
    name = score_name(metrics)
    values = [line[name] for line in metrics if isinstance(line.get(name), int | float)]
    return (name.removeprefix("eval/"), values[-1], max(values)) if values else None


def score_name(metrics: list[dict[str, Any]]) -> str:
    """Under which the journal has the accuracy of the moment, not what jobs found of earlier checkpoints."""
    names = (name for line in metrics if EVALUATED_STEP not in line for name in line if name.startswith("eval/"))
    found = dict.fromkeys(names)
    return KNN if KNN in found else next(iter(found), KNN)


def _seconds(events: list[dict[str, Any]], heart: dict[str, Any] | None, metrics: list[dict[str, Any]]) -> float:
    """Of each start to its stop; where there is none, to the last sign of life before the next start."""
    signs = [line["time"] for line in metrics] + ([heart["time"]] if heart else [])
    total = 0.0
    for event, following in pairwise([*events, {"event": "start", "time": float("inf")}]):
        if event["event"] == "start":
            end = following["time"] if following["event"] == "stop" else float("inf")
            alive = [time for time in signs if event["time"] <= time <= following["time"]]
            total += max(0.0, (end if end < float("inf") else max(alive, default=event["time"])) - event["time"])
    return total


def about(folder: Path) -> Iterator[tuple[str, str]]:
    """Name and value of each line: configuration, code, packages, data, machines, restarts, energy."""
    yield from _told(folder, _command)
    yield from (("config", line) for line in _config(folder))
    yield from _told(folder, _made_with)
    for event in run_folder.restarts(folder):
        yield "history", _event(event)
    if (found := summary(folder)).kwh is not None:
        yield "energy", f"{found.kwh:.2f} kWh, from rank 0's GPU times the ranks"


def made_from(folder: Path) -> list[tuple[str, str]]:
    """What two runs of one configuration may differ in: code, its changes, versions, data, machines."""
    return _told(folder, _made_from)


def _told(folder: Path, read: Callable[[dict[str, Any]], Iterator[tuple[str, str]]]) -> list[tuple[str, str]]:
    """What run.json says; of older versions it says less."""
    told = _run_json(folder)
    try:
        return list(read(told))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        return [("run.json", f"is damaged ({type(error).__name__}: {error})")]


def _command(told: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield "command", shlex.join(["dino-ssl", *map(str, told["command"][1:])]) if told else "not recorded"


def _made_with(told: dict[str, Any]) -> Iterator[tuple[str, str]]:
    if isinstance(code := told.get("code"), dict):
        yield "code", in_words(code)
        yield from (("", line) for line in code["changed"][:20])
        yield "diff", f"{len(code['diff'].splitlines())} lines, in run.json" if code["diff"] else "none"
    if isinstance(packages := told.get("packages"), dict):
        versions = " ".join(f"{name} {version}" for name, version in packages.items())
        yield "packages", f"dino-ssl {told['dino_ssl']}, Python {told['python']}, {versions}"
    if isinstance(data := told.get("data"), dict):
        yield "data", f"{data['name']}, {data['num_images']:,} images, fingerprint {data['fingerprint']}"
    for name in ("seed", "started"):
        if name in told:
            yield name, str(told[name])
    if told:
        yield "hosts", f"{', '.join(told.get('hosts', ['?']))}: {told.get('ranks')} x {told.get('device')}"


def _config(folder: Path) -> Iterator[str]:
    """Knobs that differ from their defaults."""
    path = folder / "config.yaml"
    if not path.is_file():
        return
    config = load_any_config(path)
    defaults = flatten(kind_of(config).config())
    changed = {name: value for name, value in flatten(config).items() if value != defaults[name]}
    for name, value in changed.items():
        yield f"{name}: {shown(value if isinstance(value, int | float | bool | None) else str(value))}"


def _run_json(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _when(moment: float) -> str:
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(moment))
    except (OverflowError, ValueError, OSError):  # a digit too many
        return str(moment)


def _event(event: dict[str, Any]) -> str:
    when = _when(event["time"])
    where = f"{event.get('host', '?')}" + (f", job {event['job']}" if event.get("job") else "")
    if event["event"] == "start":
        return f"{when}  step {event['step']:,}: started on {where}, {event.get('ranks', '?')} ranks"
    text = f": {event['text']}" if event["text"] not in ("", event["reason"]) else ""
    return f"{when}  step {event['step']:,}: {event['reason']} (exit code {event['exit_code']}){text}"


def _made_from(told: dict[str, Any]) -> Iterator[tuple[str, str]]:
    if isinstance(code := told.get("code"), dict):
        yield "code", in_words(code)
        yield "diff", hashlib.sha256(code["diff"].encode()).hexdigest()[:12] if code["diff"] else "none"
    yield from ((name, str(told[name])) for name in ("dino_ssl", "python", "device", "ranks") if name in told)
    if isinstance(packages := told.get("packages"), dict):
        yield from ((name, str(version)) for name, version in packages.items())
    if isinstance(data := told.get("data"), dict):
        yield "data", f"{data['name']} {data['fingerprint']}"
