"""What a node runs: small, importable, and made of a path, so that a pickle of it outlives every change of the code."""

import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class TrainingJob:
    """`dino-ssl COMMAND CONFIG`, on every rank.

    Attributes:
        config: RUN/config.yaml.
        command: pretrain, or finetune and its name.
        is_link: of a chain, which has nothing to do once the run is done, has diverged or collapsed.
    """

    config: str
    command: str = "pretrain"
    is_link: bool = False

    def __call__(self) -> None:
        """Train; leaves by SystemExit unless all went well, so that Slurm sees the exit code.

        The library's signal handlers replace those of submitit: they save, and let the job requeue itself.
        """
        from dino_ssl.cli import main  # noqa: PLC0415  (imported here, so that unpickling cannot fail)
        from launch.run_files import last_stop  # noqa: PLC0415

        if self.is_link and last_stop(Path(self.config).parent) in {"done", "diverged", "collapsed"}:
            print("nothing left to do for this link of the chain")
            return
        code = main([*self.command.split(), self.config])
        if code != 0:
            sys.exit(code)

    def checkpoint(self) -> object:
        """What submitit calls on a signal that comes before the library listens: run again."""
        from submitit.core.utils import DelayedSubmission  # noqa: PLC0415

        return DelayedSubmission(self)
