"""Events of the training loop: what a callback may see, and when.

The loop, with every event in its place:

    on_run_begin                               the network as initialised (epochs_completed = 0)
    for task in tasks:
        learner.begin_task(task)               new head, reset, schedule restart
        on_task_begin                          the shift has happened, nothing is trained yet
        for epoch in epochs:
            on_epoch_begin
            for batch in epoch:
                forward, loss, backward
                on_backward                    gradients are there, before clipping
                clip, optimiser step
                on_update                      the optimiser has stepped; replacement and noise have not happened
                learner's own mechanism        unit replacement, then noise
                on_batch_end                   the batch's losses and outputs, from before the update
            on_epoch_end                       test and validation accuracy are known; numbers go to the epoch's row
        selection of weights, snapshot
        on_task_end                            the selected weights; numbers go to the task's row
    on_run_end

Callbacks look; they never touch: parameters, buffers, `.grad`, train/eval mode and every random number generator are
bit-equal before and after an event.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from plastiscope.data.samples import Batch
from plastiscope.measure.keyed import named_seed
from plastiscope.net.units import UnitDescription
from plastiscope.run.processes import Processes
from plastiscope.run.sample_store import SampleSettings, SampleStore
from plastiscope.run.snapshots import SavedWeights
from plastiscope.task_shift_mode.task import Task, TaskShift

Numbers = dict[str, float]
"""Scalars for the log, by key."""


@dataclass
class EpochRecord:
    """What the steps of one epoch leave behind, on the device: per presentation, in the order of presentation.

    losses and hits are [*lead, n]: several runs that advance together lie side by side.
    """

    losses: Tensor
    correct: Tensor

    @classmethod
    def empty(cls, n: int, device: torch.device, lead: tuple[int, ...] = ()) -> "EpochRecord":
        """Room for n presentations of each run."""
        return cls(torch.zeros(*lead, n, device=device), torch.zeros(*lead, n, dtype=torch.bool, device=device))

    def write(self, start: int, losses: Tensor, hits: Tensor | None) -> None:
        """Note the presentations of a block of steps, [steps, *lead, b] each, from place `start` on."""
        for place, values in ((self.losses, losses), (self.correct, hits)):
            if values is not None:
                in_order = values.movedim(0, -2).flatten(-2)
                place[..., start : start + in_order.shape[-1]] = in_order

    def of(self, run: int) -> "EpochRecord":
        """The record of one of several runs."""
        return EpochRecord(self.losses[run], self.correct[run])


@dataclass(kw_only=True)
class Context:
    """What a callback may see. Grows only with a reason, written down in docs/architecture.md.

    Attributes:
        seed: of the run.
        num_tasks, epochs: tasks of the run, epochs of each task.
        shift: rebuilds any task, `context.shift.task(k)`.
        task: the current task.
        epoch: within the task, from 0.
        epochs_completed: by the run; the axis of everything stored.
        net: unwrapped network on the device.
        units: its unit description.
        optimizer: of the learner, for its learning rates and kind.
        batch_size: of training.
        learner_resets_head: the learner initialises the head (or all) anew at every task but the first, so that the
            outputs of one task mean nothing in another.
        data_name, label_noise: what published file names of per-sample values say of the data.
        run_folder: where artifacts go, through `folder(...)`.
        snapshots: the weights saved so far; snapshot 0 is the initialisation.
        sample_store: per-sample values of the run.
        sample_settings: which samples they are kept of.
        owned_metrics: per-sample values that an analysis of the run keeps at epochs of its own (`Callback.owns`); the
            others keep none of these themselves.
        checkpoints: None in training; in a replay the epochs completed of all weights that are walked.
        replay_facts: in a replay, what files of results say of the weights and labels (source.py).
        weights_digest: where work is shared out, of the weights under the look; names its parts.
        processes: who shares the work of an analysis.
        batch_index, num_batches: position in the epoch; valid in batch events.
        batch, losses, logits: of the step, from before the update; valid in on_batch_end.
        order: positions in the task's training samples in the order of presentation, int64 [n] on the device; of the
            epoch under way or just over. None in a replay.
        record: loss and hit of each presentation, in that order. None in a replay.
        epoch_row: numbers of the epoch's row so far; valid in on_epoch_end and after.
    """

    seed: int
    num_tasks: int
    epochs: int
    shift: TaskShift
    net: nn.Module
    units: UnitDescription
    optimizer: torch.optim.Optimizer
    batch_size: int
    run_folder: Path
    arch: str
    snapshots: SavedWeights
    task: Task | None = None
    epoch: int = 0
    epochs_completed: int = 0
    batch_index: int = 0
    num_batches: int = 0
    batch: Batch | None = None
    losses: Tensor | None = None
    logits: Tensor | None = None
    order: Tensor | None = None
    record: EpochRecord | None = None
    epoch_row: Numbers = field(default_factory=dict)
    sample_store: SampleStore
    sample_settings: SampleSettings = field(default_factory=SampleSettings)
    owned_metrics: frozenset[str] = frozenset()
    checkpoints: tuple[int, ...] | None = None
    replay_facts: dict[str, Any] = field(default_factory=dict)
    weights_digest: str = ""
    processes: Processes = field(default_factory=Processes)
    learner_resets_head: bool = False
    data_name: str = "data"
    label_noise: float = 0.0

    @property
    def task_idx(self) -> int:
        """Index of the current task, from 0."""
        return 0 if self.task is None else self.task.index

    @property
    def current_task(self) -> Task:
        """The current task; an error outside a task."""
        if self.task is None:
            raise RuntimeError("there is no current task outside on_task_begin .. on_task_end")
        return self.task

    @property
    def is_replay(self) -> bool:
        """Whether saved weights are looked at, and nothing is trained."""
        return self.checkpoints is not None

    def epochs_of_task(self) -> list[int]:
        """Epochs completed at which the current task is or can be looked at, ascending; 0 only in a replay."""
        first = self.task_idx * self.epochs
        if self.checkpoints is None:
            return list(range(first + 1, first + self.epochs + 1))
        is_first = self.task_idx == 0
        return [e for e in self.checkpoints if first < e <= first + self.epochs or (is_first and e == 0)]

    @property
    def is_last_batch(self) -> bool:
        """Whether the current batch is the epoch's last one."""
        return self.batch_index == self.num_batches - 1

    def rng(self, *purpose: object) -> torch.Generator:
        """A CPU generator named by (seed, purpose): the same numbers each time it is asked for."""
        return torch.Generator().manual_seed(named_seed(self.seed, *purpose))

    def folder(self, analysis: str) -> Path:
        """The folder of an analysis' artifacts at the current task, made when asked for: task_0003_mlp/<analysis>."""
        path = self.run_folder / f"task_{self.task_idx:04d}_{self.arch}" / analysis
        path.mkdir(parents=True, exist_ok=True)
        return path


class Callback:
    """Base of everything that listens; an analysis is one. Override the events you need.

    The same events fire when saved weights are looked at instead (replay.py), but for those within an epoch.

    A subclass is a `@dataclass(kw_only=True)` of its settings, as its YAML lists them. Events return the numbers to
    log, or None. State that must survive a resume goes through `state_dict` (tensors, numbers, strings, containers);
    an event replaces such values, it does not change them in place.
    """

    name: str = ""
    """Key of the analysis in the config, set when it is built."""
    is_late: ClassVar[bool] = False
    """Hears each event after the others, to fill in what they leave."""
    shared_events: tuple[str, ...] = ()
    """With several processes: the events that fire in all of them, because work is shared out in them."""

    def needs_training(self) -> str:
        """Why saved weights are not enough, such as "records the steps; leave it out"; "" when they are."""
        return ""

    def owns(self) -> tuple[str, ...]:
        """Per-sample values that it keeps at its own epochs, in tasks without such an epoch at none."""
        return ()

    def forecast(self, context: Context) -> float | None:
        """Seconds of its looks at one task, if it can tell without looking; None = it has to be tried."""
        return None

    def take_seconds(self) -> Numbers:
        """Seconds of its parts by key, for timings.jsonl beside the event's own; asked for after each, given once."""
        return {}

    def on_run_begin(self, context: Context) -> Numbers | None:
        """The network as initialised; called once, not again on a resume."""

    def on_task_begin(self, context: Context) -> Numbers | None:
        """The shift has happened and the learner has begun the task; nothing is trained yet."""

    def on_epoch_begin(self, context: Context) -> None:
        """Before the first batch of an epoch."""

    def on_backward(self, context: Context) -> None:
        """Gradients of the mini-batch mean loss are in `.grad`, before clipping."""

    def on_update(self, context: Context) -> None:
        """The optimiser has stepped."""

    def on_batch_end(self, context: Context) -> None:
        """A batch is done."""

    def on_epoch_end(self, context: Context) -> Numbers | None:
        """An epoch is done; the weights are the current ones."""

    def on_task_end(self, context: Context) -> Numbers | None:
        """A task is done; the weights are the selected ones."""

    def on_run_end(self, context: Context) -> None:
        """The last task is done; figures are drawn here, from what is stored."""

    def state_dict(self) -> dict[str, Any]:
        """What a resume needs; empty by default."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""

    def hears(self, event: str, is_last: bool) -> bool:
        """Whether it acts on an event of a step, the epoch's last one or another; settings may leave it nothing to do.

        Steps to which nobody listens are made many at a time.
        """
        return getattr(type(self), event) is not getattr(Callback, event)


def listeners(callbacks: list[Callback], event: str, is_last: bool) -> list[Callable[[Context], Any]]:
    """Bound methods of the callbacks that hear `event` in such a step, in order; the loop calls nothing else."""
    return [getattr(callback, event) for callback in callbacks if callback.hears(event, is_last)]


@contextmanager
def undisturbed(net: nn.Module) -> Iterator[None]:
    """A frozen view inside: evaluation mode, no parameter asks for gradients.

    Modes, flags, `.grad` and the state of every random number generator are as before afterwards.
    """
    import random

    import numpy as np

    modes = [(module, module.training) for module in net.modules()]
    flags = [(p, p.requires_grad, p.grad) for p in net.parameters()]
    numpy_state, python_state = np.random.get_state(), random.getstate()
    devices = sorted({p.device.index or 0 for p in net.parameters() if p.device.type == "cuda"})
    try:
        with torch.random.fork_rng(devices):
            net.eval()
            net.requires_grad_(False)
            yield
    finally:
        np.random.set_state(numpy_state)
        random.setstate(python_state)
        for module, training in modes:
            module.training = training
        for parameter, requires_grad, grad in flags:
            parameter.requires_grad_(requires_grad)
            parameter.grad = grad
