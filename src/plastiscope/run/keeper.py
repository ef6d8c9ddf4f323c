"""What belongs to a loop as a whole, be it over one run or over several that advance together: checkpoint, progress."""

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from plastiscope.error import RunError
from plastiscope.run.checkpoint import Checkpoints
from plastiscope.run.journal import NOTHING, Journal, Row, headline
from plastiscope.run.progress import Progress
from plastiscope.run.signals import StopRequest
from plastiscope.run.status import State, write_status


class Keeper:
    """The checkpoints of one loop, with the places at which the logs of its runs then stood; and what people see."""

    def __init__(
        self, folder: Path, journals: Sequence[Journal], stop: StopRequest, every_s: float, config_hash: str
    ) -> None:
        """Save into folder/checkpoint.

        Args:
            folder: of the run, or of the group of runs.
            journals: of its runs.
            stop: signals that ask the loop to save itself.
            every_s: seconds after which the next epoch boundary saves.
            config_hash: checkpoints of another one are refused.
        """
        self.folder, self.journals, self.stop = folder, journals, stop
        self._checkpoints = Checkpoints(folder / "checkpoint")
        self._every_s, self._config_hash = every_s, config_hash
        self._last = time.monotonic()
        self.progress: Progress | None = None

    def load(self, begun_after: int = -1) -> tuple[dict[str, Any], str] | None:
        """State of the newest whole checkpoint and a warning; logs and snapshots are cut back to it.

        None when there is none: then the logs are emptied, and snapshots deleted.

        Args:
            begun_after: epochs completed by the weights that a branch begins with. Snapshots up to these came from
                another run, which may be gone, so they stay.

        Raises:
            RunError: it was written under other settings than those of this folder's config.
        """
        loaded = self._checkpoints.load()
        if loaded is None:
            for journal in self.journals:
                journal.cut_back({**NOTHING, "epochs_completed": begun_after})
            return None
        state, about, warning = loaded
        if about["config_hash"] != self._config_hash:
            raise RunError(
                f"the checkpoint in {self.folder} was written under other settings than its config.yaml says; "
                "put back the folder's own checkpoint/, or start anew in another folder (hydra.run.dir=...)"
            )
        for journal, place in zip(self.journals, about.get("runs", [about]), strict=True):
            journal.cut_back(place)
        return state, warning

    def is_due(self) -> bool:
        """Whether the last checkpoint is old enough for the next epoch boundary to write one."""
        return time.monotonic() - self._last >= self._every_s

    def save(self, state: dict[str, Any], epochs_completed: int) -> None:
        """Write a checkpoint of `state`, which stands after `epochs_completed` whole epochs."""
        for journal in self.journals:
            journal.samples.sync()
        places = [journal.place(epochs_completed) for journal in self.journals]
        about: dict[str, Any] = {"runs": places} if len(places) > 1 else dict(places[0])
        self._checkpoints.save(state, {**about, "config_hash": self._config_hash})
        self._last = time.monotonic()

    def preempted(self) -> None:
        """Say in status.json that all is saved and has stopped."""
        going = (journal.folder for journal in self.journals if not journal.has_failed)
        for folder in dict.fromkeys([self.folder, *going]):
            write_status(folder, State.preempted)

    def epoch_done(self, rows: Sequence[Row]) -> None:
        """An epoch of every run is done: show the mean of their numbers; of a group, put it into its status."""
        first = rows[0]
        numbers = {key: math.fsum(row[key] for row in rows) / len(rows) for key in headline(first)}
        if self.progress is not None:
            self.progress.epoch(first["task_idx"], first["epoch"], numbers)
        if len(self.journals) > 1:
            place = {key: first[key] for key in ("global_epoch", "task_idx", "epoch")}
            write_status(self.folder, State.running, **place, numbers=numbers)

    def say(self, text: str) -> None:
        """A line for the person who watches."""
        if self.progress is not None:
            self.progress.say(text)
        else:
            print(text, flush=True)

    def close(self) -> None:
        """Close the bar; give the signals back."""
        self.stop.restore()
        if self.progress is not None:
            self.progress.close()
