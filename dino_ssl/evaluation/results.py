"""What an evaluation found, in one schema for all of them: for programs a JSON file, for people a table."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from dino_ssl import __version__
from dino_ssl.data.sources import Source
from dino_ssl.durable import write_atomically
from dino_ssl.errors import UsageError
from dino_ssl.models.encoder import Encoder

SCHEMA = 1
Plain = str | int | float | bool | None | Sequence["Plain"] | Mapping[str, "Plain"]


@dataclass(frozen=True)
class Measurement:
    """One number.

    Attributes:
        metric: `knn/top1`, `linear/macro`, `davis/j_and_f`, ...
        value: a share in [0, 1], as every accuracy, J, F and mAP is.
        interval: 95 % bootstrap interval over the test images; None where there is none.
        settings: what tells it from its neighbours: k, shots.
    """

    metric: str
    value: float
    interval: tuple[float, float] | None = None
    settings: Mapping[str, Plain] = field(default_factory=dict)


@dataclass(frozen=True)
class Evaluation:
    """One protocol on one encoder.

    Attributes:
        protocol: identifier with a version that changes when a number would: `knn/1`, `davis2017/1`.
        encoder: name, origin, digest and image transform of the encoder.
        data: by role (train, test, bank, queries): SOURCE, fingerprint, number of images that could be read.
        seconds: wall time.
        settings: what holds for every number: temperature, epochs.
        details: what is too long for a table: accuracies by class, a whole grid.
    """

    protocol: str
    encoder: Mapping[str, Plain]
    data: Mapping[str, Plain]
    measurements: list[Measurement]
    seconds: float
    settings: Mapping[str, Plain] = field(default_factory=dict)
    details: Mapping[str, Plain] = field(default_factory=dict)


def about(encoder: Encoder) -> dict[str, Plain]:
    """What `Evaluation.encoder` says of it."""
    return {
        "name": encoder.name,
        "origin": encoder.origin,
        "digest": encoder.digest,
        "size": encoder.size,
        "center_crop": encoder.center_crop,
        "mean": list(encoder.mean),
        "std": list(encoder.std),
    }


def about_data(source: Source, num_images: int) -> dict[str, Plain]:
    """What `Evaluation.data` says of one of its roles; `num_images` could be read and were used."""
    return {"source": source.name, "fingerprint": source.fingerprint(), "num_images": num_images}


def write(path: Path, evaluations: Sequence[Evaluation]) -> None:
    """Write them as JSON with the schema's version; never half a file."""
    content = {
        "schema": SCHEMA,
        "versions": {"dino_ssl": __version__, "torch": torch.__version__},
        "evaluations": [asdict(evaluation) for evaluation in evaluations],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())


def read(path: Path) -> list[Evaluation]:
    """What `write` wrote.

    Raises:
        UsageError: there is no such file, or it is none of ours, or of another schema.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(content, dict) and "schema" not in content:
            raise UsageError(f"{path} has no schema: another program or an earlier version wrote it; measure again")
        if content["schema"] != SCHEMA:
            raise UsageError(f"{path} has schema {content['schema']}; this version reads schema {SCHEMA}")
        return [_evaluation(entry) for entry in content["evaluations"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(f"{path} is no results file of dino-ssl ({type(error).__name__}: {error})") from error


def _evaluation(entry: dict[str, Any]) -> Evaluation:
    measurements = [
        Measurement(**{**m, "interval": None if m["interval"] is None else tuple(m["interval"])})
        for m in entry["measurements"]
    ]
    return Evaluation(**{**entry, "measurements": measurements})


def table(evaluation: Evaluation) -> str:
    """Lines for a plain terminal: the protocol, the encoder, the data, then each number with its interval."""
    title = f"{evaluation.protocol}: {evaluation.encoder['name']}, {conditions(evaluation)}"
    return lines(title, [(label(m), m.value, m.interval) for m in evaluation.measurements])


def lines(title: str, rows: Sequence[tuple[str, float, tuple[float, float] | None]]) -> str:
    """A title, and below it names, shares and their intervals in columns."""
    width = max((len(name) for name, _, _ in rows), default=0)
    below = (f"  {name:<{width}}  {percent(value):>7}  {between(interval)}".rstrip() for name, value, interval in rows)
    return "\n".join([title, *below])


def conditions(evaluation: Evaluation) -> str:
    """The data, then the settings that hold for every number."""
    return "; ".join(filter(None, [data_line(evaluation), _written(evaluation.settings)]))


def data_line(evaluation: Evaluation) -> str:
    """The data by role: `bank cifar10:train (50,000), queries cifar10:test (10,000)`."""
    sets = ((role, value) for role, value in evaluation.data.items() if isinstance(value, dict))
    return ", ".join(f"{role} {value['source']} ({value['num_images']:,})" for role, value in sets)


def label(measurement: Measurement) -> str:
    """The metric and its settings: `knn/top1 k=20`."""
    return f"{measurement.metric} {_written(measurement.settings)}".rstrip()


def _written(settings: Mapping[str, Plain]) -> str:
    return " ".join(f"{name}={value}" for name, value in settings.items())


def percent(value: float) -> str:
    """A share as people read it."""
    return f"{100 * value:.1f} %"


def between(interval: tuple[float, float] | None) -> str:
    """An interval as people read it, in percent; empty where there is none."""
    return "" if interval is None else f"[{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]"
