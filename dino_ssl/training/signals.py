"""What a signal may interrupt."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


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
