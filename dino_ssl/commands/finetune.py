"""`dino-ssl finetune classify | distill`."""

import logging
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dino_ssl.config_distill import DistillConfig
from dino_ssl.config_faces import ArcfaceConfig, AskdConfig
from dino_ssl.config_flags import configure
from dino_ssl.config_help import training_help
from dino_ssl.config_kinds import kind_in
from dino_ssl.config_schema import Kind
from dino_ssl.training import requeue, signals
from dino_ssl.training.ranks import placement, seconds_to_wait

if TYPE_CHECKING:
    from dino_ssl.finetuning.report import Report

OVERVIEW = """\
usage: dino-ssl finetune RECIPE_NAME ...

  classify  a backbone and a classifier with labels, from scratch or from a checkpoint
  distill   a small network with labels and with what a frozen, larger one says and sees (ReviewKD, KD, ...)
  arcface   an embedding of faces with an angular margin over identities (ArcFace, CosFace, Partial FC)
  askd      the same for images of few pixels, taught by a network that sees all of them (A-SKD, F-SKD)

dino-ssl finetune classify --help lists every knob. For example:
  dino-ssl finetune classify --data photos/ --model.weights runs/pretrain --output-dir runs/photos
"""


def run(arguments: Sequence[str]) -> None:
    """Train; say what was reached.

    Raises:
        UsageError, RunError, Stopped: as `training.loop.train_to_the_end`.
    """
    if not arguments or arguments[0] in ("-h", "--help"):
        print(OVERVIEW)
        return
    kind, rest = kind_in(["finetune", *arguments])
    if {"-h", "--help"} & set(rest):
        print(training_help(kind))
        return
    _train(kind, rest)


def _train(kind: Kind[Any], arguments: Sequence[str]) -> None:
    level = logging.INFO if placement().rank == 0 else logging.WARNING
    logging.basicConfig(level=level, format="%(message)s")
    config, notes = configure(arguments, kind)
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    # torch takes seconds to import; help and mistakes should not wait for it.
    with signals.listening(requeue.leave_at_once):
        time.sleep(seconds_to_wait(placement()))
        if isinstance(config, DistillConfig):
            from dino_ssl.finetuning.distill import distill  # noqa: PLC0415

            _report(distill(config))
        elif isinstance(config, AskdConfig):
            from dino_ssl.finetuning.askd import askd  # noqa: PLC0415

            _report(askd(config))
        elif isinstance(config, ArcfaceConfig):
            from dino_ssl.finetuning.arcface import arcface  # noqa: PLC0415

            _report(arcface(config))
        else:
            from dino_ssl.finetuning.classify import classify  # noqa: PLC0415

            _report(classify(config))


def _report(report: "Report") -> None:
    """Say what the run reached; of several ranks, one has something to say."""
    if report.text:
        print(f"\n{report.text}")
