"""What training and replay share: the events outside the steps, evaluation, rows, and what a signal undoes."""

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from plastiscope.event import Callback, Context, Numbers, undisturbed
from plastiscope.run.generators import generator_states, load_generator_states
from plastiscope.run.journal import Journal
from plastiscope.run.keeper import Keeper
from plastiscope.run.signals import Preempted
from plastiscope.task_shift_mode.task import Task, evaluate


@dataclass(kw_only=True)
class Callbacks:
    """Who looks at one run, and what they see."""

    context: Context
    callbacks: list[Callback]

    def callback_states(self) -> dict[str, Any]:
        """State of each callback, by name."""
        return {callback.name: callback.state_dict() for callback in self.callbacks}

    def load_callbacks(self, states: dict[str, Any]) -> None:
        """Take back what `callback_states` gave."""
        for callback in self.callbacks:
            callback.load_state_dict(states[callback.name])


@dataclass(kw_only=True)
class Events(Callbacks):
    """The events of one run, its evaluation and its rows.

    Attributes:
        journal: into which they go.
    """

    journal: Journal
    _entry: dict[str, Any] | None = None
    """Callback and generator states as `looking` was entered, while inside it."""

    def fire(self, event: str) -> Numbers:
        """Fire an event outside the step; returns all numbers and notes each callback's seconds."""
        numbers: Numbers = {}
        for callback in self.callbacks:
            if getattr(type(callback), event) is not getattr(Callback, event):
                began = time.perf_counter()
                numbers |= getattr(callback, event)(self.context) or {}
                self.journal.time(f"{callback.name}/runtime_sec", time.perf_counter() - began)
                for key, seconds in callback.take_seconds().items():
                    self.journal.time(key, seconds)
        return numbers

    def begin_run(self) -> None:
        """Fire on_run_begin; its numbers get a row of their own, which ends no task: task -1 at a run's start."""
        with self.looking():
            numbers = self.fire("on_run_begin")
        if numbers:
            done = self.context.epochs_completed
            place = {"kind": "run_begin", "global_epoch": done - 1, "task_idx": done // self.context.epochs - 1}
            self.journal.log({**place, **numbers})

    @contextmanager
    def looking(self) -> Iterator[None]:
        """Around evaluation and analyses: they change nothing, and a signal ends them at once."""
        self._entry = {"callbacks": self.callback_states(), "generators": generator_states()}
        with undisturbed(self.context.net), self.journal.stop.heard_at_once():
            yield
        self._entry = None

    def take_back(self) -> None:
        """Undo what a callback that was interrupted had done to its own state."""
        if self._entry is not None:
            self.load_callbacks(self._entry["callbacks"])
            load_generator_states(self._entry["generators"])
            self._entry = None

    def evaluate(self, task: Task) -> Numbers:
        """Loss and accuracy on the task's test samples and, if there are any, validation samples."""
        numbers: Numbers = {}
        for split, samples in (("validation", task.validation), ("test", task.test)):
            if samples is not None and len(samples):
                began = time.perf_counter()
                scores = evaluate(self.context.net, task, samples, self.context.epochs_completed)
                numbers |= {f"{split}_loss": scores.loss, **named(f"{split}_accuracy", scores.accuracy)}
                self.journal.time(f"{split}_evaluation_runtime", time.perf_counter() - began)
        return numbers

    def place(self, kind: str) -> dict[str, Any]:
        """Where a row stands: its kind, its step (docs/architecture.md, "Clock") and its task."""
        context = self.context
        return {"kind": kind, "global_epoch": context.epochs_completed - 1, "task_idx": context.task_idx}


@dataclass(kw_only=True)
class Loop(ABC):
    """A loop over tasks that fires events.

    Attributes:
        keeper: of its state.
    """

    keeper: Keeper

    def run(self) -> None:
        """Go on to the end; a signal saves the state and goes to whoever handled it before."""
        while True:
            try:
                return self._run()
            except Preempted:
                for events in self.watched():
                    events.take_back()
                self._checkpoint()
                self.keeper.preempted()
                if any(events.context.processes.missing for events in self.watched()):
                    raise  # the signal is our own: a launcher would requeue a job that loses a process each time
                self.keeper.stop.pass_on()

    @abstractmethod
    def watched(self) -> Sequence[Events]:
        """The runs that it goes through."""

    @property
    @abstractmethod
    def progress(self) -> tuple[int, int]:
        """Epochs that are done, and all of them."""

    @abstractmethod
    def where(self) -> str:
        """The place at which the loop goes on, for people."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """All of the state: tensors, numbers, strings and containers."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""

    def take_up(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self.load_state_dict(state)

    @abstractmethod
    def _run(self) -> None:
        """Go on from where the state is to the end."""

    @abstractmethod
    def _checkpoint(self) -> None:
        """Save the state."""


def is_evaluated(epoch: int, epochs: int, eval_every: int) -> bool:
    """Whether accuracies are measured after epoch `epoch` (from 0) of a task of so many epochs."""
    return (epoch + 1) % eval_every == 0 or epoch + 1 == epochs


def named(key: str, value: float | None) -> Numbers:
    """A number under its name; nothing of None."""
    return {} if value is None else {key: value}
