"""Which training sample was presented when: task, epoch and batch, as one permutation an epoch.

The table of single presentations, which other programs write, is made on request; the permutations say the same in a
hundredth of the space.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from plastiscope.analysis.analysis import Analysis
from plastiscope.error import ConfigError, require
from plastiscope.event import Context, Numbers
from plastiscope.formats.tracking_csv import export_tracking
from plastiscope.measure.loss import Loss
from plastiscope.measure.presentation import order_change
from plastiscope.presentation import presentation_order
from plastiscope.run.presentation_log import finish, write_order
from plastiscope.task_shift_mode.task import Task


@dataclass(kw_only=True)
class Tracking(Analysis):
    """Orders of presentation; `every` must be 1, each epoch is recorded."""

    export_csv: bool = False
    """At the run's end also write sample_tracking_data<suffix>.csv, a row a presentation."""
    suffix: str = ""
    """Of that file's name."""
    scores_file: str | None = None
    """Memorization scores by id for its column memo_score; what is not in the file stays empty."""

    name = "tracking"

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        require(self.every == 1, "every", self.every, "must be 1: each epoch is recorded")
        require("/" not in self.suffix, "suffix", self.suffix, "must be part of a file name")
        needless = self.scores_file is not None and not self.export_csv
        require(not needless, "scores_file", self.scores_file, "is for the exported file; set export_csv=true too")

    def needs_training(self) -> str:
        """Orders of presentation are of the training."""
        return "records in which order training presents the samples; leave it out"

    def on_epoch_end(self, context: Context) -> Numbers:
        """Write the order of the epoch, and say how far it is from that of the one before."""
        if context.order is None:
            raise ConfigError(f"{self.name} {self.needs_training()}")
        order = context.order.cpu()
        write_order(context.folder(self.name), context.epoch, context.epochs, order.numpy())
        numbers = {self.key("train", "total", "presentations"): float(len(order))}
        if context.epoch > 0 and len(order) > 1:
            train, k = context.current_task.train, context.task_idx
            previous = presentation_order(train, context.seed, k, context.epoch - 1).cpu()
            numbers[self.key("train", "total", "order_change")] = order_change(order, previous)
        return numbers

    def on_task_end(self, context: Context) -> None:
        """Write what the orders are about."""
        task = context.current_task
        finish(context.folder(self.name), task.train.ids.cpu().numpy(), targets_of(task), self._about(context))

    def on_run_end(self, context: Context) -> None:
        """Export, if it is asked for."""
        if self.export_csv:
            export_tracking(context.run_folder, self.suffix, self.scores_file, name=self.name)

    def _about(self, context: Context) -> dict[str, Any]:
        task, presentation = context.current_task, context.current_task.train.presentation
        is_random = task.train.fixed_order() is None
        return {
            "settings": asdict(self),
            "task": task.index,
            "first_epoch": task.index * context.epochs,
            "epochs": context.epochs,
            "samples": len(task.train),
            "batch_size": context.batch_size,
            "classes": list(task.classes),
            "active_outputs": task.active_outputs,
            "loss": task.loss.name,
            "id_kind": "sample_id",
            "order": "random" if presentation is None else presentation.name,
            "seed": context.seed,
            "generator": "torch.randperm(n), seeded with named_seed(seed, 'order', task, epoch)" if is_random else None,
            "torch": torch.__version__.partition("+")[0],
        }


def targets_of(task: Task) -> npt.NDArray[Any]:
    """What the network is told of each training sample: its class' output, int64 [n], or values float32 [n, k]."""
    targets = task.train.targets
    if task.loss is Loss.cross_entropy:
        return (targets if targets.ndim == 1 else targets.argmax(1)).cpu().numpy().astype(np.int64)
    return targets.reshape(len(targets), -1).float().cpu().numpy()
