"""Processes that are killed, forked from the tests' own so that they need not import everything again."""

import os
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path


def killed(work: Callable[[], object]) -> bool:
    """Do `work` in a process of its own; whether SIGKILL ended that."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads, which the tests' own process has none of
        child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def killed_at(event: int, folder: Path, work: Callable[[], object]) -> bool:
    """Do `work` in a process that is killed as it opens or renames its n-th file in `folder`; whether it was.

    What a process leaves behind changes only there, so a kill at any other time is like one of these.
    """

    def counted() -> None:
        left = event

        def count(name: str, arguments: tuple) -> None:
            nonlocal left
            if name in ("open", "os.rename") and str(folder) in str(arguments[0]):
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(count)
        work()

    return killed(counted)
