"""`dino-ssl pretrain`."""

import logging
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dino_ssl.config_flags import configure
from dino_ssl.config_help import training_help
from dino_ssl.config_kinds import PRETRAIN
from dino_ssl.training import requeue, signals
from dino_ssl.training.ranks import placement, seconds_to_wait

if TYPE_CHECKING:
    from dino_ssl.training.final_report import Report

NEXT = "next: look at the pictures, then train on your own images: dino-ssl pretrain --preset photos --data FOLDER"


def run(arguments: Sequence[str]) -> None:
    """Train; say what was reached.

    Raises:
        UsageError, RunError, Stopped: as `training.loop.pretrain`.
    """
    if {"-h", "--help"} & set(arguments):
        print(training_help(PRETRAIN))
        return
    level = logging.INFO if placement().rank == 0 else logging.WARNING
    logging.basicConfig(level=level, format="%(message)s")
    config, notes = configure(arguments, PRETRAIN)
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    # torch takes seconds to import; help and mistakes should not wait for it.
    with signals.listening(requeue.leave_at_once):
        time.sleep(seconds_to_wait(placement()))
        from dino_ssl.training.pretraining import pretrain  # noqa: PLC0415

        _report(pretrain(config))


def _report(report: "Report") -> None:
    """Say what the run reached, and what to do next; of several ranks, one has something to say."""
    if report.text:
        print(f"\n{report.text}\n\n{NEXT}")
