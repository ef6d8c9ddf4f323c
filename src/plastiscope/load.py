"""load_run: a run folder as an object."""

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from plastiscope.build import Plan, build, read_config
from plastiscope.data.samples import DataSet
from plastiscope.error import RunError
from plastiscope.formats.checkpoints import fit
from plastiscope.make import choose_device, load_tasks, make_net
from plastiscope.net.describe import describe
from plastiscope.run.log import read_rows
from plastiscope.run.sample_store import SampleStore
from plastiscope.run.sample_view import SampleView
from plastiscope.run.snapshots import SavedWeights, Snapshots
from plastiscope.run.status import read_status
from plastiscope.run.storage import read_json
from plastiscope.source import reopen
from plastiscope.task_shift_mode.task import Task, TaskShift

if TYPE_CHECKING:
    import pandas as pd


class LoadedRun:
    """A run folder, read only.

    Attributes:
        folder: where it lies.
        sample_store: per-sample values, a block a task.
    """

    def __init__(self, folder: Path, trust: bool) -> None:
        """Read `folder`."""
        self.folder = folder
        self.sample_store = SampleStore(folder / "samples")
        self._plan: Plan = build(read_config(folder, trust))
        if self._plan.settings.replicas > 1:
            first = f"seed_{self._plan.settings.seed:04d}"
            raise RunError(
                f"{folder} is a group of runs that advance together; load one of them, such as {folder}/{first}"
            )
        self._about: dict[str, Any] = read_json(folder / "run.json") or {}

    @property
    def config(self) -> dict[str, Any]:
        """The resolved config: every option with its value."""
        return self._plan.config

    @property
    def status(self) -> dict[str, Any]:
        """What the run is doing: state, progress, error."""
        return read_status(self.folder)

    @property
    def metrics(self) -> "pd.DataFrame":
        """All logged numbers, a row per epoch and per task end (column `kind`); NaN = not measured."""
        import pandas as pd

        return pd.DataFrame(read_rows(self.folder / "metrics.jsonl"))

    @property
    def timings(self) -> "pd.DataFrame":
        """All that a clock measured, in seconds, by the same steps."""
        import pandas as pd

        return pd.DataFrame(read_rows(self.folder / "timings.jsonl"))

    @cached_property
    def snapshots(self) -> SavedWeights:
        """The weights that were kept; of a replay, those that it looked at, where they lie.

        Raises:
            RunError: of a replay: they are no longer there.
        """
        if self._plan.settings.replay.folder is None:
            return Snapshots(self.folder / "snapshots")
        head = describe(self._fresh_net(), torch.zeros(2, *self._about["input_shape"])).head
        return reopen(self._plan, self.folder, self._about, head)

    def samples(self, metric: str) -> SampleView:
        """Per-sample values of a metric such as "loss": `.values` [epoch, sample], `.ids`, `.epochs_completed`.

        Raises:
            RunError: it was not measured; says which metrics there are.
        """
        return SampleView(self.sample_store, metric)

    @property
    def data(self) -> DataSet:
        """The data set: its class names, coarse classes, samples; reads the data."""
        return self._loaded[0]

    @property
    def shift(self) -> TaskShift:
        """The sequence of tasks, rebuilt; reads the data."""
        return self._loaded[1]

    @cached_property
    def _loaded(self) -> tuple[DataSet, TaskShift]:
        return load_tasks(self._plan, choose_device("cpu"))

    def task(self, k: int) -> Task:
        """Task k as it was trained, rebuilt; reads the data."""
        return self.shift.task(k)

    def net(self, task: int | None = None, epochs_completed: int | None = None) -> nn.Module:
        """The network with saved weights, on the CPU, in evaluation mode.

        Args:
            task: weights selected at the end of this task.
            epochs_completed: weights after so many epochs of the run instead (0 = initialisation).

        Raises:
            RunError: there is no such snapshot; says which there are.
        """
        if (task is None) == (epochs_completed is None):
            raise RunError("give either task=... or epochs_completed=...")
        if epochs_completed is None:
            assert task is not None
            epochs_completed = (task + 1) * self._plan.settings.epochs
        net = self._fresh_net()
        fit(net, self.snapshots.load(epochs_completed), self.snapshots.path(epochs_completed))
        return net.eval()

    def _fresh_net(self) -> nn.Module:
        return make_net(self._plan, tuple(self._about["input_shape"]), self._about["outputs"])


def load_run(folder: str | Path, trust: bool = False) -> LoadedRun:
    """Open a run folder.

    Args:
        folder: the run folder.
        trust: let its config.yaml name classes outside plastiscope, torch.nn and torchvision.models.

    Raises:
        ConfigError: it is no run folder.
        RunError: it is that of a group of runs.
    """
    return LoadedRun(Path(folder), trust)
