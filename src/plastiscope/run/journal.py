"""The journal of one run: what the loop writes into its folder goes through it; checkpoints are the keeper's."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from plastiscope.error import require
from plastiscope.run.log import NumberLog, read_rows
from plastiscope.run.sample_store import SampleStore
from plastiscope.run.signals import StopRequest
from plastiscope.run.snapshots import Snapshots
from plastiscope.run.status import State, write_status
from plastiscope.run.wandb_sink import WandbSink

Row = dict[str, Any]
Weights = Callable[[], dict[str, Tensor]]
NOTHING = {"metrics": 0, "timings": 0, "epochs_completed": -1}
"""The place before anything is written."""


@dataclass(kw_only=True)
class SnapshotSettings:
    """Which weights are kept, `snapshots.*`; initialisation and task ends always are."""

    every: int | None = None
    """Also after every so many epochs; null = not."""
    keep: int | None = None
    """Of those, only the newest so many; null = all."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        require(self.every is None or self.every > 0, "every", self.every, "must be 1 or more, or null")
        require(self.keep is None or self.keep >= 0, "keep", self.keep, "must be 0 or more, or null")


class Journal:
    """Logs, snapshots, per-sample values, status and the W&B mirror of one run folder."""

    def __init__(self, folder: Path, snapshots: SnapshotSettings, stop: StopRequest) -> None:
        """Write into `folder`, which is locked for us; `stop` hears the signals."""
        self.folder = folder
        self.metrics = NumberLog(folder / "metrics.jsonl")
        self.timings = NumberLog(folder / "timings.jsonl")
        self.snapshots = Snapshots(folder / "snapshots")
        self.samples = SampleStore(folder / "samples")
        self.stop = stop
        self.is_open, self.has_failed = True, False
        self.wandb: WandbSink | None = None
        self._snapshot_settings = snapshots
        self._timing: Row = {}

    def cut_back(self, place: Mapping[str, int]) -> None:
        """Forget what was written after a `place`."""
        self.metrics.cut_back(place["metrics"])
        self.timings.cut_back(place["timings"])
        self.snapshots.cut_back(place["epochs_completed"])
        self.samples.cut_back(place["epochs_completed"])

    def place(self, epochs_completed: int) -> dict[str, int]:
        """Where all that is written stands now, after so many whole epochs; for `cut_back`."""
        sizes = {"metrics": self.metrics.size(), "timings": self.timings.size()}
        return {**sizes, "epochs_completed": epochs_completed}

    def past_rows(self) -> list[Row]:
        """Rows of both logs, merged by step and kind, in the order they were written."""
        timings = {(row["kind"], row["global_epoch"]): row for row in read_rows(self.timings.path)}
        return [{**timings.get((row["kind"], row["global_epoch"]), {}), **row} for row in read_rows(self.metrics.path)]

    def time(self, key: str, seconds: float) -> None:
        """Note a clock value for the row that comes next; values of one key add up."""
        self._timing[key] = self._timing.get(key, 0.0) + seconds

    def log(self, row: Row) -> None:
        """Write a row (with `kind` and `global_epoch`) to metrics.jsonl and its clock values to timings.jsonl."""
        timing = {key: row[key] for key in ("kind", "global_epoch", "task_idx")} | self._timing
        self._timing = {}
        self.metrics.append(row)
        self.timings.append(timing)
        if self.wandb is not None:
            self.wandb.log(timing | row)
        if row["kind"] == "epoch":
            progress = {"global_epoch": row["global_epoch"], "task_idx": row["task_idx"], "epoch": row["epoch"]}
            write_status(self.folder, State.running, **progress, numbers=headline(row))

    def snapshot(self, epochs_completed: int, weights: dict[str, Tensor]) -> None:
        """Keep the weights of initialisation or of a task's end."""
        self.snapshots.save(epochs_completed, weights)

    def snapshot_within_task(self, epochs_completed: int, epochs: int, weights: Weights) -> None:
        """Keep weights within a task of `epochs` epochs, if `snapshots.every` asks for them."""
        every, keep = self._snapshot_settings.every, self._snapshot_settings.keep
        if every is None or epochs_completed % every or epochs_completed % epochs == 0:
            return
        self.snapshots.save(epochs_completed, weights())
        if keep is not None:
            passing = [e for e in self.snapshots.epochs() if e % epochs and e % every == 0]
            for old in passing[: max(len(passing) - keep, 0)]:
                self.snapshots.remove(old)

    def fail(self, error: str) -> None:
        """The run cannot go on, others beside it can: say in its folder why."""
        self.has_failed = True
        write_status(self.folder, State.failed, error=error)

    def close(self, exit_code: int = 0) -> None:
        """Close files and mirror; once."""
        if not self.is_open:
            return
        self.is_open = False
        with ExitStack() as last:  # all of them, also when a full disk does not take the end of one
            if self.wandb is not None:
                last.callback(self.wandb.close, exit_code)
            for file in (self.samples, self.timings, self.metrics):
                last.callback(file.close)


def headline(row: Row) -> Row:
    """The numbers of an epoch's row that are shown while a run goes on."""
    keys = ("epoch_loss", "epoch_accuracy", "validation_accuracy", "test_accuracy", "test_loss")
    return {key: row[key] for key in keys if key in row}
