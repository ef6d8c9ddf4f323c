"""The training loop. event.py shows the same loop with every event in its place.

    snapshot of the initialisation
    for task in tasks:
        learner.begin_task(task)                       new head, reset
        for epoch in epochs:
            for batch in task.train, in a random order (or as the samples say): learner.step(batch)
            stop at a loss that is not finite
            validation and test accuracy, one row in metrics.jsonl
            checkpoint, if the last one is old enough
        selection of weights, snapshot, analyses, one row in metrics.jsonl
        checkpoint

Nothing in the step waits for the device: losses and hits go into buffers that are read at the epoch's end. After each
step the loop asks whether a signal came; then it saves itself and stops. The position (task, epoch, batch), the
buffers, the weights, the learner, the callbacks and the global random number generators are the whole state: a run
that goes on from a checkpoint equals one that was never stopped, bit for bit.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from plastiscope.data.samples import Samples
from plastiscope.error import RunError
from plastiscope.event import Context, EpochRecord, Numbers, listeners
from plastiscope.learner.learner import Learner
from plastiscope.loop import Loop, is_evaluated, named
from plastiscope.measure.evaluation import Scores
from plastiscope.measure.keyed import named_seed
from plastiscope.measure.loss import Loss, correct
from plastiscope.run.generators import generator_states, load_generator_states
from plastiscope.run.signals import Preempted
from plastiscope.selection import BestWeights
from plastiscope.task_shift_mode.task import Task

TASK_LAST = ("epoch_loss", "epoch_accuracy")


@dataclass
class Position:
    """Where the run is: `batch` batches of epoch `epoch` of task `task` are done; epoch = epochs: analyses are next.

    `begun`: the learner has begun the task.
    """

    task: int = 0
    epoch: int = 0
    batch: int = 0
    begun: bool = False


@dataclass(kw_only=True)
class Trainer(Loop):
    """The state of a run, and the loop over it.

    Attributes:
        learner: owns the network.
        best: weights of the task, by the run's selection.
        batch_size, eval_every, verbose: settings of the same names.
        position: where the run is.
        record: of the epoch that is under way.
        last_row: the newest epoch's numbers.
        task_begin_row: numbers measured as the task began, for the task's row; None before that.
        begun: on_run_begin has been fired.
    """

    learner: Learner
    best: BestWeights
    batch_size: int
    eval_every: int = 1
    verbose: bool = False
    position: Position = field(default_factory=Position)
    record: EpochRecord | None = None
    last_row: Numbers = field(default_factory=dict)
    task_begin_row: Numbers | None = None
    begun: bool = False

    @property
    def progress(self) -> tuple[int, int]:
        """Epochs that are done, and all of them."""
        epochs = self.context.epochs
        return self.position.task * epochs + self.position.epoch, self.context.num_tasks * epochs

    def where(self) -> str:
        """The place at which the run goes on, for people."""
        return f"task {self.position.task}, epoch {self.position.epoch}, batch {self.position.batch}"

    def _run(self) -> None:
        context = self.context
        self._listen()
        if not self.begun:
            self.journal.snapshot(0, self.learner.net.state_dict())
            with self._looking():
                self._fire("on_run_begin")
            self.begun = True
        while self.position.task < context.num_tasks:
            task = context.task = context.shift.task(self.position.task)
            self._begin_task(task)
            while self.position.epoch < context.epochs:
                self._train_epoch(task)
                self._end_epoch(task)
            self._end_task(task)
        with self._looking():
            self._fire("on_run_end")

    def _begin_task(self, task: Task) -> None:
        """New head or reset, and the look before training; on the way back from a checkpoint only what is missing."""
        at, context = self.position, self.context
        self.learner.take_up(task)
        if not at.begun:
            self.learner.begin_task(task)
            self.best.forget()
            at.begun = True
        if self.task_begin_row is None:
            context.epoch, context.epochs_completed = 0, at.task * context.epochs
            with self._looking():
                self.task_begin_row = self._fire("on_task_begin")

    def _train_epoch(self, task: Task) -> None:
        """The steps of one epoch, from the batch at which we are."""
        at, context, learner, stop = self.position, self.context, self.learner, self.journal.stop
        device, size, n, first = task.train.rows.device, self.batch_size, len(task.train), at.batch
        order = presentation_order(task.train, context.seed, at.task, at.epoch)
        record = self.record = self.record or EpochRecord.empty(n, device)
        context.order, context.record = order, record
        context.epoch, context.num_batches = at.epoch, -(-n // size)
        context.epochs_completed = at.task * context.epochs + at.epoch
        learner.net.train()
        learner.begin_epoch(at.epoch)
        if first == 0:
            self._fire("on_epoch_begin")
        began = time.perf_counter()
        batches = task.train.batches(size, order, context.epochs_completed, first)
        places = zip(record.losses.split(size)[first:], record.correct.split(size)[first:], strict=True)
        for batch, (losses_place, correct_place) in zip(batches, places, strict=True):
            context.batch_index = at.batch
            losses, outputs = learner.step(batch)
            losses_place.copy_(losses)
            if (hits := correct(task.loss, outputs, batch.targets)) is not None:
                correct_place.copy_(hits)
            at.batch += 1
            if self._on_batch_end:
                context.batch, context.losses, context.logits = batch, losses, outputs
                for callback in self._on_batch_end:
                    callback(context)
            if self.verbose and at.batch % 25 == 0:
                self._say_accuracy(record)
            if stop.received is not None:
                raise Preempted(stop.received)
        self.journal.time("epoch_runtime", time.perf_counter() - began)

    def _end_epoch(self, task: Task) -> None:
        """Accuracies, the epoch's row, selection, checkpoint."""
        at, context, record = self.position, self.context, self.record
        assert record is not None
        self._check_finite()
        seen = Scores(record.losses, None if task.loss is Loss.mse else record.correct)
        row = {"epoch_loss": seen.loss, **named("epoch_accuracy", seen.accuracy)}
        context.epochs_completed = at.task * context.epochs + at.epoch + 1
        with self._looking():
            if is_evaluated(at.epoch, context.epochs, self.eval_every):
                row |= self._evaluate(task)
            context.epoch_row = row
            row |= self._fire("on_epoch_end")
        self.last_row = row
        self.journal.log({**self._place("epoch"), "epoch": at.epoch, **row})
        self.best.offer(row, self.learner.net)
        at.epoch, at.batch, self.record = at.epoch + 1, 0, None
        self.journal.snapshot_within_task(context.epochs_completed, context.epochs, self.learner.net.state_dict)
        if self.journal.checkpoint_is_due():
            self._checkpoint()

    def _end_task(self, task: Task) -> None:
        """Selected weights, snapshot, analyses, the task's row, checkpoint."""
        at, context, learner = self.position, self.context, self.learner
        context.epoch, context.epochs_completed = context.epochs - 1, (at.task + 1) * context.epochs
        self.best.restore(learner.net)
        self.journal.snapshot(context.epochs_completed, learner.net.state_dict())
        context.epoch_row = self.last_row
        row = {f"task_last_{key}": value for key, value in self.last_row.items() if key in TASK_LAST}
        with self._looking():
            row |= {f"task_{key}": value for key, value in self._evaluate(task).items()}
            row |= {f"learner/{key}": value for key, value in learner.numbers().items()}
            row |= task.numbers | (self.task_begin_row or {}) | self._fire("on_task_end")
        learner.end_task()
        self.journal.log({**self._place("task_end"), **row})
        self.position, self.task_begin_row = Position(task=at.task + 1), None
        self._checkpoint()

    def _check_finite(self) -> None:
        """Stop before anything is saved if a loss, a weight or what the learner keeps is not finite."""
        at, record = self.position, self.record
        if record is None:
            return
        bad = (~torch.isfinite(record.losses[: at.batch * self.batch_size])).nonzero()
        norms = torch.stack(torch._foreach_norm(list(self.learner.net.parameters())))
        own = [name for name, tensor in self.learner.must_be_finite().items() if not torch.isfinite(tensor).all()]
        if len(bad) == 0 and torch.isfinite(norms).all() and not own:
            return
        batch = at.batch - 1 if len(bad) == 0 else int(bad[0]) // self.batch_size
        what = "loss" if len(bad) else "weights" if not torch.isfinite(norms).all() else own[0]
        raise RunError(
            f"the {what} became NaN or infinite at step {batch} of epoch {at.epoch} of task {at.task} (all from 0); "
            "nothing after it was saved. Lower learner.lr or set learner.clip_norm"
        )

    def _listen(self) -> None:
        """Connect the callbacks to the events inside a step; what nobody listens to costs nothing."""
        context, learner = self.context, self.learner
        self._on_batch_end = listeners(self.callbacks, "on_batch_end")
        learner.on_backward = _call_all(listeners(self.callbacks, "on_backward"), context)
        learner.on_update = _call_all(listeners(self.callbacks, "on_update"), context)

    def _checkpoint(self) -> None:
        self._check_finite()
        at = self.position
        self.journal.checkpoint(self.state_dict(), at.task * self.context.epochs + at.epoch)

    def _say_accuracy(self, record: EpochRecord) -> None:
        at, size = self.position, self.batch_size
        share = record.correct[(at.batch - 25) * size : at.batch * size].double().mean().item()
        self.journal.say(f"task {at.task} epoch {at.epoch} batch {at.batch}: train accuracy {share:.4f}")

    def state_dict(self) -> dict[str, Any]:
        """All of the run's state: tensors, numbers, strings and containers."""
        return {
            "position": vars(self.position).copy(),
            "net": self.learner.net.state_dict(),
            "learner": self.learner.state_dict(),
            "record": None if self.record is None else vars(self.record).copy(),
            "best": self.best.state_dict(),
            "last_row": self.last_row,
            "task_begin_row": self.task_begin_row,
            "begun": self.begun,
            "callbacks": self._callback_states(),
            "generators": generator_states(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        device = next(self.learner.net.parameters()).device
        self.position = Position(**state["position"])
        self.learner.net.load_state_dict(state["net"])
        self.learner.load_state_dict(state["learner"])
        if state["record"] is not None:
            self.record = EpochRecord(**{key: tensor.to(device) for key, tensor in state["record"].items()})
        self.best.load_state_dict(state["best"], device)
        self.begun = state["begun"]
        self.last_row, self.task_begin_row = state["last_row"], state["task_begin_row"]
        self._load_callbacks(state["callbacks"])
        load_generator_states(state["generators"])


def epoch_order(seed: int, task: int, epoch: int, n: int) -> Tensor:
    """The random order of presentation, int64 [n] on the CPU: a pure function, so any epoch's order can be rebuilt."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(named_seed(seed, "order", task, epoch)))


def presentation_order(samples: Samples, seed: int, task: int, epoch: int) -> Tensor:
    """Positions in `samples` in the order of presentation in an epoch: their fixed order, or a random one."""
    fixed = samples.fixed_order()
    return epoch_order(seed, task, epoch, len(samples)).to(samples.rows.device) if fixed is None else fixed


def _call_all(callbacks: list[Callable[[Context], Any]], context: Context) -> Callable[[], None] | None:
    if not callbacks:
        return None

    def call() -> None:
        for callback in callbacks:
            callback(context)

    return call
