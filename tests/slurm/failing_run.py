"""`dino-ssl` with a bug that shows on rank 1 alone, at its fifth batch."""

import os
import sys

from dino_ssl.cli import main
from dino_ssl.training import loop

if __name__ == "__main__":
    next_batch = loop.next_batch

    def failing(run, parts):
        if run.step == 4:
            raise ZeroDivisionError("the bug of this test")
        return next_batch(run, parts)

    if os.environ["SLURM_PROCID"] == "1":
        loop.next_batch = failing
    sys.exit(main(sys.argv[1:]))
