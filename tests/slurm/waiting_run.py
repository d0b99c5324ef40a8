"""`dino-ssl` as a job of the tests runs it: on its first start it waits after a step for what will stop it.

`python waiting_run.py STEP WORDS...`: a run that is disturbed at a known step, however fast the machine is; where
STEP is `report`, its report never ends.
"""

import os
import sys
import threading
import time

from dino_ssl.cli import main
from dino_ssl.training import distributed, loop, pretraining, signals


def wait_after(step: int) -> None:
    after_step = loop.after_step

    def after_step_and_wait(run, now):
        after_step(run, now)
        while run.step == step and not signals.asked():
            time.sleep(0.02)

    loop.after_step = after_step_and_wait


def report_for_ever() -> None:
    final_report = pretraining.final_report
    wait = threading.Event().wait
    pretraining.final_report = lambda *given: wait() if distributed.is_main() else final_report(*given)


if __name__ == "__main__":
    if os.environ.get("SLURM_RESTART_COUNT", "0") == "0":
        report_for_ever() if sys.argv[1] == "report" else wait_after(int(sys.argv[1]))
    sys.exit(main(sys.argv[2:]))
