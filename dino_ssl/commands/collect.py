"""`dino-ssl collect`: take what evaluation jobs found into the journal of a run that is over."""

from collections.abc import Sequence
from pathlib import Path

from dino_ssl.commands.parsing import Parser
from dino_ssl.errors import UsageError

SUMMARY = (
    "Write the results of evaluation jobs (RUN/eval/step_*) into RUN/metrics.jsonl. A run that goes on does so itself "
    "at the end of every epoch; its jobs call this for when it is over."
)


def run(arguments: Sequence[str]) -> None:
    """`dino-ssl collect`.

    Raises:
        UsageError: the folder is no run's.
        RunError: its journal cannot be read or written.
    """
    parser = Parser(command="collect", description=SUMMARY)
    parser.add_argument("run", type=Path, metavar="RUN", help="a run's folder")
    words = parser.read(arguments)
    if words is None:
        return
    from dino_ssl.training.evaluation_jobs import collect_afterwards  # noqa: PLC0415
    from dino_ssl.training.lifetime import is_over  # noqa: PLC0415

    folder: Path = words.run
    if not (folder / "metrics.jsonl").is_file():
        raise UsageError(f"{folder} is no run's folder: it has no metrics.jsonl")
    if not is_over(folder):
        print("the run goes on, and takes in the results itself")
        return
    print(f"checkpoints whose results were taken in: {collect_afterwards(folder)}")
