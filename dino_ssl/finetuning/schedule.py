"""The learning rate of a fine-tuning over its steps."""

from collections.abc import Sequence

import numpy as np

from dino_ssl.dino.schedules import Schedule, cosine_schedule

DECAY = 0.1


def rates_by_step(
    name: str, peak: float, final: float, *, steps: int, warmup_steps: int, decay_steps: Sequence[int]
) -> Schedule:
    """One rate for each step: a linear warm-up to `peak`, then cosine or linear to `final`, or `steps`.

    Args:
        decay_steps: for `steps`: from each of these on, the rate is a tenth of that before.
    Raises:
        ValueError: the warm-up is longer than the run.
    """
    cosine = cosine_schedule(peak, final, steps=steps, warmup_steps=warmup_steps)
    if name == "cosine":
        return cosine
    rest = np.arange(steps - warmup_steps)
    if name == "linear":
        after: Schedule = peak + (final - peak) * rest / max(1, len(rest))
    else:
        after = peak * DECAY ** np.searchsorted(sorted(decay_steps), rest + warmup_steps, side="right")
    return np.concatenate((cosine[:warmup_steps], after))
