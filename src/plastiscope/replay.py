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
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from plastiscope.error import ConfigError, RunError, require
from plastiscope.event import Callback, Numbers
from plastiscope.formats.checkpoints import CheckpointFolder, Layout, Wanted, find_checkpoints
from plastiscope.loop import Events, Loop, is_evaluated
from plastiscope.run.journal import NOTHING
from plastiscope.walk import Share, Stop, Walk, own_task


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


def refuse_training(callbacks: Sequence[Callback]) -> None:
    """Refuse analyses that saved weights cannot answer.

    Raises:
        ConfigError: names them and why.
    """
    reasons = {callback.name: callback.needs_training() for callback in callbacks}
    if named := [f"{name} {reason}" for name, reason in reasons.items() if reason]:
        raise ConfigError(f"saved weights are looked at and nothing is trained: {'; '.join(named)}")


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
class Replay(Walk, Events, Loop):
    """The walk of the first process, or the only one: all events, rows and checkpoints, and the state of it.

    Attributes:
        eval_every: as in training.
        begun: on_run_begin has been fired.
        last_row: the newest epoch's accuracies.
        task_begin_row: numbers of on_task_begin, for the task's row.
        task_end: state and place in the journal at the last task end; None before the first.
    """

    eval_every: int = 1
    begun: bool = False
    last_row: Numbers = field(default_factory=dict)
    task_begin_row: Numbers = field(default_factory=dict)
    task_end: dict[str, Any] | None = None

    def _run(self) -> None:
        """The first process: all events, rows and checkpoints."""
        self._go_ahead(self.journal.stop.heard_at_once())
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
        super().load_state_dict(state)
        self.begun, self.last_row = state["begun"], state["last_row"]
        self.task_begin_row, self.task_end = state["task_begin_row"], state.get("task_end")

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
