"""A walk over saved weights, as each of several processes makes it: tasks, clock, weights, and shared work."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

from plastiscope.event import undisturbed
from plastiscope.formats.checkpoints import CheckpointFolder, fit
from plastiscope.learner.learner import Learner
from plastiscope.loop import Callbacks
from plastiscope.run.processes import Processes
from plastiscope.run.snapshots import digest


class Share(Enum):
    """What several processes share out."""

    samples = "samples"
    """The samples of each checkpoint."""
    checkpoints = "checkpoints"
    """The checkpoints; each is scored by one process, then all are walked."""


def own_task(epochs_completed: int, epochs: int) -> int:
    """The task to which weights after so many epochs of the run belong; those after none belong to the first."""
    return max(epochs_completed - 1, 0) // epochs


@dataclass(frozen=True)
class Stop:
    """A point of the walk: `event` (begin, epoch, end) of task `task` after `epochs_completed` epochs."""

    event: str
    epochs_completed: int
    task: int


def stops(walked: Sequence[int], epochs: int) -> list[Stop]:
    """The walk over checkpoints after `walked` epochs, ascending."""
    found: list[Stop] = []
    for e in walked:
        k = own_task(e, epochs)
        if not found or found[-1].task != k:
            found.append(Stop("begin", k * epochs, k))
        if e > 0:
            found.append(Stop("epoch", e, k))
            if e == (k + 1) * epochs:
                found.append(Stop("end", e, k))
    return found


@dataclass(kw_only=True)
class Walk(Callbacks):
    """Goes from stop to stop.

    Attributes:
        learner: owns the network; it begins tasks, and never steps.
        checkpoints: the saved weights.
        share: what several processes share out.
        position: stops that are behind us.
    """

    learner: Learner
    checkpoints: CheckpointFolder
    share: Share = Share.samples
    position: int = 0
    _loaded: int | None = None
    """Epochs completed of the weights in the network."""

    @property
    def walk(self) -> list[Stop]:
        """All stops."""
        assert self.context.checkpoints is not None
        return stops(self.context.checkpoints, self.context.epochs)

    def follow(self) -> None:
        """The processes beside the first: the same walk, and only what is shared out."""
        self._go_ahead(nullcontext())
        for stop in self.walk[self.position :]:
            self._go_to(stop)
            self._fire_shared(stop)

    def _go_to(self, stop: Stop) -> None:
        """Task, clock, weights and step size of a stop."""
        context, learner = self.context, self.learner
        if context.task is None or context.task.index != stop.task:
            context.task = context.shift.task(stop.task)
            learner.take_up(context.task)
        context.epochs_completed = stop.epochs_completed
        if stop.event != "begin":
            context.epoch = (stop.epochs_completed - 1) % context.epochs
            learner.begin_epoch(context.epoch, context.epochs)
            self._load(stop.epochs_completed)
            return
        context.epoch = 0
        if stop.task > 0:
            learner.begin_epoch(context.epochs - 1, context.epochs)  # the step size that the task before left
        if self._is_there(stop):
            self._load(stop.epochs_completed)
            learner.begin_task(context.current_task)
            self._loaded = None

    def _is_there(self, stop: Stop) -> bool:
        return stop.epochs_completed in self.checkpoints.epochs()

    def _load(self, epochs_completed: int) -> None:
        """Weights of a checkpoint into the network; the same ones are not read twice."""
        if self._loaded == epochs_completed:
            return
        state = self.checkpoints.load(epochs_completed)
        fit(self.context.net, state, self.checkpoints.path(epochs_completed))
        self._loaded = epochs_completed
        self.context.weights_digest = digest(state)

    def _fire_shared(self, stop: Stop) -> None:
        """The events of a stop in which work is shared out, outside the first process."""
        event = {"begin": "on_task_begin", "epoch": "on_epoch_end", "end": "on_task_end"}[stop.event]
        if stop.event == "begin" and not self._is_there(stop):
            return
        with undisturbed(self.context.net):
            for callback in self.callbacks:
                if event in callback.shared_events:
                    getattr(callback, event)(self.context)

    def _go_ahead(self, hearing: AbstractContextManager[None]) -> None:
        """Share the checkpoints out: score every world-th one alone, and leave the parts for the walk.

        Args:
            hearing: around what may be left at once for a signal.
        """
        together = self.context.processes
        if self.share is Share.samples or together.world == 1:
            return
        together = replace(together, works_apart=True)
        before = self.callback_states()
        self.context.processes = replace(together, is_ahead=True)
        try:
            with hearing:
                self._score_ahead(together)
        finally:
            self.context.processes, self.context.task, self._loaded = together, None, None
            self.load_callbacks(before)
        together.barrier()

    def _score_ahead(self, together: Processes) -> None:
        """This process's checkpoints, all of their work that is shared out."""
        ahead = self.walk[self.position :]
        for epochs_completed in sorted({stop.epochs_completed for stop in ahead})[together.rank :: together.world]:
            for stop in ahead:
                if stop.epochs_completed == epochs_completed:
                    self._go_to(stop)
                    self._fire_shared(stop)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what the first process has saved."""
        self.position = state["position"]
        self.load_callbacks(state["callbacks"])
