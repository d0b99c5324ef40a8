"""Signals that stop a run: SIGTERM, and SIGUSR1 and SIGUSR2, which Slurm sends ahead of a limit or a preemption.

Within `at_step_ends` a signal is remembered, and the loop saves and leaves. Elsewhere (while it prepares, while it
reports) there is nothing to save, and the process leaves at once. The same signal again kills the process anywhere,
but for a SIGTERM in a Slurm job: Slurm itself repeats it when a grace time is over, and SIGKILL follows.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

STOPPING = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
# srun may pass on to its tasks what Slurm has sent them already.
SECONDS_OF_ONE_SIGNAL = 1.0
END = b"\0"  # of the pipe; no signal has this number


class _Listener:
    """What came so far. The bytes of the wake-up pipe are read by a thread, so that a signal counts also while the
    main thread waits inside of a collective."""

    def __init__(self, leave: Callable[[int], None]) -> None:
        self.came: dict[int, float] = {}
        self.waits_for_step_end = False
        self.answered = False
        self.leave = leave
        self.leaving = threading.Lock()
        self.pipe = os.pipe()

    def listen(self) -> None:
        while END not in (numbers := os.read(self.pipe[0], 64)):
            for number in numbers:
                if number in STOPPING:
                    self.heard(number)

    def heard(self, number: int) -> None:
        now = time.monotonic()
        first = self.came.setdefault(number, now)
        is_slurms = number == signal.SIGTERM and "SLURM_JOB_ID" in os.environ
        if now - first > SECONDS_OF_ONE_SIGNAL and not is_slurms:
            _exit_by(number)
        if not self.waits_for_step_end and not self.answered:
            threading.Thread(target=self.leave_now, args=[number], daemon=True).start()

    def leave_now(self, number: int) -> None:
        """Never returns; whichever thread comes second waits for the end."""
        with self.leaving:
            self.leave(number)
            _exit_by(number)


_listener: _Listener | None = None


def _exit_by(number: int) -> None:
    os._exit(128 + number)


@contextmanager
def listening(leave: Callable[[int], None]) -> Iterator[None]:
    """Take over the signals of `STOPPING` until the end of the block; inside of another such block, nothing.

    Args:
        leave: see `when_leaving`.
    """
    global _listener  # noqa: PLW0603
    if _listener is not None or threading.current_thread() is not threading.main_thread():
        yield
        return
    listener = _listener = _Listener(leave)
    for end in listener.pipe:
        os.set_blocking(end, end == listener.pipe[0])
    pipe_before = signal.set_wakeup_fd(listener.pipe[1], warn_on_full_buffer=False)
    before = {number: signal.signal(number, _remembered_by_the_thread) for number in STOPPING}
    thread = threading.Thread(target=listener.listen, name="signals", daemon=True)
    thread.start()
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(pipe_before)
        _listener = None
        os.write(listener.pipe[1], END)  # closing it would not do: workers were forked with it
        thread.join()
        for end in listener.pipe:
            os.close(end)


def _remembered_by_the_thread(number: int, frame: FrameType | None) -> None:
    """Keeps the signal from its default action."""


def _forget_in_child() -> None:
    """A forked worker must not write into its parent's pipe."""
    global _listener  # noqa: PLW0603
    if _listener is not None:
        signal.set_wakeup_fd(-1)
        _listener = None


os.register_at_fork(after_in_child=_forget_in_child)


@contextmanager
def at_step_ends() -> Iterator[None]:
    """Within the block signals wait for somebody to ask `asked`."""
    listener = _listener
    if listener is None:
        yield
        return
    listener.waits_for_step_end = True
    if listener.came:
        listener.leave_now(asked())
    try:
        yield
    finally:
        listener.waits_for_step_end = False
    if listener.came:  # after the last step's look
        listener.leave_now(asked())


def asked() -> int:
    """The first signal that came; 0 if none did."""
    return 0 if _listener is None else next(iter(_listener.came), 0)


def answered() -> None:
    """The run is leaving because of what was asked: from now on signals change nothing."""
    if _listener is not None:
        _listener.answered = True


def when_leaving(leave: Callable[[int], None]) -> None:
    """Let `leave`, called in a thread with the signal's number, end a process that has nothing to save."""
    if _listener is not None:
        _listener.leave = leave


@contextmanager
def ctrl_c_waits() -> Iterator[None]:
    """Let the block finish before the KeyboardInterrupt of a Ctrl-C; a second Ctrl-C does not wait.

    Raised inside `torch.save`, it would come out as an error about the file.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # signals never come here
        return
    came: list[int] = []

    def remember(number: int, frame: FrameType | None) -> None:
        came.append(number)
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, remember)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if came:
        raise KeyboardInterrupt
