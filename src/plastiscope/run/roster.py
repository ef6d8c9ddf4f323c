"""Who is there: each of several processes holds a lock in a common folder, which the system opens when it dies.

So that those who are left can say which one has gone, and stop, wherever they are. Who leaves in good order takes its
file away; a file whose lock is open is that of one who died, or failed.
"""

import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from socket import gethostname

from plastiscope.run.lock import is_held, take

EVERY_S = 5.0
"""Seconds between two looks at the others."""
PATIENCE_S = 3.0
"""How long one who asks waits for the lock of a dying process to open."""
GRACE_S = 30.0
"""How long a process that follows the first may take to stop; within that, most calls of a library return."""


class Roster:
    """The locks of all processes of a run, and a thread that watches them.

    Attributes:
        is_ours: our own lock could be taken.
        missing: the processes that have gone, in words; empty while all are there.
    """

    def __init__(self, folder: Path, rank: int, world: int) -> None:
        """Take our own lock in `folder`, if no other process has it.

        Raises:
            RunError: the file system knows no locks.
            OSError: the folder cannot be written into.
        """
        self._folder, self._rank, self._world = folder, rank, world
        self._own = take(self._path(rank), PATIENCE_S)
        self.is_ours = self._own is not None
        self.missing = ""

    def sign(self) -> None:
        """Write down who we are; once all have their lock."""
        assert self._own is not None
        self._own.truncate(0)
        self._own.write(f"{gethostname()}, process id {os.getpid()}")
        self._own.flush()

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
        gone = [rank for rank in self._others() if not self._is_there(rank)]
        self.missing = " and ".join(f"process {rank} of {self._world} ({self._where(rank)})" for rank in gone)

    def _others(self) -> list[int]:
        return [rank for rank in range(self._world) if rank != self._rank]

    def _is_there(self, rank: int) -> bool:
        try:
            return is_held(self._path(rank))
        except OSError:
            return True  # it has left in good order, or the disk does not answer

    def _where(self, rank: int) -> str:
        try:
            return self._path(rank).read_text()
        except OSError:
            return "its place is not known"

    @contextmanager
    def watched(self, signum: signal.Signals) -> Iterator[None]:
        """Inside, our own process gets a signal as soon as one of the others has gone.

        Where what it is in does not let go of it, such as a call to someone whose machine is lost, it ends without
        more, unless it is the first: the others have nothing to save.
        """
        over = threading.Event()

        def watch() -> None:
            while not over.wait(EVERY_S):
                self._look()
                if self.missing:
                    os.kill(os.getpid(), signum)
                    if self._rank > 0 and not over.wait(GRACE_S):
                        print(f"plastiscope: {self.news()}", file=sys.stderr, flush=True)
                        os._exit(2)
                    return

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def news(self) -> str:
        """What to tell when others have gone."""
        return news(self._rank, self._world, self.missing)

    def leave(self, in_order: bool) -> None:
        """Let go of our lock; in good order, so that nobody thinks us dead. The last one clears the folder."""
        if self._own is None:
            return
        if in_order:
            self._path(self._rank).unlink(missing_ok=True)
        if not any(self._is_held(rank) for rank in self._others()):
            shutil.rmtree(self._folder, ignore_errors=True)
        self._own.close()

    def _is_held(self, rank: int) -> bool:
        try:
            return is_held(self._path(rank))
        except OSError:
            return False


def news(rank: int, world: int, gone: str) -> str:
    """What process `rank` of `world` tells when others have `gone`."""
    return (
        f"process {rank} of {world}: {gone or 'another process'} has stopped, and its own message says why (none if it "
        "was killed). What is finished is kept: start the same command again"
    )
