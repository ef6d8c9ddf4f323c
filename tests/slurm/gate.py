"""A callback for tests: a run waits at certain steps until somebody sends it SIGUSR2, or kills it."""

import signal
import time
from dataclasses import dataclass
from types import FrameType

from plastiscope.event import Callback, Context


@dataclass(kw_only=True)
class Gate(Callback):
    """Wait after batch `batch` of each of the first `hits` epochs of the run, once each, until SIGUSR2 comes.

    A mark in the run folder, `gate_<epoch>`, says that the run has come there; whoever sees it may hit the run.
    """

    name: str = "gate"
    hits: int = 1
    batch: int = 2

    def on_batch_end(self, context: Context) -> None:
        epoch = context.task_idx * context.epochs + context.epoch
        mark = context.run_folder / f"gate_{epoch}"
        if epoch >= self.hits or context.batch_index != self.batch or mark.exists():
            return
        came: list[int] = []
        before = signal.getsignal(signal.SIGUSR2)

        def note(signum: int, frame: FrameType | None) -> None:
            came.append(signum)
            before(signum, frame)  # type: ignore[operator]

        signal.signal(signal.SIGUSR2, note)
        mark.touch()
        while not came:
            time.sleep(0.02)
        signal.signal(signal.SIGUSR2, before)
