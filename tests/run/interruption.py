"""A callback for tests: sends a signal to its own process in the middle of an epoch, once per run folder."""

import os
import signal
from dataclasses import dataclass, field
from pathlib import Path

from plastiscope.event import Callback, Context


@dataclass(kw_only=True)
class Interruption(Callback):
    """Send SIGUSR2 after batch `batch` of epoch 1 of task `task`, unless the mark in the run folder says it is done.

    Just before, it empties the files `empties`, as somebody might who edits them meanwhile.
    """

    task: int = 1
    batch: int = 2
    empties: list[str] = field(default_factory=list)

    def on_batch_end(self, context: Context) -> None:
        mark = context.run_folder / "interrupted"
        here = (context.task_idx, context.epoch, context.batch_index) == (self.task, 1, self.batch)
        if here and not mark.exists():
            mark.touch()
            for path in self.empties:
                Path(path).write_text("")
            os.kill(os.getpid(), signal.SIGUSR2)
