"""Random numbers that depend on nothing but what they are for."""

from enum import IntEnum

import numpy as np


class Purpose(IntEnum):
    """What a stream of random numbers is for: two purposes never share numbers."""

    ORDER = 0
    CROPS = 1
    REPLACEMENT = 2
    KNN = 3
    LINEAR = 4


def stream(seed: int, purpose: Purpose, epoch: int, sample: int = 0) -> np.random.Generator:
    """Random numbers that depend on nothing but the arguments.

    Source: counter-based generators, Salmon et al. 2011 (Philox).
    """
    return np.random.Generator(np.random.Philox(key=[seed, sample], counter=[0, 0, epoch, purpose]))
