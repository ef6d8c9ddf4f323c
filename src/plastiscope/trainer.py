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

The loop is over one run, or over several that advance together (replicas.py): one step updates them all, everything
outside the steps is done for one after the other.

Nothing in the step waits for the device: losses and hits go into buffers that are read at the epoch's end. Batches are
gathered many at a time; steps to which nobody listens are handed to the learner as one block. After each step, or such
a block, the loop asks whether a signal came; then it saves itself and stops. The position (task, epoch, batch, runs
served), the buffers, the weights, the learner, the callbacks and the global random number generators are the whole
state: a run that goes on from a checkpoint equals one that was never stopped, bit for bit.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from plastiscope.data.samples import Batch
from plastiscope.error import RunError
from plastiscope.event import Context, EpochRecord
from plastiscope.learner.learner import Learner
from plastiscope.learner.training_forward import Precision, products_in
from plastiscope.listening import Listening
from plastiscope.loop import Events, Loop, is_evaluated, named
from plastiscope.measure.evaluation import Scores
from plastiscope.measure.loss import Loss, correct
from plastiscope.presentation import blocks_of_epoch, presentation_order
from plastiscope.run.generators import generator_states, load_generator_states
from plastiscope.run.signals import Preempted
from plastiscope.task_shift_mode.task import Task, check_alike
from plastiscope.trained_run import TrainedRun

TASK_LAST = ("epoch_loss", "epoch_accuracy")


@dataclass
class Position:
    """Where the loop is: `batch` batches of epoch `epoch` of task `task` are done; epoch = epochs: analyses are next.

    `begun`: the learner has begun the task. `served`: so many runs have had the event under way.
    """

    task: int = 0
    epoch: int = 0
    batch: int = 0
    begun: bool = False
    served: int = 0


@dataclass(kw_only=True)
class Trainer(Loop):
    """The state of the loop, and the loop.

    Attributes:
        learner: owns the network, or the stacked networks of several runs.
        runs: those that it trains, in the order of the stack.
        batch_size, eval_every, verbose, precision: settings of the same names.
        position: where the loop is.
        record: of the epoch that is under way.
        begun: on_run_begin has been fired.
    """

    learner: Learner
    runs: list[TrainedRun]
    batch_size: int
    eval_every: int = 1
    verbose: bool = False
    precision: Precision = Precision.float32
    position: Position = field(default_factory=Position)
    record: EpochRecord | None = None
    begun: bool = False

    def __post_init__(self) -> None:
        """Connect the callbacks to the steps."""
        self._listening = Listening(self.learner, self.runs)

    def watched(self) -> Sequence[Events]:
        """The runs."""
        return self.runs

    @property
    def context(self) -> Context:
        """Of the first run; the others have the same tasks, epochs and clock."""
        return self.runs[0].context

    @property
    def progress(self) -> tuple[int, int]:
        """Epochs that are done, and all of them."""
        epochs = self.context.epochs
        return self.position.task * epochs + self.position.epoch, self.context.num_tasks * epochs

    def where(self) -> str:
        """The place at which the loop goes on, for people."""
        return f"task {self.position.task}, epoch {self.position.epoch}, batch {self.position.batch}"

    def _run(self) -> None:
        if not self.begun:
            start = self.position.task * self.context.epochs  # 0, but of a branch that goes on with another run's tasks
            for run in self._each():
                run.context.epochs_completed = start
                run.journal.snapshot(start, run.net.state_dict())
                run.begin_run()
            self.begun = True
        while self.position.task < self.context.num_tasks:
            self._begin_task(tasks := self._tasks(self.position.task))
            while self.position.epoch < self.context.epochs:
                self._train_epoch(tasks)
                self._end_epoch(tasks)
            self._end_task(tasks)
        for run in self._each():
            with run.looking():
                run.fire("on_run_end")

    def _each(self) -> Iterator[TrainedRun]:
        """The runs that go on, each once: one that a signal interrupts is taken up again, those before it are not."""
        at = self.position
        while at.served < len(self.runs):
            if not self.runs[at.served].failure:
                yield self.runs[at.served]
            at.served += 1
        at.served = 0

    def _tasks(self, k: int) -> list[Task]:
        """Task k of each run."""
        for run in self.runs:
            run.context.task = run.context.shift.task(k)
        tasks = [run.context.current_task for run in self.runs]
        check_alike(tasks)
        return tasks

    def _begin_task(self, tasks: Sequence[Task]) -> None:
        """New head or reset, and the look before training; on the way back from a checkpoint only what is missing."""
        at, learner = self.position, self.learner
        learner.take_up(tasks[0])
        if not at.begun:
            learner.begin_task(tasks[0])
            for run in self.runs:
                run.best.forget()
            at.begun = True
        for run in self.runs:
            if run.task_begin_row is None and not run.failure:
                run.context.epoch, run.context.epochs_completed = 0, at.task * run.context.epochs
                with run.looking():
                    run.task_begin_row = run.fire("on_task_begin")

    def _train_epoch(self, tasks: Sequence[Task]) -> None:
        """The steps of one epoch, from the batch at which we are."""
        at, stop, loss, size = self.position, self.keeper.stop, tasks[0].loss, self.batch_size
        orders, record = self._begin_epoch(tasks)
        began = time.perf_counter()
        for block in self._blocks(tasks, orders):
            with products_in(self.precision):
                losses, outputs = self._steps(block)
            hits = correct(loss, outputs, block.targets[: len(losses)])
            record.write((at.batch - len(losses)) * size, losses, hits)
            if self.verbose:
                self._say_accuracy(record, len(losses))
            if stop.received is not None:
                raise Preempted(stop.received)
        for run in self.runs:
            run.journal.time("epoch_runtime", time.perf_counter() - began)

    def _begin_epoch(self, tasks: Sequence[Task]) -> tuple[list[Tensor], EpochRecord]:
        """Order of presentation of each run, record, clock and step size of the epoch."""
        at, learner, n = self.position, self.learner, len(tasks[0].train)
        lead = (len(self.runs),) * learner.lead
        record = self.record = self.record or EpochRecord.empty(n, tasks[0].train.rows.device, lead)
        learner.net.train()
        learner.begin_epoch(at.epoch, self.context.epochs)
        for run, task in zip(self.runs, tasks, strict=True):
            context = run.context
            context.order = presentation_order(task.train, context.seed, at.task, at.epoch)
            context.record = record.of(run.index) if lead else record
            context.epoch, context.num_batches = at.epoch, -(-n // self.batch_size)
            context.epochs_completed = at.task * context.epochs + at.epoch
            if at.batch == 0 and not run.failure:
                run.fire("on_epoch_begin")
        return [run.context.order for run in self.runs if run.context.order is not None], record

    def _blocks(self, tasks: Sequence[Task], orders: Sequence[Tensor]) -> Iterator[Batch]:
        """The batches of the epoch that are left."""
        done, size, at = self.context.epochs_completed, self.batch_size, self.position
        return blocks_of_epoch(tasks, orders, size, done, self.learner.lead, at.batch)

    def _steps(self, block: Batch) -> tuple[Tensor, Tensor]:
        """Make the steps of a block, or as many as come before a signal; losses and outputs [steps, ...]."""
        at, stop = self.position, self.keeper.stop
        is_last = at.batch + len(block.targets) == self.context.num_batches
        made = self._listening.make_steps(block, at.batch, is_last, lambda: stop.received is not None)
        at.batch += len(made[0])
        return made

    def _end_epoch(self, tasks: Sequence[Task]) -> None:
        """Accuracies, the epoch's row, selection, checkpoint."""
        at = self.position
        self._check_finite()
        for run in self._each():
            task, context, record = tasks[run.index], run.context, run.context.record
            assert record is not None
            seen = Scores(record.losses, None if task.loss is Loss.mse else record.correct)
            row = {"epoch_loss": seen.loss, **named("epoch_accuracy", seen.accuracy)}
            context.epochs_completed = at.task * context.epochs + at.epoch + 1
            with run.looking():
                if is_evaluated(at.epoch, context.epochs, self.eval_every):
                    row |= run.evaluate(task)
                context.epoch_row = row
                row |= run.fire("on_epoch_end")
            run.last_row = row
            run.journal.log({**run.place("epoch"), "epoch": at.epoch, **row})
            run.best.offer(row, run.net)
            run.journal.snapshot_within_task(context.epochs_completed, context.epochs, run.net.state_dict)
        going = [run for run in self.runs if not run.failure]
        self.keeper.epoch_done([{**run.place("epoch"), "epoch": at.epoch, **run.last_row} for run in going])
        at.epoch, at.batch, self.record = at.epoch + 1, 0, None
        if self.keeper.is_due():
            self._checkpoint()

    def _end_task(self, tasks: Sequence[Task]) -> None:
        """Selected weights, snapshot, analyses, the task's row, checkpoint."""
        at, learner = self.position, self.learner
        for run in self._each():
            task, context = tasks[run.index], run.context
            context.epoch, context.epochs_completed = context.epochs - 1, (at.task + 1) * context.epochs
            run.best.restore(run.net)
            run.journal.snapshot(context.epochs_completed, run.net.state_dict())
            context.epoch_row = run.last_row
            row = {f"task_last_{key}": value for key, value in run.last_row.items() if key in TASK_LAST}
            with run.looking():
                row |= {f"task_{key}": value for key, value in run.evaluate(task).items()}
                row |= {f"learner/{key}": value for key, value in learner.numbers_of(run.index).items()}
                row |= task.numbers | (run.task_begin_row or {}) | run.fire("on_task_end")
            run.journal.log({**run.place("task_end"), **row})
        learner.end_task()
        for run in self.runs:
            run.task_begin_row = None
        self.position = Position(task=at.task + 1)
        self._checkpoint()

    def _check_finite(self) -> None:
        """Before anything is saved: a run whose loss, weights or learner's state are not finite goes no further.

        Raises:
            RunError: it is the only one that is left.
        """
        if self.record is None:
            return
        for run in self.runs:
            if not run.failure and (what := self._not_finite(run)):
                run.failure = what
                if all(other.failure for other in self.runs):
                    raise RunError(what)
                run.journal.fail(what)
                self.keeper.say(f"{run.journal.folder}: {what}. The other runs go on")

    def _not_finite(self, run: TrainedRun) -> str:
        """What became NaN or infinite, and when; empty if nothing did."""
        at, record, several = self.position, run.context.record, self.learner.lead > 0
        assert record is not None
        bad = (~torch.isfinite(record.losses[: at.batch * self.batch_size])).nonzero()
        norms = torch.stack(torch._foreach_norm(list(run.net.parameters())))
        kept = {key: value[run.index] if several else value for key, value in self.learner.must_be_finite().items()}
        own = [name for name, tensor in kept.items() if not torch.isfinite(tensor).all()]
        if len(bad) == 0 and torch.isfinite(norms).all() and not own:
            return ""
        batch = at.batch - 1 if len(bad) == 0 else int(bad[0]) // self.batch_size
        what = "loss" if len(bad) else "weights" if not torch.isfinite(norms).all() else own[0]
        return (
            f"the {what} became NaN or infinite at step {batch} of epoch {at.epoch} of task {at.task} (all from 0); "
            "nothing after it was saved. Lower learner.lr or set learner.clip_norm"
        )

    def _checkpoint(self) -> None:
        self._check_finite()
        at = self.position
        self.keeper.save(self.state_dict(), at.task * self.context.epochs + at.epoch)

    def _say_accuracy(self, record: EpochRecord, steps: int) -> None:
        """Train accuracy of the last 25 batches, if some of the newest steps complete them."""
        at, size = self.position, self.batch_size
        for batch in range(at.batch - steps + 1, at.batch + 1):
            if batch % 25 == 0:
                share = record.correct[..., (batch - 25) * size : batch * size].double().mean().item()
                self.keeper.say(f"task {at.task} epoch {at.epoch} batch {batch}: train accuracy {share:.4f}")

    def state_dict(self) -> dict[str, Any]:
        """All of the loop's state: tensors, numbers, strings and containers."""
        return {
            "position": vars(self.position).copy(),
            "net": self.learner.net.state_dict(),
            "learner": self.learner.state_dict(),
            "record": None if self.record is None else vars(self.record).copy(),
            "begun": self.begun,
            "runs": [run.state_dict() for run in self.runs],
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
        self.begun = state["begun"]
        for run, own in zip(self.runs, state["runs"], strict=True):
            run.load_state_dict(own, device)
        load_generator_states(state["generators"])
