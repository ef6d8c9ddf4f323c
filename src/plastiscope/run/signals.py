"""SIGTERM, SIGUSR2 and Ctrl-C: ask the run to save itself and stop, instead of killing it."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT)


class Preempted(BaseException):
    """Raised to leave the training loop after a signal; not an Exception, so that no analysis can swallow it."""

    def __init__(self, signum: int) -> None:
        """The run stopped because of signal `signum`."""
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.signum = signum


class StopRequest:
    """Installed while a run trains; the loop asks `received` after each step.

    While `at_once` is true (evaluation and analyses, which change nothing) the signal raises Preempted where it comes.
    A second signal of the same run falls through to whoever handled it before.
    """

    def __init__(self) -> None:
        """Take over the signals, if this is the main thread (only there Python allows it)."""
        self.received: int | None = None
        self.at_once = False
        self._before: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            for signum in SIGNALS:
                self._before[signum] = signal.signal(signum, self._handle)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self.received is not None and signum == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signum
        if self.at_once:
            self.at_once = False
            raise Preempted(signum)

    @contextmanager
    def heard_at_once(self) -> Iterator[None]:
        """Inside, where nothing is changed, a signal raises Preempted where it comes; one that came before, at once."""
        self.at_once = True
        try:
            if self.received is not None:
                raise Preempted(self.received)
            yield
        finally:
            self.at_once = False

    def pass_on(self) -> None:
        """Hand the signal to whoever handled it before, such as a launcher that requeues the job.

        Returns if that handler returns (a launcher may ignore SIGTERM, which SLURM sends beside its own signal).

        Raises:
            Preempted: nobody handled it before.
        """
        signum, self.received = self.received, None
        assert signum is not None
        before = self._before.get(signum)
        if signum == signal.SIGINT or not callable(before):
            raise Preempted(signum)
        before(signum, None)

    def restore(self) -> None:
        """Give the signals back."""
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        self._before = {}
