"""dry_run=true: what a run would do and cost, told before it is begun.

The run's own data, network, learner and analyses are made, in memory. Some steps, and one look of each analysis at the
task in the middle of the run, are timed on them: where costs grow with the tasks, the middle one stands for their mean.
What the looks write goes into a temporary folder and is weighed. Then all of it is thrown away.
"""

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from plastiscope.branch import open_branches
from plastiscope.build import Plan
from plastiscope.loop import is_evaluated
from plastiscope.make import choose_device, make_all, set_threads, training_forward
from plastiscope.replicas import Made
from plastiscope.run.checkpoint import Checkpoints
from plastiscope.run.forecast import Cost, Forecast
from plastiscope.run.generators import generator_states
from plastiscope.selection import Selection
from plastiscope.source import saved_epochs
from plastiscope.task_shift_mode.task import TaskShift
from plastiscope.trainer import Position
from plastiscope.trial import Look, Measured, measure, saved

Counts = npt.NDArray[np.float64]

LOOKED_AT = 200
"""Tasks whose sizes are asked for, evenly spread; the others lie on the line between their neighbours."""


def rehearse(plan: Plan, folder: Path, stored: dict[str, Any] | None) -> Forecast:
    """The forecast of a run; its folder is not touched.

    Args:
        plan: of the run.
        folder: that it would have.
        stored: run.json that is there, if it has begun; the forecast is of the whole run, and of what is left of it.

    Raises:
        PlastiscopeError: what would stop the run itself before its first step, or at its first look.
    """
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        device = choose_device(plan.settings.device)
        branches = open_branches(plan, folder, stored)
        made = make_all(plan, device, branches)
        for branch, data in zip(branches, made.data, strict=bool(branches)):
            branch.check(data)
        set_threads(plan, stored, made.nets[0], threads)
        made.learner.through = training_forward(plan, made.learner, device)
        tasks = range(branches[0].first_task if branches else 0, plan.settings.num_tasks)
        with tempfile.TemporaryDirectory() as scratch:
            measured = measure(made, tasks[len(tasks) // 2], device, Path(scratch))
        left = None if stored is None else _forecast(made, _position(folder, tasks[0]), measured, device)
        return replace(_forecast(made, Position(tasks[0]), measured, device), left=left)
    finally:
        torch.set_num_threads(threads)


def _position(folder: Path, first_task: int) -> Position:
    """Where the run in `folder` would go on."""
    loaded = Checkpoints(folder / "checkpoint").load()
    return Position(first_task) if loaded is None else Position(**loaded[0]["position"])


def sizes_of_tasks(shift: TaskShift, tasks: range) -> tuple[Counts, Counts]:
    """Numbers of training samples, and of those that an evaluation scores, of each task.

    Args:
        shift: gives the tasks.
        tasks: of the run; of more than `LOOKED_AT` only so many are looked at.
    """
    asked = tasks if len(tasks) <= LOOKED_AT else np.linspace(tasks[0], tasks[-1], LOOKED_AT).astype(int).tolist()
    found = [shift.task(k) for k in asked]
    trained = [len(task.train) for task in found]
    scored = [len(task.test) + (0 if task.validation is None else len(task.validation)) for task in found]
    return np.interp(tasks, asked, trained), np.interp(tasks, asked, scored)


@dataclass(frozen=True)
class _Ahead:
    """What is to come, of one run.

    Attributes:
        tasks: that are not done.
        epochs: of each.
        ends: epochs completed at the ends of the epochs to come.
        steps, presentations, scores: numbers of steps, of samples trained on, and of samples evaluated.
        largest: samples of the largest task.
    """

    tasks: range
    epochs: int
    ends: range
    steps: int
    presentations: int
    scores: int
    largest: int

    def due_tasks(self, every: int) -> int:
        """Tasks after which a look is due, every so many tasks."""
        return sum((k + 1) % every == 0 for k in self.tasks)

    def due_epochs(self, every: int) -> int:
        """Epochs after which a look is due, every so many epochs and at a task's end."""
        return sum(e % every == 0 or e % self.epochs == 0 for e in self.ends)


def _ahead(made: Made, start: Position, trained: Counts, scored: Counts) -> _Ahead:
    """All from `start` on; the tasks that are not done have so many samples to train on and to evaluate."""
    settings, epochs = made.plan.settings, made.plan.settings.epochs
    tasks, first = range(start.task, settings.num_tasks), slice(0, 1)  # of the first one a part may be done
    steps = np.ceil(trained / settings.batch_size)
    evaluations = [is_evaluated(e, epochs, settings.eval_every) for e in range(epochs)] + [True]
    done = start.epoch * trained[first].sum() + start.batch * settings.batch_size
    return _Ahead(
        tasks=tasks,
        epochs=epochs,
        ends=range(start.task * epochs + start.epoch + 1, tasks.stop * epochs + 1),
        steps=int(epochs * steps.sum() - start.epoch * steps[first].sum() - start.batch),
        presentations=int(epochs * trained.sum() - done),
        scores=int(sum(evaluations) * scored.sum() - sum(evaluations[: start.epoch]) * scored[first].sum()),
        largest=int(trained.max(initial=0)),
    )


def _forecast(made: Made, start: Position, measured: Measured, device: torch.device) -> Forecast:
    """Of all from `start` on."""
    trained, scored = sizes_of_tasks(made.shifts[0], range(start.task, made.plan.settings.num_tasks))
    ahead = _ahead(made, start, trained, scored)
    every = {analysis.name: getattr(analysis, "every", 1) for analysis in made.plans[0].analyses}
    analyses = {name: _cost(look, every[name], ahead) for name, look in measured.looks.items()}
    return Forecast(
        facts=_facts(made, ahead, trained, device) if ahead.tasks else {},
        steps=ahead.steps,
        presentations=ahead.presentations,
        training=measured.a_step * ahead.steps,
        evaluation=measured.a_sample * ahead.scores * len(made.plans),
        analyses=analyses,
        sizes=_sizes(made, start, ahead.largest, sum(cost.state for cost in analyses.values())),
        runs=len(made.plans),
    )


def _facts(made: Made, ahead: _Ahead, trained: Counts, device: torch.device) -> dict[str, str]:
    """What the run is."""
    plan, settings, tasks = made.plan, made.plan.settings, ahead.tasks
    parameters = sum(p.numel() for p in made.nets[0].parameters())
    learner = type(plan.learner).__module__.rpartition(".")[2]
    seeds = ", ".join(str(one.settings.seed) for one in made.plans)
    counts = f"{trained[0]:,.0f}" + (f" to {trained[-1]:,.0f}" if trained[0] != trained[-1] else "")
    which = f" ({tasks[0]} to {tasks[-1]})" if tasks[0] else ""
    return {
        "run": f"{settings.name}, seed {seeds}; {device}, threads {torch.get_num_threads()}",
        "network": f"{plan.arch}, {parameters:,} parameters; learner {learner}",
        "tasks": f"{len(tasks):,}{which} of {settings.epochs:,} epochs, {counts} training samples each",
        "steps": f"{ahead.steps:,} of batch {settings.batch_size}, {ahead.presentations:,} presentations",
    }


def _cost(look: Look, every: int, ahead: _Ahead) -> Cost:
    """Of an analysis that looks every so many tasks or, if it writes at an epoch's end, every so many epochs."""
    due_tasks, epochs = ahead.due_tasks(every), len(ahead.ends)
    if look.told is not None:
        return Cost(due_tasks, due_tasks * look.told)
    looks, tasks = (ahead.due_epochs(every), len(ahead.tasks)) if look.of_epochs else (due_tasks, due_tasks)
    if look.note:
        return Cost(looks, None, note=look.note)
    heard = looks if look.of_epochs else epochs  # in these epochs it does something at the end, and in the steps
    steps = (ahead.steps - epochs) * heard / max(epochs, 1)  # without the last ones of the epochs
    seconds = heard * look.in_epoch.seconds + tasks * look.in_task.seconds
    in_steps = steps * look.a_step + heard * look.last_step
    return Cost(looks, seconds + in_steps, heard * look.in_epoch.size + tasks * look.in_task.size, look.state)


def _sizes(made: Made, start: Position, samples: int, states: float) -> dict[str, float]:
    """Bytes of snapshots and of the two checkpoints; within an epoch these hold a loss and a hit per sample.

    Args:
        made: what would be trained.
        start: where that begins.
        samples: of the largest task.
        states: bytes of the analyses' states, of one run.
    """
    settings, learner, runs = made.plan.settings, made.learner, len(made.plans)
    one = saved({name: tensor.detach().cpu().contiguous() for name, tensor in made.nets[0].state_dict().items()})
    wanted = {"every": settings.snapshots.every, "keep": settings.snapshots.keep}
    snapshots = saved_epochs([0], settings.num_tasks * settings.epochs, settings.epochs, wanted, True)
    kept = [e for e in snapshots if e >= start.task * settings.epochs + start.epoch]
    own = runs * (states + 5 * samples + (0 if settings.selection is Selection.last else one))
    whole = saved({"net": learner.net.state_dict(), "learner": learner.state_dict(), "generators": generator_states()})
    return {"snapshots": runs * len(kept) * one, "checkpoint": 2 * (whole + own)}
