"""`dino-ssl <command>`: parse, call, say how it went.

Exit codes: 0 done, 1 failed, 2 usage or configuration (nothing was started), 3 diverged, 75 stopped by a signal and
saved, to be run again (under Slurm this has been asked for), 130 interrupted, 143 stopped by SIGTERM and saved.
"""

import io
import logging
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from dino_ssl import __version__
from dino_ssl.config_flags import configure
from dino_ssl.config_help import pretrain_help
from dino_ssl.config_schema import did_you_mean, nearest
from dino_ssl.errors import DivergedError, RunError, Stopped, UsageError
from dino_ssl.training import requeue, signals
from dino_ssl.training.ranks import placement

if TYPE_CHECKING:
    from dino_ssl.training.final_report import Report

OVERVIEW = """\
usage: dino-ssl COMMAND ...

Self-supervised pretraining of vision backbones with DINO.

  pretrain   train a backbone on images without labels
  stats      look at a data set: numbers, broken and duplicate images, a picture of its crops
  pack       write a data set as tar shards

dino-ssl COMMAND --help lists what a command takes; dino-ssl --version says which version this is.
Start here: dino-ssl pretrain --preset digits
"""
NEXT = "next: look at the pictures, then train on your own images: dino-ssl pretrain --preset photos --data FOLDER"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name that the terminal has no letters for is shown as escapes
            stream.reconfigure(errors="backslashreplace")
    match arguments:
        case [] | ["-h" | "--help", *_]:
            print(OVERVIEW, end="")
            return 0
        case ["--version", *_]:
            print(f"dino-ssl {__version__}")
            return 0
        case [command, *rest] if command in COMMANDS:
            return run_command(command, rest)
        case _:
            command = arguments[0]
            _complain(f"unknown command '{command}'{did_you_mean(nearest(command, COMMANDS))}", hint=OVERVIEW)
            return 2


def pretrain(arguments: Sequence[str]) -> None:
    """`dino-ssl pretrain`."""
    if {"-h", "--help"} & set(arguments):
        print(pretrain_help())
        return
    level = logging.INFO if placement().rank == 0 else logging.WARNING
    logging.basicConfig(level=level, format="%(message)s")
    config, notes = configure(arguments)
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    # torch takes seconds to import; help and mistakes should not wait for it.
    with signals.listening(requeue.leave_at_once):
        from dino_ssl.training.loop import pretrain as run  # noqa: PLC0415

        _report(run(config))


def _report(report: "Report") -> None:
    """Say what the run reached, and what to do next; of several ranks, one has something to say."""
    if report.text:
        print(f"\n{report.text}\n\n{NEXT}")


def stats(arguments: Sequence[str]) -> None:
    """`dino-ssl stats`."""
    from dino_ssl.stats_command import stats as run  # noqa: PLC0415

    run(arguments)


def pack(arguments: Sequence[str]) -> None:
    """`dino-ssl pack`."""
    from dino_ssl.pack_command import pack as run  # noqa: PLC0415

    run(arguments)


COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {"pretrain": pretrain, "stats": stats, "pack": pack}


def run_command(command: str, arguments: Sequence[str]) -> int:
    """Call the command; every error that is meant for the user becomes lines on stderr and an exit code."""
    try:
        COMMANDS[command](arguments)
    except UsageError as error:
        _complain(*error.problems, hint=f"nothing was started; `dino-ssl {command} --help` lists every knob")
        return 2
    except DivergedError as error:
        _complain(str(error), hint="the checkpoints before this are untouched")
        return 3
    except RunError as error:
        _complain(str(error), hint="what was saved before is untouched")
        return 1
    except Stopped as stopped:
        _complain(hint=f"stopped by {stopped}; the same command goes on from what was saved")
        return stopped.exit_code
    except KeyboardInterrupt:
        _complain("interrupted", hint="the same command goes on from what was saved")
        return 130
    return 0


def _complain(*problems: str, hint: str) -> None:
    lines = [*(f"error: {problem}" for problem in problems), hint]
    print("\n".join(lines), file=sys.stderr)
