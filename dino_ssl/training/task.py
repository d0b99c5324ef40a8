"""What a run trains: the contract between the loop and DINO, or a fine-tuning."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import Optimizer

from dino_ssl.data.crops import MultiCrop
from dino_ssl.data.loader import Batch
from dino_ssl.training.journal import Journal
from dino_ssl.training.sentinel import Sentinel


@dataclass(frozen=True)
class Rates:
    """The scheduled values of one step."""

    lr: float
    weight_decay: float

    def numbers(self) -> dict[str, float]:
        """For the journal: `train/lr`, ..."""
        return {f"train/{name}": value for name, value in asdict(self).items() if not isinstance(value, bool)}


R = TypeVar("R", bound=Rates)


@dataclass(frozen=True)
class Moment:
    """Where a run stands between two steps.

    Attributes:
        epoch: finished epochs.
    """

    step: int
    epoch: int
    is_epoch_end: bool
    is_over: bool


@runtime_checkable
class Task(Protocol[R]):
    """Networks and their losses; ranks have the same, or parts of the same.

    Attributes:
        format: of its checkpoints.
        score: name of the accuracy that `end_epoch` measures.
        network: what is trained; its gradients are clipped, and its weights looked at before each save.
        parallel: the same, as ranks share it.
        optimizer: of its parameters.
        crops: the views of an image that a batch has.
        advice: what to change if the loss is no longer finite, after "; ".
    """

    format: str
    score: str
    network: nn.Module
    parallel: nn.Module
    optimizer: Optimizer
    crops: MultiCrop
    advice: str

    @property
    def steps_per_epoch(self) -> int:
        """Full global batches in one pass over the data."""

    @property
    def total_steps(self) -> int: ...

    @property
    def sentinel(self) -> Sentinel | None:
        """Watches for collapse, where there is something to watch."""

    def begin_step(self, step: int) -> R:
        """Set the optimizer's rates, and say what holds in this step."""

    def loss(self, batch: Batch, now: R) -> Float[Tensor, ""]:
        """Mean loss of a micro-batch whose `views` lie on the device."""

    def before_optimizer(self, now: R) -> None:
        """Gradients are whole and not scaled: clip them."""

    def after_optimizer(self, now: R, *, stepped: bool) -> None:
        """`stepped` is False where the fp16 scaler left the weights as they were."""

    def weights(self) -> dict[str, Mapping[str, Any]]:
        """State of every network by its name in the checkpoint, this rank's parts where they are sharded."""

    def state(self) -> dict[str, Any]:
        """What else its checkpoints hold, in plain types and whole tensors."""

    def state_of_rank(self) -> dict[str, Any]:
        """What else a resume needs that each rank has for itself."""

    def load(self, state: Mapping[str, Any], of_rank: Mapping[str, Any] | None) -> None:
        """Take back `weights` and `state`, and where the run goes on with as many ranks `state_of_rank`."""

    def end_epoch(self, moment: Moment, journal: Journal) -> None:
        """Measure what is due at an epoch's end, or at the end of the run within one; a collective."""

    def wants_checkpoint(self, moment: Moment) -> bool:
        """Whether to save now, whatever the knobs of `checkpoint` say."""

    def after_save(self, moment: Moment, checkpoint: Path) -> None:
        """A checkpoint lies there, of this moment; called again if a run resumes from it."""

    def when_over(self) -> None:
        """The end of the run is recorded."""
