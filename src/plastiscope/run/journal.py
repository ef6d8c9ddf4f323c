"""The journal of one run: everything that the training loop writes goes through it."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from plastiscope.error import RunError, require
from plastiscope.run.checkpoint import Checkpoints
from plastiscope.run.log import NumberLog, read_rows
from plastiscope.run.progress import Progress
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
    """Logs, snapshots, per-sample values, checkpoints, status, progress and the W&B mirror of one run folder."""

    def __init__(self, folder: Path, snapshots: SnapshotSettings, checkpoint_every_s: float, config_hash: str) -> None:
        """Write into `folder`, which is locked for us; checkpoints of another `config_hash` are refused."""
        self.folder = folder
        self.metrics = NumberLog(folder / "metrics.jsonl")
        self.timings = NumberLog(folder / "timings.jsonl")
        self.snapshots = Snapshots(folder / "snapshots")
        self.samples = SampleStore(folder / "samples")
        self.stop = StopRequest()
        self.progress: Progress | None = None
        self.wandb: WandbSink | None = None
        self._checkpoints = Checkpoints(folder / "checkpoint")
        self._snapshot_settings, self._every_s, self._config_hash = snapshots, checkpoint_every_s, config_hash
        self._last_checkpoint = time.monotonic()
        self._timing: Row = {}

    def load_checkpoint(self) -> tuple[dict[str, Any], str] | None:
        """State of the newest whole checkpoint and a warning; logs and snapshots are cut back to it.

        None when there is none: then the logs are emptied, and snapshots deleted.

        Raises:
            RunError: it was written under other settings than those of this folder's config.
        """
        loaded = self._checkpoints.load()
        if loaded is not None and loaded[1]["config_hash"] != self._config_hash:
            raise RunError(
                f"the checkpoint in {self.folder} was written under other settings than its config.yaml says; "
                "put back the folder's own checkpoint/, or start anew in another folder (hydra.run.dir=...)"
            )
        state, about, warning = loaded or ({}, NOTHING, "")
        self.cut_back(about)
        return (state, warning) if loaded else None

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
            if self.progress is not None:
                self.progress.epoch(row["task_idx"], row["epoch"], row)
            progress = {"global_epoch": row["global_epoch"], "task_idx": row["task_idx"], "epoch": row["epoch"]}
            write_status(self.folder, State.running, **progress, numbers=_headline(row))

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

    def checkpoint_is_due(self) -> bool:
        """Whether the last checkpoint is old enough for the next epoch boundary to write one."""
        return time.monotonic() - self._last_checkpoint >= self._every_s

    def checkpoint(self, state: dict[str, Any], epochs_completed: int) -> None:
        """Write a checkpoint of `state`, which stands after `epochs_completed` whole epochs."""
        self.samples.sync()
        about = {**self.place(epochs_completed), "config_hash": self._config_hash}
        self._checkpoints.save(state, about)
        self._last_checkpoint = time.monotonic()

    def preempted(self) -> None:
        """Say in status.json that the run is saved and has stopped."""
        write_status(self.folder, State.preempted)

    def say(self, text: str) -> None:
        """A line for the person who watches."""
        if self.progress is not None:
            self.progress.say(text)
        else:
            print(text, flush=True)

    def close(self, exit_code: int = 0) -> None:
        """Close files, bar and mirror; give the signals back."""
        self.stop.restore()
        if self.progress is not None:
            self.progress.close()
        self.metrics.close()
        self.timings.close()
        self.samples.close()
        if self.wandb is not None:
            self.wandb.close(exit_code)


def _headline(row: Row) -> Row:
    keys = ("epoch_loss", "epoch_accuracy", "validation_accuracy", "test_accuracy", "test_loss")
    return {key: row[key] for key in keys if key in row}
