"""`python -m dino_ssl`: what torchrun and srun start."""

import sys

from dino_ssl.cli import main

if __name__ == "__main__":
    sys.exit(main())
