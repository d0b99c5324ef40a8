"""Signals in worker processes: what Slurm sends to all processes of a job is the training's to answer."""

import os
import signal
import threading

FOR_THE_TRAINING = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


def leave_signals_to_parent(worker: int = 0) -> None:
    """Ignore them in this process, but for the SIGTERM with which the parent ends it; called first in a worker.

    A handler of Python's would have to wait for the main thread; blocked signals are taken by a thread of their own,
    which sees who sent them.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, FOR_THE_TRAINING)
    threading.Thread(target=_take, args=[os.getppid()], daemon=True).start()


def _take(parent: int) -> None:
    while True:
        came = signal.sigwaitinfo(FOR_THE_TRAINING)
        if came.si_signo == signal.SIGTERM and came.si_pid == parent:
            os._exit(0)
