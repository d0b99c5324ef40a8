"""`dino-ssl doctor`: whether this machine can train, on one screen."""

from collections.abc import Sequence
from pathlib import Path

from dino_ssl.commands.options import add_data_root, add_place
from dino_ssl.commands.parsing import Parser
from dino_ssl.errors import RunError

SUMMARY = (
    "Check what runs die of: device, cores, memory, disk, data, ranks, Slurm. Exit code 1 if something would keep a "
    "run from working. Under torchrun or srun each rank looks at its own machine."
)


def run(arguments: Sequence[str]) -> None:
    """`dino-ssl doctor`.

    Raises:
        UsageError: a mistake in the arguments.
        RunError: a fault, after all lines.
    """
    parser = Parser(command="doctor", description=SUMMARY)
    help_text = "where runs are to be written (%(default)s)"
    parser.add_argument("--output-dir", type=Path, default=Path("runs"), metavar="DIR", help=help_text)
    parser.add_argument("--data", metavar="SOURCE", help="images to try, as after dino-ssl pretrain --data")
    add_data_root(parser)
    add_place(parser)
    words = parser.read(arguments)
    if words is None:
        return
    from dino_ssl.training.doctor import examine  # noqa: PLC0415  (torch takes seconds)
    from dino_ssl.training.ranks import placement  # noqa: PLC0415

    here, faults = placement(), []
    for finding in examine(words.output_dir, words.data, words.data_root, words.device):
        if finding.verdict == "FAULT":
            faults.append(finding.name)
        # Of other ranks only what is wrong.
        if here.rank == 0 or finding.verdict == "FAULT":
            rank = f"rank {here.rank}: " if here.rank else ""
            print(f"{rank}{finding.verdict:<8} {finding.name:<14} {finding.text}", flush=True)
    if faults:
        raise RunError(f"{len(faults)} faults: {', '.join(faults)}" if len(faults) > 1 else f"a fault: {faults[0]}")
