"""`dino-ssl compare`: the numbers of several runs or result files side by side, and what differs between the runs."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from dino_ssl.commands.parsing import Parser
from dino_ssl.errors import UsageError

if TYPE_CHECKING:
    from dino_ssl.evaluation.comparison import Row
    from dino_ssl.evaluation.results import Evaluation, Measurement

SUMMARY = (
    "Print what was measured of several runs (RUN/eval/*.json) or result files side by side, with 95 % intervals where "
    "they are known, and the knobs in which the runs differ. Numbers stand in one line only if protocol and data agree."
)


def run(arguments: Sequence[str]) -> None:
    """`dino-ssl compare`.

    Raises:
        UsageError: fewer than two, or one of them without results.
    """
    parser = Parser(command="compare", description=SUMMARY)
    parser.add_argument("results", nargs="+", type=Path, metavar="RUN_OR_FILE", help="a run's folder, or a .json")
    words = parser.read(arguments)
    if words is None:
        return
    paths: list[Path] = words.results
    if len(paths) < 2:
        raise UsageError(f"only {paths[0]} is given; write two or more runs or result files")
    columns = _read_all(paths)
    print("\n".join(_lines(paths, columns)))


def _read_all(paths: Sequence[Path]) -> list[list["Evaluation"]]:
    columns: list[list[Evaluation]] = []
    problems: list[str] = []
    for path in paths:
        try:
            columns.append(_read(path))
        except UsageError as error:
            problems += error.problems
    if problems:
        raise UsageError(*problems)
    return columns


def _read(path: Path) -> list["Evaluation"]:
    from dino_ssl.evaluation.results import read  # noqa: PLC0415  (imports torch, for which help should not wait)

    if not path.exists():
        raise UsageError(f"{path} does not exist; write a run's folder, or a file that --output wrote")
    if path.is_file():
        return read(path)
    # A run's own table first: what other files say of the same network comes below it.
    files = sorted((path / "eval").glob("*.json"), key=lambda file: (file.name != "results.json", file.name))
    if not files:
        raise UsageError(f"{path} has no results: there is no {path / 'eval'}/*.json; measure it with dino-ssl knn")
    return [evaluation for file in files for evaluation in read(file)]


def _lines(paths: Sequence[Path], columns: Sequence[Sequence["Evaluation"]]) -> Iterator[str]:
    from dino_ssl.evaluation.comparison import letter, reservations, side_by_side  # noqa: PLC0415

    letters = [letter(place) for place in range(len(paths))]
    for name, path, column in zip(letters, paths, columns, strict=True):
        yield f"{name}  {path}  ({column[0].encoder['name'] if column else 'no numbers'})"
    for title, rows in groupby(side_by_side(columns), key=lambda row: row.title):
        yield f"\n{title}"
        yield from aligned(["", *letters, *_gap_title(letters)], [_cells(row) for row in rows])
    notes = reservations(columns)
    yield from (["", *(f"note: {note}" for note in notes)] if notes else [])
    if knobs := different_knobs(paths):
        yield "\nknobs that differ"
        yield from aligned(["", *letters], knobs)


def _gap_title(letters: Sequence[str]) -> list[str]:
    return [f"{letters[1]} - {letters[0]}"] if len(letters) == 2 else []


def _cells(row: "Row") -> list[str]:
    """Name, a cell for each column, and of two columns the difference in points."""
    cells = [row.name, *(_cell(measurement) for measurement in row.cells)]
    if len(row.cells) == 2:
        one, other = row.cells
        cells.append(f"{100 * (other.value - one.value):+.1f}" if one and other else "")
    return cells


def _cell(measurement: "Measurement | None") -> str:
    from dino_ssl.evaluation.results import between, percent  # noqa: PLC0415

    return "-" if measurement is None else f"{percent(measurement.value)} {between(measurement.interval)}".rstrip()


def aligned(head: list[str], rows: Sequence[list[str]]) -> Iterator[str]:
    """Lines of a table whose columns are as wide as they need to be."""
    widths = [max(len(cell) for cell in column) for column in zip(head, *rows, strict=True)]
    for row in (head, *rows):
        yield "  " + "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()


def different_knobs(paths: Sequence[Path]) -> list[list[str]]:
    """Knob and its value in each run; empty unless all are runs. Where a run lies says nothing about it."""
    from dino_ssl.config_schema import flatten  # noqa: PLC0415
    from dino_ssl.config_yaml import load_any_config  # noqa: PLC0415

    files = [path / "config.yaml" for path in paths]
    if not all(file.is_file() for file in files):
        return []
    knobs = [flatten(load_any_config(file)) for file in files]
    names = dict.fromkeys(name for run in knobs for name in run if name != "output_dir")
    rows = [[name, *(str(run.get(name, "-")) for run in knobs)] for name in names]  # other commands have other knobs
    return [row for row in rows if len(set(row[1:])) > 1]
