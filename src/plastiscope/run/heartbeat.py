"""Signs of life of a run: its lock file is touched now and then, so that other machines can tell that it goes on."""

import contextlib
import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from plastiscope.run.folder import LOCK

EVERY_S = 60.0
"""Seconds between two beats."""
SILENT_AFTER_S = 600.0
"""Seconds without one after which a run on another machine is thought to be lost; clocks may differ by minutes."""


class Heartbeat:
    """A thread that touches the lock files of run folders until it is stopped.

    It beats in long analyses too, which write nothing for hours, and ends with the process.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        """Begin at once."""
        self._folders = folders
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()

    def _beat(self) -> None:
        while not self._over.wait(EVERY_S):
            for folder in self._folders:
                with contextlib.suppress(OSError):  # a full disk, a folder that was removed: not worth the run
                    os.utime(folder / LOCK)

    def stop(self) -> None:
        """No more beats."""
        self._over.set()
        self._thread.join()


def silence(folder: Path, since: float) -> float:
    """Seconds since the last beat, or since the time `since` if that was later."""
    with contextlib.suppress(OSError):
        since = max(since, (folder / LOCK).stat().st_mtime)
    return time.time() - since
