"""Watches a pretraining for collapse: statistics for the journal, the verdict, and what follows from it."""

import logging
from collections.abc import Mapping
from typing import Any

from jaxtyping import Float
from torch import Tensor

from dino_ssl.config import PretrainConfig
from dino_ssl.dino.method import SelfDistillation
from dino_ssl.dino.verdicts import Judge, Settings, Verdict, advice
from dino_ssl.errors import CollapsedError
from dino_ssl.training import distributed

PREFIX = "collapse/"
MOST_GRACE = 5000
"""Steps after which a run is judged whose learning rate is still rising."""
MOST_REWINDS = 3
SHOWN = ("teacher_entropy", "mean_entropy", "divergence", "effective_rank", "first_teacher")
"""Statistics that a message has."""
logger = logging.getLogger("dino_ssl")


class Sentinel:
    """What `collapse.on_collapse` asks for.

    Attributes:
        rewinds: how often the run went back; each time halves the learning rate.
    """

    def __init__(
        self, config: PretrainConfig, method: SelfDistillation, *, total_steps: int, warmup_steps: int
    ) -> None:
        self.config = config
        self.method = method
        self.total_steps = total_steps
        self.judge = Judge(
            config.head.prototypes, total_steps=total_steps, grace=min(warmup_steps, total_steps, MOST_GRACE)
        )
        self.rewinds = 0

    @property
    def rate(self) -> float:
        """Factor of the learning rate."""
        return float(0.5**self.rewinds)

    @property
    def may_rewind(self) -> bool:
        return self.config.collapse.on_collapse == "rewind" and self.rewinds < MOST_REWINDS

    @property
    def sees_nothing(self) -> bool:
        """Whether the last look saw no sign of trouble: a checkpoint of now is one to go back to."""
        return self.judge.sign == "healthy"

    def look(self) -> dict[str, Float[Tensor, ""]]:
        """Statistics over all ranks since the last look, by their names in the journal; a collective."""
        return {PREFIX + name: value for name, value in self.method.look().items()}

    def weigh(self, step: int, numbers: Mapping[str, float]) -> None:
        """Judge by the numbers of `look` among `numbers`, and say so where the verdict is another than before.

        Raises:
            CollapsedError: the verdict is not healthy, and more is asked for than a warning; on all ranks.
        """
        own = {name.removeprefix(PREFIX): value for name, value in numbers.items() if name.startswith(PREFIX)}
        before, verdict = self.judge.verdict, self.judge.look(step, own)
        text = self._text(step, verdict, own)
        if self.config.collapse.on_collapse != "warn":
            # Ranks with other hardware may see other last digits.
            verdict, text = distributed.broadcast((verdict, text))
            if verdict != "healthy":
                raise CollapsedError(text)
        if verdict != before and distributed.is_main():
            logger.warning("%s", text)

    def _text(self, step: int, verdict: Verdict, now: Mapping[str, float]) -> str:
        if verdict == "healthy":
            return f"step {step}: healthy again"
        numbers = ", ".join(f"{name.replace('_', ' ')} {now[name]:.3g}" for name in SHOWN)
        return f"{verdict} at step {step} ({numbers}): {advice(verdict, self._settings())}, in a new --output-dir"

    def _settings(self) -> Settings:
        config, dino = self.config, self.config.dino
        return Settings(
            teacher_temperature=dino.teacher_temperature,
            center_momentum=dino.center_momentum,
            momentum=dino.momentum,
            lr=config.optim.lr * self.rate,
            batch_size=config.batch_size,
            bottleneck_dim=config.head.bottleneck_dim,
            total_steps=self.total_steps,
        )

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint, the same on all ranks."""
        return {"rewinds": self.rewinds, "first_teacher": self.method.first_teacher, **self.judge.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.rewinds, self.method.first_teacher = state["rewinds"], state["first_teacher"]
        self.judge.load_state_dict(state)
