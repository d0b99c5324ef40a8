"""Checkpoints evaluated by jobs of their own: sending them, and taking what they found into the journal.

A job has a folder, RUN/eval/step_N, with the script that it runs and the checkpoint, which stays there for as long as
it is needed, whatever the run deletes. The script leaves the results there, then an empty file `done`. The run takes
them into its journal at its next epoch's end; once it is over, the script does.
"""

import logging
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import dino_ssl
from dino_ssl.config import PretrainConfig
from dino_ssl.durable import link_or_copy, naming, write_atomically
from dino_ssl.errors import UsageError
from dino_ssl.evaluation.results import Measurement, read
from dino_ssl.training.journal import append_metrics, read_metrics
from dino_ssl.training.run_folder import EVALUATED_STEP
from dino_ssl.training.signals import STOPPING

SCRIPT, SENT, DONE, FAILED, LOG = "evaluate.sh", "sent", "done", "failed", "log.txt"
CHECKPOINT, FEATURES = "checkpoint.pth", "features"
SECONDS_TO_SUBMIT = 60
# What a job gives to its own children would be taken for the new job's.
OF_THIS_JOB = re.compile(
    r"SLURM_(?!CONF$)|SBATCH_|SUBMITIT_|PMIX?_|(LOCAL_)?(RANK|WORLD_SIZE)$|MASTER_(ADDR|PORT)$|TORCHELASTIC"
)
logger = logging.getLogger("dino_ssl")


def is_due(config: PretrainConfig, epoch: int, *, is_over: bool) -> bool:
    """Whether the checkpoint after `epoch` finished epochs is to be evaluated."""
    every = config.evaluate.every_epochs
    return every > 0 and (is_over or epoch % every == 0)


def send(config: PretrainConfig, checkpoint: Path, step: int) -> None:
    """Start the job of a checkpoint; once, however often the run comes by this step.

    A scheduler that refuses or does not answer is named in a warning, and the training goes on.
    """
    folder = _folder(config.output_dir, step)
    if (folder / SENT).exists():
        return
    with naming(folder):
        folder.mkdir(parents=True, exist_ok=True)
        link_or_copy(checkpoint, folder / CHECKPOINT)
        script = folder / SCRIPT
        script.write_text(_script(config, folder), encoding="utf-8")
        script.chmod(0o755)
    said, refusal = _start([*shlex.split(config.evaluate.submit), str(script)])
    if refusal:
        logger.warning("the evaluation of step %d was not submitted: %s", step, refusal)
        return
    write_atomically(folder / SENT, (said + "\n").encode())


def collect(run: Path) -> Iterator[tuple[int, dict[str, float]]]:
    """(step, numbers by name) of every job that is done and not in the journal yet, or was run again after a failure.

    The checkpoint of one that did not fail is let go.

    Raises:
        RunError: a file cannot be read.
    """
    known = {record[EVALUATED_STEP] for record in read_metrics(run) if EVALUATED_STEP in record}
    for folder in sorted((run / "eval").glob("step_*")):
        if not (folder / DONE).exists():
            continue
        step = int(folder.name.removeprefix("step_"))
        has_failed = (folder / FAILED).exists()
        # One that is known and still has its checkpoint failed, and was run again by hand.
        if step not in known or ((folder / CHECKPOINT).exists() and not has_failed):
            yield step, _numbers(folder)
        if not has_failed:
            (folder / CHECKPOINT).unlink(missing_ok=True)


def collect_afterwards(run: Path) -> int:
    """Write what a run that is over has not taken in itself into its journal; the number of checkpoints."""
    lines = read_metrics(run)
    found = list(collect(run)) if lines else []
    for step, numbers in found:
        append_metrics(run, step=lines[-1]["step"], epoch=lines[-1]["epoch"], values={EVALUATED_STEP: step, **numbers})
    return len(found)


def _folder(run: Path, step: int) -> Path:
    return (run / "eval" / f"step_{step:09d}").absolute()


def _script(config: PretrainConfig, folder: Path) -> str:
    """Every evaluation, whether or not the one before failed, then the end; runs again what a kill left undone."""
    quoted = shlex.quote
    commands = [f"evaluate {shlex.join(_arguments(config, folder, method))}" for method in config.evaluate.methods]
    return "\n".join(
        [
            "#!/bin/bash",
            f"exec >> {quoted(str(folder / LOG))} 2>&1",
            f"cd {quoted(str(Path.cwd()))} || exit 1",
            f"export PYTHONPATH={quoted(str(Path(dino_ssl.__file__).parents[1]))}${{PYTHONPATH:+:$PYTHONPATH}}",
            f"failed={quoted(str(folder / FAILED))}",
            f'evaluate() {{ {quoted(sys.executable)} -m dino_ssl "$@" || echo "$1" >> "$failed"; }}',
            f'rm -f "$failed" {quoted(str(folder / DONE))}',
            *commands,
            f"rm -rf {quoted(str(folder / FEATURES))}",  # nobody measures this checkpoint again
            f"touch {quoted(str(folder / DONE))}",
            f"{quoted(sys.executable)} -m dino_ssl collect {quoted(str(folder.parents[1]))}",
            "",
        ]
    )


def _arguments(config: PretrainConfig, folder: Path, method: str) -> Iterator[str]:
    knn = config.knn
    yield from (method, "--weights", str(folder / CHECKPOINT), "--train", knn.train or config.data)
    yield from ("--test", knn.test) if knn.test else ()
    # The same number of neighbours as while training, so that both numbers mean the same.
    yield from ("--k", str(knn.k), "--temperature", str(knn.temperature)) if method == "knn" else ()
    yield from ("--data-root", str(config.data_root.absolute()), "--device", config.device)
    yield from ("--cache", str(folder / FEATURES), "--output", str(folder / f"{method}.json"))


def _start(command: Sequence[str]) -> tuple[str, str]:
    """What the command printed, and why it failed."""
    # The signals that stop this run are not the new job's, which inherits them blocked until its shell begins.
    environment = {name: value for name, value in os.environ.items() if not OF_THIS_JOB.match(name)}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=SECONDS_TO_SUBMIT, env=environment
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return "", str(error)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return done.stdout.strip(), (done.stderr.strip() or f"exit code {done.returncode}") if done.returncode else ""


def _numbers(folder: Path) -> dict[str, float]:
    """Values by the journal's names; what failed or cannot be read is named in a warning."""
    if (folder / FAILED).exists():
        failed = ", ".join((folder / FAILED).read_text(encoding="utf-8").split())
        logger.warning("%s: %s failed; see %s", folder, failed, folder / LOG)
    found: dict[str, float] = {}
    for file in sorted(folder.glob("*.json")):
        try:
            measurements = [m for evaluation in read(file) for m in evaluation.measurements]
        except UsageError as error:
            logger.warning("%s", error)
            continue
        for measurement in measurements:
            found.setdefault(_name(measurement), measurement.value)
    return found


def _name(measurement: Measurement) -> str:
    """`knn/top1` with k = 20 is `eval/knn_top1@20`."""
    neighbours = f"@{measurement.settings['k']}" if "k" in measurement.settings else ""
    return f"eval/{measurement.metric.replace('/', '_')}{neighbours}"
