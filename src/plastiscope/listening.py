"""Who listens inside a step: the callbacks of all runs, connected to the one learner; nobody costs nothing."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from plastiscope.data.samples import Batch
from plastiscope.event import Context, listeners
from plastiscope.learner.learner import Learner
from plastiscope.trained_run import TrainedRun

Heard = list[tuple[TrainedRun, list[Callable[[Context], Any]]]]
"""Runs with the callbacks that hear an event."""


class Listening:
    """The callbacks that hear the steps of a learner.

    Where several runs advance together, each callback is shown its own run: gradients, batch, losses and outputs.
    """

    def __init__(self, learner: Learner, runs: Sequence[TrainedRun]) -> None:
        """Nobody listens yet."""
        self.learner, self.runs = learner, runs
        self._any: list[TrainedRun] = []
        self._batch_end: Heard = []

    def make_steps(self, block: Batch, first: int, is_last: bool, stopped: Callable[[], bool]) -> tuple[Tensor, Tensor]:
        """Make the steps of a block, as one where nobody listens; or as many as come before it is to stop.

        Args:
            block: batches [steps, *lead, b, ...]; the epoch's last one is by itself.
            first: index of the first of them in the epoch.
            is_last: it is the epoch's last one.
            stopped: asked after each step that is made by itself.

        Returns:
            Losses [steps, *lead, b] and outputs [steps, *lead, b, k] of the steps that were made.
        """
        is_heard = self.connect(is_last)
        if self.learner.works_in_blocks and not is_heard:
            return self.learner.step_block(block)
        losses, outputs = [], []
        for batch_index, batch in enumerate(block.steps(), first):
            self.begin_step(batch_index)
            loss, output = self.learner.step(batch)
            losses.append(loss)
            outputs.append(output)
            self.end_step(batch, loss, output)
            if stopped():
                break
        return torch.stack(losses), torch.stack(outputs)

    def connect(self, is_last: bool) -> bool:
        """Connect those that hear the epoch's last step, or another one; whether there are any."""
        heard: dict[str, Heard] = {
            event: [(run, found) for run in self.runs if (found := listeners(run.callbacks, event, is_last))]
            for event in ("on_backward", "on_update", "on_batch_end")
        }
        self.learner.on_backward = self._call_all(heard["on_backward"])
        self.learner.on_update = self._call_all(heard["on_update"])
        self._batch_end = heard["on_batch_end"]
        self._any = [run for some in heard.values() for run, _ in some]
        return bool(self._any)

    def _call_all(self, heard: Heard) -> Callable[[], None] | None:
        def call() -> None:
            for run, callbacks in heard:
                if not run.failure:
                    self._show_gradients(run)
                    for callback in callbacks:
                        callback(run.context)

        return call if heard else None

    def _show_gradients(self, run: TrainedRun) -> None:
        """Let the network of one of several runs have its gradients."""
        if self.learner.lead:
            stacked = dict(self.learner.net.named_parameters())
            for name, parameter in run.net.named_parameters():
                gradient = stacked[name].grad
                parameter.grad = None if gradient is None else gradient[run.index]

    def begin_step(self, batch_index: int) -> None:
        """The place of the step that comes, for those who listen."""
        for run in self._any:
            run.context.batch_index = batch_index

    def end_step(self, batch: Batch, losses: Tensor, outputs: Tensor) -> None:
        """on_batch_end of each run."""
        for run, callbacks in self._batch_end:
            if run.failure:
                continue
            context = run.context
            context.batch, context.losses, context.logits = batch, losses, outputs
            if self.learner.lead:
                context.batch = _of_run(batch, run.index)
                context.losses, context.logits = losses[run.index], outputs[run.index]
            for callback in callbacks:
                callback(context)


def _of_run(batch: Batch, index: int) -> Batch:
    return batch.each(lambda tensor: tensor[index])
