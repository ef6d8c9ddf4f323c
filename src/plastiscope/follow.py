"""Training with several processes: the first one trains and fires the events, the others follow it.

Before an event in which work is shared out, the first process sends weights, clock and the state of the callbacks; the
others enter the same event, so that each computes its parts. They keep nothing from one event to the next.
"""

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from plastiscope.error import RunError
from plastiscope.event import Callback, Context, undisturbed
from plastiscope.learner.learner import Learner
from plastiscope.run.processes import Processes
from plastiscope.run.signals import SIGNALS, Preempted
from plastiscope.run.snapshots import digest

if TYPE_CHECKING:
    from plastiscope.loop import Events


def _shared(callbacks: Sequence[Callback], event: str) -> list[Callback]:
    return [callback for callback in callbacks if event in callback.shared_events]


def tell_followers(events: "Events", event: str) -> None:
    """Send the other processes what they need for `event`, if work is shared out in it."""
    context, shared = events.context, _shared(events.callbacks, event)
    if not shared:
        return
    weights = {name: tensor.cpu() for name, tensor in context.net.state_dict().items()}
    context.weights_digest = digest(weights)
    context.processes.tell(
        {
            "event": event,
            "task": context.task_idx,
            "epoch": context.epoch,
            "epochs_completed": context.epochs_completed,
            "epoch_row": context.epoch_row,
            "weights": weights,
            "callbacks": {callback.name: callback.state_dict() for callback in shared},
        }
    )


def follow(learner: Learner, context: Context, callbacks: Sequence[Callback]) -> None:
    """Take part in what the first process tells, until it tells that there is no more."""
    while (told := context.processes.hear()) is not None:
        if context.task is None or context.task.index != told["task"]:
            context.task = context.shift.task(told["task"])
            learner.take_up(context.task)
        context.epoch, context.epochs_completed = told["epoch"], told["epochs_completed"]
        context.epoch_row, context.weights_digest = told["epoch_row"], digest(told["weights"])
        learner.begin_epoch(context.epoch, context.epochs)
        learner.net.load_state_dict(told["weights"])
        with undisturbed(context.net):
            for callback in _shared(callbacks, told["event"]):
                callback.load_state_dict(told["callbacks"][callback.name])
                getattr(callback, told["event"])(context)


@contextmanager
def left_to_the_first(processes: Processes) -> Iterator[None]:
    """Inside, signals are the first process's to answer: it saves the run, and we end when it has gone.

    Raises:
        RunError: it, or another one, has gone without such a signal; also while we compute our part.
        SystemExit: it has gone after one.
    """
    received: list[int] = []

    def note(signum: int, _: Any) -> None:
        if processes.missing:
            raise Preempted(signum)
        received.append(signum)

    before = {signum: signal.signal(signum, note) for signum in SIGNALS}
    try:
        with processes.watched():
            yield
    except (RunError, Preempted) as stop:
        if received:
            raise SystemExit(128 + received[0]) from None
        if isinstance(stop, Preempted):
            raise processes.lost() from None
        raise
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
