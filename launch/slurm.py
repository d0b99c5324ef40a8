"""Runs on a Slurm cluster: `python -m launch.slurm COMMAND ...`.

Exit codes: 0 done, 1 failed, 2 usage or configuration (nothing was submitted).
"""

import logging
import sys
from collections.abc import Callable, Sequence

from dino_ssl.config_schema import did_you_mean, nearest
from dino_ssl.errors import RunError, UsageError
from launch import commands

OVERVIEW = """\
usage: python -m launch.slurm COMMAND ...

Pretraining on a Slurm cluster. RUN is a run's folder.

  submit RECIPE.yaml ...   check, snapshot the code, submit
  chain N RECIPE.yaml ...  N jobs, one after the other, for sites without requeue
  sweep GRID.yaml ...      one array, one folder for each point of a grid
  status [RUN ...]         how far, how fast, how long, what went wrong
  tail RUN                 follow what it prints, across requeues
  cancel RUN ...           take its jobs out of the queue
  requeue RUN              let it save, and go back to the queue
  resume RUN               start a run that ended again, from its last checkpoint
  profile [NAME]           the keys of a cluster's profile, and those that there are

submit, chain, sweep and resume take
  --cluster NAME           a profile; else the one for this host, or your only one
  --nodes N  --gpus-per-node G  --time T  ...     any key of the profile with one value
  --dry-run                print the sbatch script; needs no Slurm
  --test-only              ask Slurm whether and when it would run
  --data-elsewhere         do not open the images here: only the nodes see them
and every flag of `dino-ssl pretrain`, such as --output-dir RUN --epochs 300; or, with `finetune NAME` in front of the
recipes, those of `dino-ssl finetune NAME`.
sweep also takes --cap N (tasks at once), --wait (until all have ended), --table (only show).
"""

COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "submit": commands.submit,
    "chain": commands.chain,
    "sweep": commands.sweep,
    "status": commands.status,
    "tail": commands.tail,
    "cancel": commands.cancel,
    "requeue": commands.requeue,
    "resume": commands.resume,
    "profile": commands.profile,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    match sys.argv[1:] if argv is None else list(argv):
        case [] | ["-h" | "--help", *_] | [_, "-h" | "--help"]:
            print(OVERVIEW, end="")
            return 0
        case [command, *rest] if command in COMMANDS:
            return _run(command, rest)
        case [command, *_]:
            meant = did_you_mean(nearest(command, COMMANDS))
            print(f"error: unknown command '{command}'{meant}\n{OVERVIEW}", end="", file=sys.stderr)
            return 2
    raise AssertionError("unreachable")


def _run(command: str, arguments: Sequence[str]) -> int:
    try:
        return COMMANDS[command](arguments)
    except UsageError as error:
        print(*(f"error: {problem}" for problem in error.problems), "nothing was submitted", sep="\n", file=sys.stderr)
        return 2
    except RunError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    sys.exit(main())
