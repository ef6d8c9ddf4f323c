"""Locks on files, which the system opens when their holder dies; on local disks and on those of a network.

A lock is taken through a descriptor that may write, and asked about through one that may read: NFS makes range locks
of them, and refuses other descriptors with EBADF (flock(2), "NFS details").
"""

import fcntl
import os
import time
from pathlib import Path
from typing import IO

from plastiscope.error import RunError

PATIENCE_S = 0.5
"""How long a lock that is held is asked for: one who only looks at it holds it for a moment."""


def take(path: Path, patience_s: float = PATIENCE_S) -> IO[str] | None:
    """The file at `path`, made if need be, with its lock, which is ours until it is closed; None if another has it.

    Raises:
        RunError: the file system knows no locks.
        OSError: the file cannot be opened.
    """
    until = time.monotonic() + patience_s
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "a+")  # noqa: SIM115 (held until it is closed)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            if time.monotonic() >= until:
                return None
            time.sleep(0.02)
        except OSError as error:
            file.close()
            raise RunError(
                f"{path} cannot be locked ({error.strerror}); choose a folder on a file system that has locks, or have "
                "them switched on (Lustre: mount option flock)"
            ) from None
        else:
            if _lies_at(file, path):
                return file
            file.close()  # who had it before has deleted it: this lock is none


def is_held(path: Path) -> bool:
    """Whether a process has the lock of the file at `path`.

    Raises:
        OSError: that cannot be asked, such as when there is no such file.
    """
    with open(path) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _lies_at(file: IO[str], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
