"""The second, short loop: saved weights are looked at, nothing is trained.

event.py shows the events; here they fire like this:

    weights of the first checkpoint
    on_run_begin                        numbers of it: one row of the initialisation, where it is there
    for each checkpoint, ascending in epochs completed:
        a new task?  weights of its beginning, if they are there: the end of the task before, learner.begin_task(task)
                     on_task_begin
        epoch > 0?   weights of the checkpoint, validation and test accuracy
                     on_epoch_end, one row in metrics.jsonl
        a task's end?
                     on_task_end, one row
        checkpoint of the walk
    on_run_end

The step size, the evaluation, the clock and the names of the rows are those of the trainer, so the numbers of a run's
own weights are its own, bit for bit. Where the run selected its weights (selection=val_best) a task's last checkpoint
holds the selected ones, so its epoch row is theirs too, not that of the last step.

Epoch 0 belongs to task 0, epoch e > 0 to task (e - 1) // epochs. Events within an epoch do not fire, and analyses that
need them say so in `needs_training`.

A walk can be extended: when the folder of the weights has more of them later, such as those of a run that has gone on,
the same command goes back to the last task end of the walk and on from there, since what is kept of a task may depend
on which of its weights there are.

Several processes walk together: the first one does everything, the others only what `Callback.shared_events` names, in
which per-sample scores are shared out.
"""

import shutil
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import Any

from plastiscope.error import ConfigError, RunError, require
from plastiscope.event import Callback, Numbers, undisturbed
from plastiscope.formats.checkpoints import CheckpointFolder, Layout, Wanted, find_checkpoints, fit
from plastiscope.learner.learner import Learner
from plastiscope.loop import Events, Loop, is_evaluated
from plastiscope.run.journal import NOTHING
from plastiscope.run.processes import Processes
from plastiscope.run.snapshots import digest


class Share(Enum):
    """What several processes share out."""

    samples = "samples"
    """The samples of each checkpoint."""
    checkpoints = "checkpoints"
    """The checkpoints; each is scored by one process, then all are walked."""


@dataclass(kw_only=True)
class ReplaySettings:
    """Saved weights to look at instead of training, `replay.*`.

    Noisy-label checkpoints do not say which labels they were trained on. Without more, those of the data are scored,
    the clean ones. To score the trained ones, write them into a .npz as y_train beside x_train, x_test and y_test, and
    give it as data=arrays data.file=FILE.npz.
    """

    folder: str | None = None
    """Of checkpoints, of published results, or of a run; null = train."""
    layout: Layout = Layout.auto
    """How the files are named (formats/checkpoints.py); auto = whichever fits."""
    index: int = 0
    """Which experiment, of published incremental results."""
    run: int | None = None
    """Which run, of noisy-label checkpoints; null = the only one."""
    noise: float | None = None
    """Which share of noisy labels, of noisy-label checkpoints; null = the only one."""
    order: str | None = None
    """Which order of presentation, of memorization-ordered checkpoints; null = the only one."""
    start: int | None = None
    """First epochs completed that are looked at; null = all from the beginning."""
    end: int | None = None
    """Last epochs completed that are looked at; null = all to the end."""
    class_order: str | None = None
    """File (.npy) of the classes in their order of presentation; null = class_order/index-<i>.npy beside the files."""
    share: Share = Share.samples
    """What several processes share out: the samples of each checkpoint, or the checkpoints."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        require(self.index >= 0, "index", self.index, "must be 0 or more")
        require(self.start is None or self.start >= 0, "start", self.start, "must be 0 or more, or null")
        in_order = self.end is None or self.end >= (self.start or 0)
        require(in_order, "end", self.end, "must not be before start")

    def open(self) -> CheckpointFolder:
        """The checkpoints that are meant.

        Raises:
            RunError: there are none, or it is not clear which.
        """
        assert self.folder is not None
        wanted = Wanted(index=self.index, run=self.run, noise=self.noise, order=self.order)
        return find_checkpoints(Path(self.folder), self.layout, wanted)

    def walked(self, checkpoints: CheckpointFolder, num_tasks: int, epochs: int) -> tuple[list[int], list[int]]:
        """Epochs completed of the checkpoints to look at, and of those left out because their name says another task.

        Published programs with a task in the name save a task's first weights under the last epoch of the task before.

        Raises:
            RunError: none is left, or they do not fit the schedule of `num_tasks` tasks of `epochs` epochs.
        """
        there = checkpoints.epochs()
        if there[-1] > num_tasks * epochs:
            raise RunError(
                f"{checkpoints.path(there[-1])} is beyond the schedule: {num_tasks} tasks of {epochs} epochs end after "
                f"{num_tasks * epochs}; set num_tasks and epochs as the checkpoints were trained"
            )
        asked = [e for e in there if (self.start or 0) <= e and (self.end is None or e <= self.end)]
        if not asked:
            shown = ", ".join(map(str, there))
            raise RunError(f"no checkpoint is in replay.start .. replay.end; there are those after {shown} epochs")
        odd = [e for e in asked if checkpoints.tasks(e) and own_task(e, epochs) not in checkpoints.tasks(e)]
        wrong = next((e for e in odd if e % epochs), None)
        if wrong is not None or len(odd) == len(asked):
            path = checkpoints.path(odd[0] if wrong is None else wrong)
            raise RunError(
                f"{path} is named after another task than the schedule of {epochs} epochs a task gives it; set epochs "
                "as the checkpoints were trained"
            )
        return [e for e in asked if e not in odd], odd


def own_task(epochs_completed: int, epochs: int) -> int:
    """The task to which weights after so many epochs of the run belong; those after none belong to the first."""
    return max(epochs_completed - 1, 0) // epochs


def refuse_training(callbacks: Sequence[Callback]) -> None:
    """Refuse analyses that saved weights cannot answer.

    Raises:
        ConfigError: names them and why.
    """
    reasons = {callback.name: callback.needs_training() for callback in callbacks}
    if named := [f"{name} {reason}" for name, reason in reasons.items() if reason]:
        raise ConfigError(f"saved weights are looked at and nothing is trained: {'; '.join(named)}")


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


def goes_on(before: Sequence[int], now: Sequence[int], folder: Path) -> bool:
    """Whether a walk over checkpoints after `before` epochs is to go on over further ones, those after `now` epochs.

    Raises:
        RunError: those of before are not the first ones of now; names the `folder` of the walk.
    """
    if list(now[: len(before)]) == list(before):
        return len(now) > len(before)
    odd = min(set(before) ^ set(now))
    what = "is gone" if odd in before else "was not there then"
    raise RunError(
        f"{folder} holds a walk over other checkpoints: the one after {odd} epochs {what}. Write into another folder "
        "(--out, hydra.run.dir), or delete this one"
    )


@dataclass(kw_only=True)
class Replay(Events, Loop):
    """The state of a replay, and the walk.

    Attributes:
        learner: owns the network; it begins tasks, and never steps.
        checkpoints: the saved weights.
        eval_every: as in training.
        share: what several processes share out.
        position: stops that are behind us.
        begun: on_run_begin has been fired.
        last_row: the newest epoch's accuracies.
        task_begin_row: numbers of on_task_begin, for the task's row.
        task_end: state and place in the journal at the last task end; None before the first.
    """

    learner: Learner
    checkpoints: CheckpointFolder
    eval_every: int = 1
    share: Share = Share.samples
    position: int = 0
    begun: bool = False
    last_row: Numbers = field(default_factory=dict)
    task_begin_row: Numbers = field(default_factory=dict)
    task_end: dict[str, Any] | None = None
    _loaded: int | None = None
    """Epochs completed of the weights in the network."""

    @property
    def walk(self) -> list[Stop]:
        """All stops."""
        assert self.context.checkpoints is not None
        return stops(self.context.checkpoints, self.context.epochs)

    def _run(self) -> None:
        """The first process: all events, rows and checkpoints."""
        self._go_ahead()
        walk = self.walk
        if not self.begun:
            first = walk[0] if self._is_there(walk[0]) else walk[1]
            self._load(first.epochs_completed)
            self.context.epochs_completed = first.epochs_completed
            self.begin_run()
            self.begun = True
        while self.position < len(walk):
            stop = walk[self.position]
            self._go_to(stop)
            getattr(self, f"_{stop.event}")(stop)
            self.position += 1
            if stop.event == "end":
                place = self.journal.place(stop.epochs_completed)
                self.task_end = {"position": self.position, "callbacks": self.callback_states(), "place": place}
            if self.position == len(walk) or walk[self.position].epochs_completed != stop.epochs_completed:
                self._checkpoint()
        with self.looking():
            self.fire("on_run_end")
        with suppress(OSError):  # parts/ is empty, unless something of another walk was left there
            (self.context.run_folder / "parts").rmdir()

    def follow(self) -> None:
        """The other processes: the same walk, and only what is shared out."""
        self._go_ahead()
        for stop in self.walk[self.position :]:
            self._go_to(stop)
            self._fire_shared(stop)

    def _begin(self, stop: Stop) -> None:
        if not self._is_there(stop):
            self.task_begin_row = {}
            return
        with self.looking():
            self.task_begin_row = self.fire("on_task_begin")

    def _epoch(self, stop: Stop) -> None:
        context = self.context
        row: Numbers = {}
        with self.looking():
            if is_evaluated(context.epoch, context.epochs, self.eval_every):
                row |= self.evaluate(context.current_task)
            self.last_row = dict(row)
            context.epoch_row = row
            row |= self.fire("on_epoch_end")
        row = {**self.place("epoch"), "epoch": context.epoch, **row}
        self.journal.log(row)
        self.keeper.epoch_done([row])

    def _end(self, stop: Stop) -> None:
        context = self.context
        context.epoch_row = self.last_row
        row = {f"task_{key}": value for key, value in self.last_row.items()}
        with self.looking():
            row |= context.current_task.numbers | self.task_begin_row | self.fire("on_task_end")
        self.journal.log({**self.place("task_end"), **row})
        self.task_begin_row = {}

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

    def _go_ahead(self) -> None:
        """Share the checkpoints out: score every world-th one alone, and leave the parts for the walk."""
        together = self.context.processes
        if self.share is Share.samples or together.world == 1:
            return
        together = replace(together, works_apart=True)
        before = self.callback_states()
        self.context.processes = replace(together, is_ahead=True)
        try:
            with self.journal.stop.heard_at_once() if together.is_first else nullcontext():
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

    def watched(self) -> list[Events]:
        """The walk itself."""
        return [self]

    @property
    def progress(self) -> tuple[int, int]:
        """Epochs that have their row, and all that will have one."""
        has_row = [stop.event == "epoch" for stop in self.walk]
        return sum(has_row[: self.position]), sum(has_row)

    def where(self) -> str:
        """The place at which the walk goes on, for people."""
        return f"checkpoint {self.progress[0]} of {self.progress[1]}"

    def _checkpoint(self) -> None:
        walk = self.walk
        done = walk[self.position - 1].epochs_completed if self.position else -1
        self.keeper.save(self.state_dict(), done)

    def state_dict(self) -> dict[str, Any]:
        """All of the walk's state; the weights are where they were."""
        return {
            "position": self.position,
            "begun": self.begun,
            "last_row": self.last_row,
            "task_begin_row": self.task_begin_row,
            "callbacks": self.callback_states(),
            "walked": list(self.context.checkpoints or ()),
            "task_end": self.task_end,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self.position, self.begun, self.last_row = state["position"], state["begun"], state["last_row"]
        self.task_begin_row, self.task_end = state["task_begin_row"], state.get("task_end")
        self.load_callbacks(state["callbacks"])

    def take_up(self, state: dict[str, Any]) -> None:
        """Go on from a state; from its last task end, if there are more checkpoints now than there were then.

        Raises:
            RunError: checkpoints that it has walked are gone, or there are new ones between them.
        """
        if not goes_on(state.get("walked", []), self.context.checkpoints or (), self.context.run_folder):
            self.load_state_dict(state)
            return
        end = state.get("task_end")
        if end is not None:
            ahead = {"begun": True, "last_row": {}, "task_begin_row": {}, "task_end": end}
            self.load_state_dict({**ahead, "position": end["position"], "callbacks": end["callbacks"]})
        self.journal.cut_back(NOTHING if end is None else end["place"])
        context = self.context
        first = 0 if end is None else end["place"]["epochs_completed"] // context.epochs
        for k in range(first, context.num_tasks):
            shutil.rmtree(context.run_folder / f"task_{k:04d}_{context.arch}", ignore_errors=True)
        self._checkpoint()
