"""What a million images cost before the first is read: names, and the order of an epoch.

    python -m benchmarks.index_memory [--millions 3]

Names are 40 characters long. A forked worker's own copy is what reading every name adds to its private memory.
"""

import gc
import os
import time
import tracemalloc
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import tyro

from dino_ssl.data.compact_names import CompactNames
from dino_ssl.data.order import Permutation


def names(number: int) -> Iterator[str]:
    return (f"n{i // 1300:08d}/n{i // 1300:08d}_{i:015d}.JPEG" for i in range(number))


def private_bytes() -> int:
    lines = Path("/proc/self/smaps_rollup").read_text(encoding="ascii").splitlines()
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty"))


def copied_by_a_fork(sequence: Sequence[str]) -> int:
    """Private memory that a forked process gains by reading every name."""
    receiving, sending = os.pipe()
    if os.fork() == 0:
        before, _ = private_bytes(), sum(len(name) for name in sequence)
        os.write(sending, str(private_bytes() - before).encode())
        os._exit(0)
    os.wait()
    return int(os.read(receiving, 100))


def main(*, millions: int = 3) -> None:
    """Print the table; megabytes per million names."""
    number = millions * 1_000_000
    compact = CompactNames.of(names(number))
    tracemalloc.start()
    plain = list(names(number))
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    gc.freeze()
    print(f"MB per million names: compact {compact.nbytes / number:.1f}, list of strings {held / number:.1f}")
    copies = copied_by_a_fork(compact) / number, copied_by_a_fork(plain) / number
    print(f"and in every forked worker: compact {copies[0]:.2f}, list of strings {copies[1]:.1f}")
    order = Permutation(10**8, np.random.default_rng(0))
    start = time.process_time()
    for step in range(100):
        order(np.arange(step * 512, (step + 1) * 512))
    print(f"order of 100 million images: no table; a step of 512 takes {10 * (time.process_time() - start):.2f} ms")


if __name__ == "__main__":
    tyro.cli(main)
