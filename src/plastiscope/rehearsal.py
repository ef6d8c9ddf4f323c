"""dry_run=true: what a run would do and cost, told before it is begun.

The run's own data, network, learner and analyses are made, in memory. Some steps, and one look of each analysis at the
task in the middle of the run, are timed on them: where costs grow with the tasks, the middle one stands for their mean.
What the looks write goes into a temporary folder and is weighed. Then all of it is thrown away.
"""

import copy
import io
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from plastiscope.branch import open_branches
from plastiscope.build import Plan
from plastiscope.data.samples import Batch, side_by_side
from plastiscope.event import Callback, Context, EpochRecord, listeners, undisturbed
from plastiscope.learner.training_forward import products_in
from plastiscope.loop import is_evaluated
from plastiscope.make import choose_device, make_all, make_context, set_threads, training_forward
from plastiscope.replicas import Made
from plastiscope.run.checkpoint import Checkpoints
from plastiscope.run.forecast import Cost, Forecast
from plastiscope.run.generators import generator_states
from plastiscope.run.sample_store import SampleStore
from plastiscope.run.snapshots import Snapshots
from plastiscope.selection import Selection
from plastiscope.source import saved_epochs
from plastiscope.task_shift_mode.task import Task, TaskShift, evaluate
from plastiscope.trainer import GATHERED, MOST_STEPS, Position, presentation_order

Counts = npt.NDArray[np.float64]

LOOKED_AT = 200
"""Tasks whose sizes are asked for, evenly spread; the others lie on the line between their neighbours."""
STEPS_S = 2.0
"""Seconds of steps that are timed, about."""
SCORED = 512
"""Samples on which an evaluation is timed, at most."""
LOOK_S = 20.0
"""Seconds after which an event of a look is given up."""


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
            measured = _measure(made, tasks[len(tasks) // 2], device, Path(scratch))
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
class _Measured:
    """What was timed: seconds of a step and of a scored sample, and a look of each analysis."""

    a_step: float
    a_sample: float
    looks: dict[str, "_Look"]


def _measure(made: Made, k: int, device: torch.device, scratch: Path) -> _Measured:
    """All that is timed, at task k."""
    a_sample = _seconds_per_scored_sample(made, made.shifts[0].task(k), device)
    context = _context(made, scratch, k)
    try:
        looks = {analysis.name: _look(made, analysis, context) for analysis in made.plans[0].analyses}
    finally:
        context.sample_store.close()
    with products_in(made.plan.settings.precision):
        a_step = _seconds_per_step(made, k, device)
    return _Measured(a_step, a_sample, looks)


def _forecast(made: Made, start: Position, measured: _Measured, device: torch.device) -> Forecast:
    """Of all from `start` on."""
    settings, epochs = made.plan.settings, made.plan.settings.epochs
    tasks = range(start.task, settings.num_tasks)
    trained, scored = sizes_of_tasks(made.shifts[0], tasks)
    per_epoch, first = np.ceil(trained / settings.batch_size), min(len(tasks), 1)
    steps = int(epochs * per_epoch.sum() - first * start.epoch * per_epoch[:1].sum() - start.batch)
    done = start.epoch * trained[:1].sum() + start.batch * settings.batch_size
    evaluations = [is_evaluated(e, epochs, settings.eval_every) for e in range(epochs)] + [True]
    scores = sum(evaluations) * scored.sum() - sum(evaluations[: start.epoch]) * scored[:1].sum()
    analyses = {
        analysis.name: _cost(measured.looks[analysis.name], getattr(analysis, "every", 1), start, tasks, epochs)
        for analysis in made.plans[0].analyses
    }
    presentations = int(epochs * trained.sum() - done)
    return Forecast(
        facts=_facts(made, tasks, trained, steps, presentations, device) if len(tasks) else {},
        steps=steps,
        presentations=presentations,
        training=measured.a_step * steps,
        evaluation=measured.a_sample * float(scores) * len(made.plans),
        analyses=analyses,
        sizes=_sizes(made, start, int(trained.max(initial=0)), sum(cost.state for cost in analyses.values())),
        runs=len(made.plans),
    )


def _facts(
    made: Made, tasks: range, trained: Counts, steps: int, presentations: int, device: torch.device
) -> dict[str, str]:
    """What the run is."""
    plan, settings = made.plan, made.plan.settings
    parameters = sum(p.numel() for p in made.nets[0].parameters())
    learner = type(plan.learner).__module__.rpartition(".")[2]
    seeds = ", ".join(str(one.settings.seed) for one in made.plans)
    counts = f"{trained[0]:,.0f}" + (f" to {trained[-1]:,.0f}" if trained[0] != trained[-1] else "")
    which = f" ({tasks[0]} to {tasks[-1]})" if tasks[0] else ""
    return {
        "run": f"{settings.name}, seed {seeds}; {device}, threads {torch.get_num_threads()}",
        "network": f"{plan.arch}, {parameters:,} parameters; learner {learner}",
        "tasks": f"{len(tasks):,}{which} of {settings.epochs:,} epochs, {counts} training samples each",
        "steps": f"{steps:,} of batch {settings.batch_size}, {presentations:,} presentations",
    }


def _seconds_per_step(made: Made, k: int, device: torch.device) -> float:
    """Of steps at task k; the first one does not count."""
    learner, tasks = made.learner, [shift.task(k) for shift in made.shifts]
    _begin(made, tasks[0])
    seconds, steps = 0.0, 0
    for number, block in enumerate(_blocks(made, tasks)):
        began = _now(device)
        if learner.works_in_blocks:
            learner.step_block(block)
        else:
            for batch in block.steps():
                learner.step(batch)
        if number > 0:
            seconds, steps = seconds + _now(device) - began, steps + len(block.targets)
        if seconds >= STEPS_S:
            break
    return seconds / steps


def _begin(made: Made, task: Task) -> None:
    made.learner.take_up(task)
    made.learner.begin_task(task)
    made.learner.net.train()
    made.learner.begin_epoch(0, made.plan.settings.epochs)


def _blocks(made: Made, tasks: Sequence[Task]) -> Iterator[Batch]:
    """A block of one step, then blocks as the trainer makes them, of one epoch after the other."""
    size = min(made.plan.settings.batch_size, len(tasks[0].train))
    values = int(np.prod(tasks[0].train.input_shape)) * size * len(tasks)
    most = max(1, min(MOST_STEPS, GATHERED // values))
    for epoch in range(1_000):
        both = list(zip(tasks, made.plans, strict=True))
        orders = [presentation_order(task.train, plan.settings.seed, task.index, epoch) for task, plan in both]
        whole = [order[: len(order) // size * size] for order in (orders if epoch else [o[:size] for o in orders])]
        streams = [task.train.blocks(size, most, order, 0) for task, order in zip(tasks, whole, strict=True)]
        for blocks in zip(*streams, strict=True):
            yield side_by_side(blocks, 1) if made.learner.lead else blocks[0]


def _seconds_per_scored_sample(made: Made, task: Task, device: torch.device) -> float:
    """Of an evaluation at a task, its first pass left out; 0 without samples to evaluate on."""
    pools = [samples for samples in (task.test, task.validation) if samples is not None and len(samples)]
    if not pools:
        return 0.0
    some = pools[0].select(torch.arange(min(SCORED, len(pools[0])), device=pools[0].rows.device))
    with undisturbed(made.nets[0]):
        evaluate(made.nets[0], task, some, 0)
        began = _now(device)
        evaluate(made.nets[0], task, some, 0)
        return (_now(device) - began) / len(some)


def _now(device: torch.device) -> float:
    """The time when all that was asked of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _context(made: Made, scratch: Path, k: int) -> Context:
    """What the first run's analyses see at task k, were there one epoch a task and the weights still the first ones."""
    net, snapshots = made.nets[0], Snapshots(scratch / "snapshots")
    for epochs in sorted({0, k}):
        snapshots.save(epochs, net.state_dict())
    samples = SampleStore(scratch / "samples")
    context = make_context(made.plans[0], made.shifts[0], made.learner, snapshots, samples, scratch)
    context.net, context.task, context.epochs = net, made.shifts[0].task(k), 1
    context.order = presentation_order(context.task.train, context.seed, k, 0)
    context.record = EpochRecord.empty(len(context.order), context.order.device)
    context.num_batches = -(-len(context.order) // context.batch_size)
    return context


def _cost(look: "_Look", every: int, start: Position, tasks: range, epochs: int) -> Cost:
    """Of an analysis that looks every so many tasks or, if it writes at an epoch's end, every so many epochs."""
    by_task = sum((k + 1) % every == 0 for k in tasks)
    if look.told is not None:
        return Cost(by_task, by_task * look.told)
    if look.note:
        return Cost(by_task, None, note=look.note)
    to_come = range(start.task * epochs + start.epoch + 1, tasks.stop * epochs + 1)
    looks, times, ends = by_task, len(to_come), by_task
    if look.in_epoch.size:
        times = looks = sum(e % every == 0 or e % epochs == 0 for e in to_come)
        ends = len(tasks)
    seconds, size = (times * x + ends * y for x, y in zip(look.in_epoch, look.in_task, strict=True))
    return Cost(looks, seconds, size, look.state)


class _Spent(NamedTuple):
    """Of some events."""

    seconds: float
    size: int


NOTHING = _Spent(0.0, 0)


@dataclass(frozen=True)
class _Look:
    """What one look of an analysis took.

    Attributes:
        told: seconds that it tells without looking; None where it was tried.
        in_epoch, in_task: what it spent at an epoch's and a task's events.
        state: bytes of its state.
        note: why it was given up.
    """

    told: float | None = None
    in_epoch: _Spent = NOTHING
    in_task: _Spent = NOTHING
    state: float = 0.0
    note: str = ""


def _look(made: Made, analysis: Callback, context: Context) -> _Look:
    """One look of an analysis at the context's task."""
    tried = copy.deepcopy(analysis)
    if hasattr(tried, "every"):
        tried.every = 1  # so that the look is due
    told = tried.forecast(context)
    if told is not None:
        return _Look(told)
    try:
        in_epoch, in_task = _try(made, tried, context)
    except _TooLongError:
        return _Look(note=f"a look takes more than {LOOK_S:.0f} s")
    return _Look(None, in_epoch, in_task, _saved(tried.state_dict()))


def _try(made: Made, analysis: Callback, context: Context) -> tuple[_Spent, _Spent]:
    """What an analysis spends at an epoch's beginning and end, and as a task begins and ends."""

    def fire(event: str) -> _Spent:
        before, began = _weight(context.run_folder), time.perf_counter()
        with undisturbed(context.net), _limited(LOOK_S):
            getattr(analysis, event)(context)
        return _Spent(time.perf_counter() - began, _weight(context.run_folder) - before)

    context.epoch, context.epochs_completed = 0, context.task_idx
    fire("on_run_begin")
    begin, epoch = fire("on_task_begin"), fire("on_epoch_begin")
    _heard_step(made, analysis, context)
    context.epochs_completed += 1
    epoch_end, end = fire("on_epoch_end"), fire("on_task_end")
    in_epoch = _Spent(epoch.seconds + epoch_end.seconds, epoch.size + epoch_end.size)
    return in_epoch, _Spent(begin.seconds + end.seconds, begin.size + end.size)


def _heard_step(made: Made, analysis: Callback, context: Context) -> None:
    """The last step of an epoch, to which the analysis listens; of runs that advance together there is none to show."""
    learner, task, order = made.learner, context.current_task, context.order
    if learner.lead or order is None:
        return
    _begin(made, task)
    context.batch_index = context.num_batches - 1
    batch = task.train.gather(order[: context.batch_size], 0)
    learner.on_backward = partial(_tell, analysis, "on_backward", context)
    learner.on_update = partial(_tell, analysis, "on_update", context)
    context.losses, context.logits = learner.step(batch)
    context.batch = batch
    learner.on_backward = learner.on_update = None
    _tell(analysis, "on_batch_end", context)


def _tell(analysis: Callback, event: str, context: Context) -> None:
    for listener in listeners([analysis], event, True):
        listener(context)


class _TooLongError(Exception):
    """A look was given up."""


@contextmanager
def _limited(seconds: float) -> Iterator[None]:
    """Give up after so many seconds, where this is the thread that hears signals."""

    def give_up(*_: Any) -> None:
        raise _TooLongError

    try:
        before: Callable[..., Any] | int | None = signal.signal(signal.SIGALRM, give_up)
    except ValueError:
        yield
        return
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _weight(folder: Path) -> int:
    """Bytes of the files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _saved(content: Any) -> int:
    """Bytes of a torch file."""
    file = io.BytesIO()
    torch.save(content, file)
    return file.tell()


def _sizes(made: Made, start: Position, samples: int, states: float) -> dict[str, float]:
    """Bytes of snapshots and of the two checkpoints; within an epoch these hold a loss and a hit per sample.

    Args:
        made: what would be trained.
        start: where that begins.
        samples: of the largest task.
        states: bytes of the analyses' states, of one run.
    """
    settings, learner, runs = made.plan.settings, made.learner, len(made.plans)
    one = _saved({name: tensor.detach().cpu().contiguous() for name, tensor in made.nets[0].state_dict().items()})
    wanted = {"every": settings.snapshots.every, "keep": settings.snapshots.keep}
    saved = saved_epochs([0], settings.num_tasks * settings.epochs, settings.epochs, wanted, True)
    kept = [e for e in saved if e >= start.task * settings.epochs + start.epoch]
    own = runs * (states + 5 * samples + (0 if settings.selection is Selection.last else one))
    whole = _saved({"net": learner.net.state_dict(), "learner": learner.state_dict(), "generators": generator_states()})
    return {"snapshots": runs * len(kept) * one, "checkpoint": 2 * (whole + own)}
