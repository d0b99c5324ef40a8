"""Schedules as arrays of one value per step, equal to the original's to the last bit."""

import numpy as np
from jaxtyping import Float

Schedule = Float[np.ndarray, " steps"]


def cosine_schedule(base: float, final: float, *, steps: int, warmup_steps: int = 0, start: float = 0.0) -> Schedule:
    """Rise linearly from `start` to `base`, then fall (or climb) to `final` along half a cosine.

    As in the original, the warm-up ends on `base`, the cosine begins on it once more, and `final` itself
    would be the value of the step after the last.

    Args:
        warmup_steps: between 0 and `steps`.
    Raises:
        ValueError: the warm-up is longer than the run.

    Source: facebookresearch/dino, `cosine_scheduler`; Loshchilov and Hutter, arXiv:1608.03983.
    """
    if not 0 <= warmup_steps <= steps:
        raise ValueError(f"warmup_steps={warmup_steps} must lie between 0 and steps={steps}")
    warmup = np.linspace(start, base, warmup_steps)
    position = np.arange(steps - warmup_steps)
    cosine = final + 0.5 * (base - final) * (1 + np.cos(np.pi * position / max(1, len(position))))
    return np.concatenate((warmup, cosine))


def linear_warmup(start: float, final: float, *, steps: int, warmup_steps: int) -> Schedule:
    """Rise linearly from `start` to `final`, both included, then stay.

    Args:
        warmup_steps: between 0 and `steps`.
    Raises:
        ValueError: the warm-up is longer than the run.
    """
    if not 0 <= warmup_steps <= steps:
        raise ValueError(f"warmup_steps={warmup_steps} must lie between 0 and steps={steps}")
    return np.concatenate((np.linspace(start, final, warmup_steps), np.full(steps - warmup_steps, final)))


def scaled_learning_rate(lr: float, batch_size: int) -> float:
    """Learning rate for a global batch when `lr` is meant for 256 images.

    Source: Goyal et al., arXiv:1706.02677.
    """
    return lr * batch_size / 256.0
