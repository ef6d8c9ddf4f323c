"""What a run gets wrong while it learns: losses and hits of each presentation from before its update, in bins.

The steps have computed these values anyway, and the epoch's record holds them; bins are made when the epoch is over, so
a step costs nothing. A bin goes on over the ends of epochs and tasks. Memory does not grow with the run.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from plastiscope.analysis.analysis import Analysis
from plastiscope.error import ConfigError, require
from plastiscope.event import Context, Numbers
from plastiscope.measure.binned_mean import OpenBin
from plastiscope.measure.loss import Loss
from plastiscope.run.storage import write_by, write_json

Values = npt.NDArray[np.float64]


@dataclass(kw_only=True)
class Online(Analysis):
    """Mean loss and accuracy over bins of presentations; `every` must be 1, each epoch counts."""

    bin_size: int = 10_000
    """Presentations of a bin."""
    raw: bool = False
    """Also keep the loss and the hit of each presentation, a file an epoch."""

    name = "online"

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        require(self.every == 1, "every", self.every, "must be 1: each presentation counts")
        require(self.bin_size >= 1, "bin_size", self.bin_size, "must be 1 or more")
        self._presentations = 0
        self._open: dict[str, OpenBin] = {}
        self._bins: dict[str, Tensor] = {}
        self._task: dict[str, tuple[float, int]] = {}

    def needs_training(self) -> str:
        """Losses from before the update are of the training."""
        return "takes the losses of the training steps; leave it out"

    def on_epoch_end(self, context: Context) -> Numbers:
        """Fill bins with the presentations of the epoch; the newest whole one is for the log."""
        values = self._presented(context)
        if self.raw:
            place = context.folder(self.name) / f"presentations_epoch_{context.epoch:04d}.npz"
            _write_arrays(place, {name: row.astype(np.float32) for name, row in values.items()})
        n = len(values["loss"])
        first, last = (count // self.bin_size for count in (self._presentations, self._presentations + n))
        ends = torch.arange(first + 1, last + 1) * self.bin_size
        found, still_open = {"presentations": ends}, {}
        for name, row in values.items():
            means, still_open[name] = self._open.get(name, OpenBin()).filled(row, self.bin_size)
            found[name] = torch.from_numpy(means)
            total, count = self._task.get(name, (0.0, 0))
            self._task = {**self._task, name: (total + float(row.sum()), count + n)}
        self._presentations, self._open = self._presentations + n, still_open
        self._bins = {name: torch.cat([self._bins.get(name, part[:0]), part]) for name, part in found.items()}
        return {self._key(f"bin_{name}"): found[name][-1].item() for name in values if len(ends)}

    def on_task_end(self, context: Context) -> Numbers:
        """Write the bins that ended within the task; the means over all its presentations are for the log."""
        folder, bins = context.folder(self.name), {name: part.numpy() for name, part in self._bins.items()}
        _write_arrays(folder / "bins.npz", bins)
        means = {name: total / count for name, (total, count) in self._task.items()}
        facts = {"settings": asdict(self), "presentations": self._presentations, "bins": len(bins["presentations"])}
        write_json(folder / "summary.json", {**facts, "task_mean": means})
        self._bins, self._task = {}, {}
        return {self._key(name): value for name, value in means.items()}

    def state_dict(self) -> dict[str, Any]:
        """What is open, and the bins of the task under way."""
        return {
            "presentations": self._presentations,
            "open": {name: [part.total, part.count] for name, part in self._open.items()},
            "bins": self._bins,
            "task": {name: list(part) for name, part in self._task.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self._presentations, self._bins = state["presentations"], state["bins"]
        self._open = {name: OpenBin(*part) for name, part in state["open"].items()}
        self._task = {name: (total, count) for name, (total, count) in state["task"].items()}

    def _presented(self, context: Context) -> dict[str, Values]:
        """Losses, and hits if there are classes, of the epoch's presentations, float64 [n]."""
        record = context.record
        if record is None:
            raise ConfigError(f"{self.name} {self.needs_training()}")
        values = {"loss": record.losses.double().cpu().numpy()}
        if context.current_task.loss is not Loss.mse:
            values["accuracy"] = record.correct.double().cpu().numpy()
        return values

    def _key(self, quantity: str) -> str:
        return self.key("train", "total", quantity)


def _write_arrays(path: Path, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    write_by(path, lambda file: np.savez(file, **arrays))  # type: ignore[arg-type]
