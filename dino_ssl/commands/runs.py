"""`dino-ssl runs`: lists, shows, compares and draws runs from the files in their folders, wherever they run."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dino_ssl.commands.compare import aligned, different_knobs
from dino_ssl.commands.options import new_file
from dino_ssl.commands.parsing import Parser
from dino_ssl.errors import UsageError

if TYPE_CHECKING:
    from dino_ssl.training.run_summary import Summary

SUMMARY = "List, show, compare and draw runs from the files in their folders: over ssh, without a server."
USAGE = """\
dino-ssl runs ls [DIR ...]                    a line for each run below (runs/)
       dino-ssl runs show RUN                        configuration, code, packages, data, machines, restarts
       dino-ssl runs compare RUN RUN ...             what they reached, and in what they differ
       dino-ssl runs plot RUN ... [--output FILE.png]   their curves in one picture"""
HEADINGS = ("run", "state", "step", "loss", "accuracy", "hours", "restarts", "kWh")
PICTURE = Path("runs.png")


def run(arguments: Sequence[str]) -> None:
    """`dino-ssl runs`.

    Raises:
        UsageError: a mistake in the arguments, or a folder without a run.
        RunError: the picture cannot be written.
    """
    parser = Parser(command="runs", description=SUMMARY, usage=USAGE)
    parser.add_argument("action", choices=tuple(ACTIONS), help="what to do")
    parser.add_argument("folders", nargs="*", type=Path, metavar="RUN", help="a run's folder, or one with runs below")
    help_text = f"of plot ({PICTURE})"
    parser.add_argument("--output", type=new_file, metavar="FILE.png", help=help_text)
    words = parser.read(arguments)
    if words is None:
        return
    if words.output is not None and words.action != "plot":
        raise UsageError(f"--output={words.output} goes with plot, not with {words.action}; leave it out")
    ACTIONS[words.action](_runs(words.folders or [Path("runs")]), words.output or PICTURE)


def _runs(folders: Sequence[Path]) -> list[Path]:
    from dino_ssl.training.run_folder import runs_in  # noqa: PLC0415  (imports torch, for which help should not wait)

    found = {folder: runs_in(folder) for folder in folders}
    if lost := [folder for folder, runs in found.items() if not runs]:
        raise UsageError(
            *(f"no run in {folder}; write the output_dir of a run, or a folder of runs" for folder in lost)
        )
    return list(dict.fromkeys(run for runs in found.values() for run in runs))


def _list(folders: Sequence[Path], output: Path) -> None:
    from dino_ssl.training.run_summary import summary  # noqa: PLC0415

    found = [summary(folder) for folder in folders]
    print("\n".join(aligned(list(HEADINGS), [[str(one.folder), *_cells(one)] for one in found])))


def _cells(one: "Summary") -> list[str]:
    steps = f"{one.step:,}" + (f"/{one.total_steps:,}" if one.total_steps is not None else "")
    return [one.state, steps, _number(one.loss, ".4f"), _score(one), f"{one.hours:.2f}", str(one.restarts),
            _number(one.kwh, ".2f")]  # fmt: skip


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _score(one: "Summary") -> str:
    if one.score is None:
        return "-"
    name, last, best = one.score
    return f"{name.replace('_', ' ')} {100 * last:.1f} %" + (f" (best {100 * best:.1f})" if best > last else "")


def _show(folders: Sequence[Path], output: Path) -> None:
    from dino_ssl.training.run_summary import about, summary  # noqa: PLC0415

    if len(folders) > 1:
        raise UsageError(f"show takes one run, and here are {len(folders)}, such as {folders[0]}; write its folder")
    one = summary(folders[0])
    why = f": {one.why}" if one.why not in ("", one.state) else ""
    rows = [("run", str(one.folder)), ("state", one.state + why), *zip(HEADINGS[2:7], _cells(one)[1:6], strict=True)]
    before = ""
    for name, text in [*rows, *about(folders[0])]:
        print(f"{'' if name == before else name:<10}{_printable(text)}".rstrip())
        before = name


def _printable(text: str) -> str:
    """Without what a terminal would obey: the text comes from files."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _compare(folders: Sequence[Path], output: Path) -> None:
    from dino_ssl.training.run_summary import made_from, summary  # noqa: PLC0415

    if len(folders) < 2:
        raise UsageError(f"only {folders[0]} is given; compare takes two or more runs")
    letters = [chr(ord("A") + place % 26) + (str(place // 26) if place >= 26 else "") for place in range(len(folders))]
    print("\n".join(f"{letter}  {folder}" for letter, folder in zip(letters, folders, strict=True)))
    outcome = [list(row) for row in zip(HEADINGS[1:], *(_cells(summary(folder)) for folder in folders), strict=True)]
    made = [dict(made_from(folder)) for folder in folders]
    names = dict.fromkeys(name for one in made for name in one)
    differing = [
        [name, *(one.get(name, "-") for one in made)] for name in names if len({o.get(name) for o in made}) > 1
    ]
    for title, rows in _sections(outcome, different_knobs(folders), differing):
        print("\n".join([f"\n{title}", *aligned(["", *letters], rows)]))


def _sections(
    outcome: list[list[str]], knobs: list[list[str]], made: list[list[str]]
) -> Iterator[tuple[str, list[list[str]]]]:
    titles = ("what they reached", "knobs that differ", "code, data and machines that differ")
    yield from ((title, rows) for title, rows in zip(titles, (outcome, knobs, made), strict=True) if rows)


def _plot(folders: Sequence[Path], output: Path) -> None:
    from dino_ssl.durable import naming  # noqa: PLC0415
    from dino_ssl.training.run_curves import draw_runs  # noqa: PLC0415

    if output.suffix != ".png":
        raise UsageError(f"--output={output} must end in .png")
    with naming(output):
        draw_runs(folders, [str(folder) for folder in folders], output)
    print(f"written to {output}")


ACTIONS: dict[str, Callable[[Sequence[Path], Path], None]] = {
    "ls": _list,
    "show": _show,
    "compare": _compare,
    "plot": _plot,
}
