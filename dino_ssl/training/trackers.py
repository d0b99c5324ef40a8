"""TensorBoard and Weights & Biases: imported only when asked for."""

import os
import secrets
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from dino_ssl.errors import UsageError


def missing_extras(*, tensorboard: bool, wandb: bool) -> list[str]:
    """One line for each extra that is asked for and not installed."""
    asked = {"tensorboard": tensorboard, "wandb": wandb}
    return [
        f"log.{name}=true needs the package {name}: pip install 'dino-ssl[{name}]'"
        for name, wanted in asked.items()
        if wanted and find_spec(name) is None
    ]


class TensorBoard:
    """Event files; TensorBoard hides those of steps that are taken again."""

    def __init__(self, folder: Path, start_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415

        self._writer = SummaryWriter(str(folder), purge_step=start_step + 1)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """One W&B run per run folder, its id kept in `wandb_id.txt`; W&B ignores steps that are taken again.

    WANDB_MODE, WANDB_PROJECT, WANDB_ENTITY and the like mean what they mean to W&B.
    """

    def __init__(self, folder: Path) -> None:
        import wandb  # noqa: PLC0415

        path = folder / "wandb_id.txt"
        if not path.exists():
            path.write_text(secrets.token_hex(4) + "\n")
        try:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", "dino-ssl"),
                name=folder.resolve().name,
                dir=str(folder),
                id=path.read_text().strip(),
                resume="allow",
            )
        except wandb.errors.Error as error:
            raise UsageError(
                f"log.wandb=true, but W&B refuses ({error}); run `wandb login`, or set WANDB_MODE=offline"
            ) from error

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def flush(self) -> None:
        """W&B's own process writes as it goes."""

    def close(self) -> None:
        self._run.finish()


Tracker = TensorBoard | WeightsAndBiases


def open_trackers(folder: Path, start_step: int, *, tensorboard: bool, wandb: bool) -> list[Tracker]:
    """Those that are asked for; metrics after `start_step` replace what an earlier process wrote.

    Raises:
        UsageError: W&B refuses, say for want of a login.
    """
    trackers: list[Tracker] = []
    if tensorboard:
        trackers.append(TensorBoard(folder / "tensorboard", start_step))
    if wandb:
        trackers.append(WeightsAndBiases(folder))
    return trackers
