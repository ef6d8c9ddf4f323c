"""What a forecast rests on: training steps, an evaluation and a look of each analysis, tried and timed.

All of it happens at one task, with the run's own network, learner and analyses, in a folder that is thrown away.
"""

import copy
import io
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from plastiscope.data.samples import Batch
from plastiscope.event import Callback, Context, EpochRecord, undisturbed
from plastiscope.learner.training_forward import products_in
from plastiscope.listening import Listening
from plastiscope.make import make_run
from plastiscope.presentation import blocks_of_epoch, presentation_order
from plastiscope.replicas import Made
from plastiscope.run.journal import Journal
from plastiscope.run.signals import StopRequest
from plastiscope.task_shift_mode.task import Task, evaluate
from plastiscope.trained_run import TrainedRun

STEPS_S = 2.0
"""Seconds of steps that are timed, about."""
SCORED = 512
"""Samples on which an evaluation is timed, at most."""
LOOK_S = 20.0
"""Seconds after which an event of a look is given up."""


class Spent(NamedTuple):
    """Seconds, and bytes that were written."""

    seconds: float = 0.0
    size: int = 0

    def plus(self, other: "Spent") -> "Spent":
        """Both."""
        return Spent(self.seconds + other.seconds, self.size + other.size)


NOTHING = Spent()


@dataclass(frozen=True)
class Look:
    """What one look of an analysis took.

    Attributes:
        told: seconds that it tells without looking; None where it was tried.
        in_task, in_epoch: what it spent as a task, and as an epoch, began and ended.
        a_step, last_step: seconds that it spent inside a step, and inside the last one of an epoch.
        state: bytes of its state.
        of_epochs: whether it looks at ends of epochs: it wrote there, or was given up there.
        note: why it was given up.
    """

    told: float | None = None
    in_task: Spent = NOTHING
    in_epoch: Spent = NOTHING
    a_step: float = 0.0
    last_step: float = 0.0
    state: float = 0.0
    of_epochs: bool = False
    note: str = ""


@dataclass(frozen=True)
class Measured:
    """Seconds of a step without what analyses do in it, and of a scored sample; and a look of each analysis."""

    a_step: float
    a_sample: float
    looks: dict[str, Look]


def measure(made: Made, k: int, device: torch.device, scratch: Path) -> Measured:
    """All that is timed, at task k; what is written goes into `scratch`."""
    stop = StopRequest()
    stop.restore()  # signals end a trial as they would any program
    run = make_run(made, 0, Journal(scratch, made.plan.settings.snapshots, stop))
    try:
        _go_to(run, k)
        _say("an evaluation")
        a_sample = _seconds_per_scored_sample(run.context, device)
        tried = [_Tried(analysis, run.context, device) for analysis in made.plans[0].analyses]
        for one in tried:
            _say(f"analysis {one.analysis.name}, before training")
            one.begin()
        _begin(made, run.context.current_task)
        _say("training steps")
        with products_in(made.plan.settings.precision):
            a_step = _seconds_per_step(made, run, tried, device)
            _let_hear(made, run, tried)
        run.context.epochs_completed += 1
        looks = {}
        for one in tried:
            _say(f"analysis {one.analysis.name}")
            looks[one.analysis.name] = one.end()
        return Measured(a_step, a_sample, looks)
    finally:
        run.journal.close()


def _say(what: str) -> None:
    """Who waits at a terminal sees for what: a large network takes minutes on a small machine."""
    if sys.stderr.isatty():
        print(f"timing {what}", file=sys.stderr)


def _go_to(run: TrainedRun, k: int) -> None:
    """Show what there is before task k, were there one epoch a task and the weights still the first ones."""
    context = run.context
    for epochs in sorted({0, k}):
        run.journal.snapshot(epochs, context.net.state_dict())
    context.task, context.epochs, context.epochs_completed = context.shift.task(k), 1, k
    context.order = presentation_order(context.task.train, context.seed, k, 0)
    context.record = EpochRecord.empty(len(context.order), context.order.device)
    context.num_batches = -(-len(context.order) // context.batch_size)


def _begin(made: Made, task: Task) -> None:
    made.learner.take_up(task)
    made.learner.begin_task(task)
    made.learner.net.train()
    made.learner.begin_epoch(0, made.plan.settings.epochs)


def _seconds_per_scored_sample(context: Context, device: torch.device) -> float:
    """Of an evaluation at the task, its first pass left out; 0 without samples to evaluate on."""
    task, net = context.current_task, context.net
    pools = [samples for samples in (task.test, task.validation) if samples is not None and len(samples)]
    if not pools:
        return 0.0
    some = pools[0].select(torch.arange(min(SCORED, len(pools[0])), device=pools[0].rows.device))
    with undisturbed(net):
        evaluate(net, task, some, 0)
        began = _now(device)
        evaluate(net, task, some, 0)
        return (_now(device) - began) / len(some)


def _seconds_per_step(made: Made, run: TrainedRun, tried: list["_Tried"], device: torch.device) -> float:
    """Of steps as they are made where the analyses listen, which do nothing here; the first one does not count.

    Of several runs that advance together each shows its gradients and outputs to its own analyses.
    """
    run.callbacks = [_Deaf(one) for one in tried]
    listening, blocks = Listening(made.learner, [run] * len(made.plans)), _blocks(made, run)
    listening.make_steps(next(blocks).each(lambda tensor: tensor[:1]), 0, False, lambda: False)
    began, steps = _now(device), 0
    is_over = _after(STEPS_S)
    for block in blocks:
        steps += len(listening.make_steps(block, 0, False, is_over)[0])
        if is_over():
            break
    return (_now(device) - began) / steps


def _let_hear(made: Made, run: TrainedRun, tried: list["_Tried"]) -> None:
    """Let the analyses hear the steps of an epoch: all of them, or the last one and those there is time for."""
    context, is_over = run.context, _after(STEPS_S)
    run.callbacks = [*tried]
    listening, last = Listening(made.learner, [run]), context.num_batches - 1
    if last > 0 and listening.connect(is_last=False):
        done = 0
        for block in _epoch(made, run, 0, 0):
            done += len(listening.make_steps(block, done, False, is_over)[0])
            if done == last or is_over():
                break
    if listening.connect(is_last=True):
        for block in _epoch(made, run, 0, last):
            listening.make_steps(block, last, True, lambda: False)


def _blocks(made: Made, run: TrainedRun) -> Iterator[Batch]:
    """The blocks of one epoch after the other."""
    for epoch in range(1_000):
        yield from _epoch(made, run, epoch, 0)


def _epoch(made: Made, run: TrainedRun, epoch: int, start: int) -> Iterator[Batch]:
    """The blocks of an epoch of the task, from batch `start` on."""
    k, size = run.context.task_idx, run.context.batch_size
    tasks = [shift.task(k) for shift in made.shifts]
    both = zip(tasks, made.plans, strict=True)
    orders = [presentation_order(task.train, plan.settings.seed, k, epoch) for task, plan in both]
    return blocks_of_epoch(tasks, orders, size, epoch, made.learner.lead, start)


class _Tried(Callback):
    """An analysis that is tried at the context's task: each event is timed, and what it writes is weighed."""

    def __init__(self, analysis: Callback, context: Context, device: torch.device) -> None:
        """Ask whether it can tell its cost without being tried."""
        self.analysis, self.context, self.device = copy.deepcopy(analysis), context, device
        if hasattr(self.analysis, "every"):
            self.analysis.every = 1  # so that the look is due
        self.told, self.note, self.given_up_at = self.analysis.forecast(context), "", ""
        self.in_steps: dict[int, float] = {}
        self.in_task = self.in_epoch = NOTHING

    def begin(self) -> None:
        """The run, the task and the epoch begin."""
        self._fire("on_run_begin", self.context)
        self.in_task = self._fire("on_task_begin", self.context)
        self.in_epoch = self._fire("on_epoch_begin", self.context)

    def end(self) -> Look:
        """The epoch and the task end."""
        if not self.is_tried:
            return self._untried()
        last = self.context.num_batches - 1
        before = [seconds for batch_index, seconds in self.in_steps.items() if batch_index < last]
        context = self._as_heard(len(before))
        self.in_epoch = self.in_epoch.plus(self._fire("on_epoch_end", context))
        self.in_task = self.in_task.plus(self._fire("on_task_end", context))
        if not self.is_tried:
            return self._untried()
        counted = before[1:] or before  # the first one is slower
        a_step = sum(counted) / max(len(counted), 1)
        state = saved(self.analysis.state_dict())
        of_epochs = self.in_epoch.size > 0
        return Look(None, self.in_task, self.in_epoch, a_step, self.in_steps.get(last, 0.0), state, of_epochs)

    def _untried(self) -> Look:
        """What is known of one that told its cost, or was given up."""
        return Look(self.told, of_epochs=self.given_up_at == "on_epoch_end", note=self.note)

    def _as_heard(self, before: int) -> Context:
        """The context, as if there had been no other steps than the heard ones: so many, and the last."""
        context = self.context
        assert context.order is not None
        if not before:
            return context
        last = (context.num_batches - 1) * context.batch_size
        order = torch.cat([context.order[: before * context.batch_size], context.order[last:]])
        return replace(context, order=order, record=EpochRecord.empty(len(order), order.device))

    @property
    def is_tried(self) -> bool:
        """Whether it could not tell its cost, and has not been given up."""
        return self.told is None and not self.note

    def hears(self, event: str, is_last: bool) -> bool:
        """What the analysis hears, while it is tried."""
        return self.is_tried and self.analysis.hears(event, is_last)

    def on_backward(self, context: Context) -> None:
        """Time it."""
        self._hear("on_backward", context)

    def on_update(self, context: Context) -> None:
        """Time it."""
        self._hear("on_update", context)

    def on_batch_end(self, context: Context) -> None:
        """Time it."""
        self._hear("on_batch_end", context)

    def _hear(self, event: str, context: Context) -> None:
        if self.is_tried:
            before = self.in_steps.get(context.batch_index, 0.0)
            self.in_steps[context.batch_index] = before + self._timed(event, context)

    def _fire(self, event: str, context: Context) -> Spent:
        if not self.is_tried:
            return NOTHING
        before = _weight(context.run_folder)
        with undisturbed(context.net):
            seconds = self._timed(event, context)
        return Spent(seconds, _weight(context.run_folder) - before)

    def _timed(self, event: str, context: Context) -> float:
        """Seconds of an event; one that takes too long is left, and the analysis given up."""
        began = _now(self.device)
        try:
            with _limited(LOOK_S):
                getattr(self.analysis, event)(context)
        except _TooLongError:
            self.note, self.given_up_at = f"a look takes more than {LOOK_S:.0f} s", event
        return _now(self.device) - began


class _Deaf(Callback):
    """Listens to the same steps as an analysis that is tried, and does nothing."""

    def __init__(self, tried: _Tried) -> None:
        """Listen as `tried` does."""
        self.tried = tried

    def hears(self, event: str, is_last: bool) -> bool:
        """What the other one hears."""
        return self.tried.hears(event, is_last)


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


def _after(seconds: float) -> Callable[[], bool]:
    """Whether so many seconds, from now on, are over."""
    end = time.perf_counter() + seconds
    return lambda: time.perf_counter() > end


def _now(device: torch.device) -> float:
    """The time when all that was asked of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _weight(folder: Path) -> int:
    """Bytes of the files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def saved(content: Any) -> int:
    """Bytes of a torch file."""
    file = io.BytesIO()
    torch.save(content, file)
    return file.tell()
