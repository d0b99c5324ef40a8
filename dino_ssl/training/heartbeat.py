"""heartbeat.json: what the run is doing, every few seconds, from a thread: no step waits for it."""

import json
import logging
import math
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HEARTBEAT = "heartbeat.json"
SECONDS = 5.0
logger = logging.getLogger("dino_ssl")


class Heartbeat:
    """Writes the file from `start` to `stop`.

    Args:
        look: what to write, called in the thread.
        after: called in the thread after each beat.
    """

    def __init__(self, folder: Path, look: Callable[[], dict[str, Any]], after: Callable[[], None]) -> None:
        self.path = folder / HEARTBEAT
        self._look = look
        self._after = after
        self._over = threading.Event()
        self._writing = threading.Lock()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def start(self) -> None:
        self.write()
        self._thread.start()

    def stop(self, **last: Any) -> None:
        """Write a last time, with `last` over what there is to see."""
        self._over.set()
        self.write(**last)

    def write(self, **more: Any) -> None:
        """Replace the file; a full disk is the business of checkpoints, not of this."""
        seen = {**self._look(), "time": time.time(), **more}
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in seen.items()}
        unfinished = self.path.with_name(HEARTBEAT + ".tmp")
        with self._writing:
            try:
                unfinished.write_text(json.dumps(finite) + "\n")
                unfinished.replace(self.path)
            except OSError as error:
                logger.warning("cannot write %s: %s", self.path, error.strerror)

    def _beat(self) -> None:
        while not self._over.wait(SECONDS):
            self.write()
            self._after()
