"""Who is there: each of several processes holds a lock in a common folder, which the system opens when it dies.

So that those who are left can say which one has gone, and stop, wherever they are.
"""

import fcntl
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from socket import gethostname
from typing import IO

EVERY_S = 5.0
"""Seconds between two looks at the others."""
PATIENCE_S = 3.0
"""How long one who asks waits for the lock of a dying process to open."""


class Roster:
    """The locks of all processes of a run, and a thread that watches them.

    Attributes:
        missing: the processes that have gone, in words; empty while all are there.
    """

    def __init__(self, folder: Path, rank: int, world: int) -> None:
        """Take our own lock in `folder`."""
        self._folder, self._rank, self._world = folder, rank, world
        folder.mkdir(parents=True, exist_ok=True)
        self._own: IO[str] = open(self._path(rank), "w")  # noqa: SIM115 (held until the end)
        fcntl.flock(self._own, fcntl.LOCK_EX)
        self._own.write(f"{gethostname()}, process id {os.getpid()}")
        self._own.flush()
        self._over = threading.Event()
        self.missing = ""

    def _path(self, rank: int) -> Path:
        return self._folder / f"rank_{rank}"

    def ask(self) -> str:
        """Who has gone, such as "process 1 of 3 (node7, process id 123)"; empty when nobody has."""
        until = time.monotonic() + PATIENCE_S
        while not self.missing and time.monotonic() < until:
            self._look()
            if not self.missing:
                time.sleep(0.1)
        return self.missing

    def _look(self) -> None:
        gone = [rank for rank in range(self._world) if rank != self._rank and not self._is_there(rank)]
        self.missing = " and ".join(f"process {rank} of {self._world} ({self._where(rank)})" for rank in gone)

    def _is_there(self, rank: int) -> bool:
        try:
            with open(self._path(rank)) as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return False
        except OSError:
            return True  # it holds its lock; or its file has gone, with the folder, at the end of all

    def _where(self, rank: int) -> str:
        try:
            return self._path(rank).read_text()
        except OSError:
            return "its place is not known"

    @contextmanager
    def watched(self, signum: signal.Signals) -> Iterator[None]:
        """Inside, our own process gets a signal as soon as one of the others has gone."""

        def watch() -> None:
            while not self._over.wait(EVERY_S):
                self._look()
                if self.missing:
                    os.kill(os.getpid(), signum)
                    return

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join()

    def leave(self) -> None:
        """Let go of our lock; the first process clears the folder."""
        if self._rank == 0:
            shutil.rmtree(self._folder, ignore_errors=True)
        self._own.close()
