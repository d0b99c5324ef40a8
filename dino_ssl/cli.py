"""`dino-ssl <command>`: find the command, call it, say how it went.

Exit codes: 0 done, 1 failed, 2 usage or configuration (nothing was started), 3 diverged, 4 collapsed and
`collapse.on_collapse` wants more than a warning, 75 stopped by a signal and saved, to be run again (under Slurm this
has been asked for), 130 interrupted, 143 stopped by SIGTERM and saved.
"""

import io
import re
import sys
from collections.abc import Callable, Sequence
from importlib import import_module

from dino_ssl import __version__
from dino_ssl.config_kinds import FINETUNES
from dino_ssl.config_schema import did_you_mean, nearest
from dino_ssl.errors import RunError, Stopped, UsageError

# Each is a module of `commands`, imported only when it is asked for: torch takes seconds.
COMMANDS = {
    "pretrain": "train a backbone on images without labels",
    "finetune": "train a backbone with labels, from scratch or from a checkpoint",
    "stats": "look at a data set: numbers, broken and duplicate images, a picture of its crops",
    "lr-range": "find the learning rates that a recipe bears, on its own images",
    "pack": "write a data set as tar shards",
    "attention": "draw where a network looks in photographs and videos",
    "collect": "take the results of evaluation jobs into a run's journal",
    "linear": "accuracy of linear classifiers on a checkpoint's features: a grid, the original protocol, or logistic",
    "knn": "classify images by their nearest neighbours in a checkpoint's features",
    "verify": "tell whether two faces belong to one person; accuracy by both published protocols",
    "retrieve": "find the nearest images; mean average precision on revisited Oxford and Paris",
    "video": "carry masks through a video; J and F on DAVIS",
    "inspect": "say what a file of weights is, how far it was trained, and where it comes from",
    "export": "write a backbone for timm, torch or ONNX",
    "doctor": "check whether this machine can train: device, disk, data, ranks, Slurm",
    "runs": "list, show, compare and draw runs from the files in their folders",
    "compare": "print the numbers of several runs side by side",
}
OVERVIEW = f"""\
usage: dino-ssl COMMAND ...

Self-supervised pretraining of vision backbones with DINO.

{"".join(f"  {name:<10} {text}{chr(10)}" for name, text in COMMANDS.items())}
dino-ssl COMMAND --help lists what a command takes; dino-ssl --version says which version this is.
Start here: dino-ssl pretrain --preset digits
"""


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


def run_command(command: str, arguments: Sequence[str]) -> int:
    """Import the command, call it, and return its exit code."""
    # Each fine-tuning has knobs of its own.
    typed = ["dino-ssl", command, *(word for word in arguments[:1] if command == "finetune" and word in FINETUNES)]
    return answer(
        lambda: import_module(f"dino_ssl.commands.{command.replace('-', '_')}").run(arguments), " ".join(typed)
    )


def answer(call: Callable[[], object], program: str) -> int:
    """The exit code of a call; every error that is meant for the user becomes lines on stderr.

    Args:
        program: what was typed, without its arguments.
    """
    try:
        call()
    except UsageError as error:
        _complain(*error.problems, hint=f"nothing was started; `{program} --help` lists every knob")
        return 2
    except RunError as error:
        _complain(str(error), hint="what was saved before is untouched")
        return error.exit_code
    except Stopped as stopped:
        _complain(hint=f"stopped by {stopped}; the same command goes on from what was saved")
        return stopped.exit_code
    except KeyboardInterrupt:
        _complain("interrupted", hint="the same command goes on from what was saved")
        return 130
    return 0


def _complain(*problems: str, hint: str) -> None:
    lines = [*(f"error: {problem}" for problem in problems), hint]
    # Names of files come in here, and a terminal would obey what some of them hold.
    print(re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", "?", "\n".join(lines)), file=sys.stderr)
