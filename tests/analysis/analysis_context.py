"""Contexts for analyses under test, and a watch over what they may not change."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from plans import make_plan
from plastiscope import make
from plastiscope.event import Callback, Context
from plastiscope.make import load_tasks, make_learner
from plastiscope.run.generators import generator_states
from plastiscope.run.sample_store import SampleStore
from plastiscope.run.snapshots import Snapshots

TINY = ("data.samples_per_class=12", "num_tasks=3", "epochs=2", "batch_size=16", "threads=1")
MLP = ("net=mlp", "net.widths=[12,8]")


def make_context(folder: Path, *overrides: str, net: tuple[str, ...] = MLP, task: int = 0) -> Context:
    """A context at the end of a task's last epoch, nothing trained; snapshot 0 and all earlier task ends are there."""
    folder.mkdir(exist_ok=True)
    plan = make_plan(*TINY, *net, *overrides)
    data, shift = load_tasks(plan, torch.device("cpu"))
    learner = make_learner(plan, shift, data, torch.device("cpu"))
    learner.net.eval()
    snapshots, samples = Snapshots(folder / "snapshots"), SampleStore(folder / "samples")
    context = make.make_context(plan, shift, learner, snapshots, samples, folder)
    for k in range(task + 1):
        context.snapshots.save(k * context.epochs, learner.net.state_dict())
    move_to(context, task)
    return context


def move_to(context: Context, task: int) -> None:
    """Go to the end of a task."""
    context.task = context.shift.task(task)
    context.epochs_completed = (task + 1) * context.epochs


def same(one: Any, other: Any) -> bool:
    """Bit equality of nested containers of tensors and plain values (NaN equals NaN)."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one.nan_to_num(nan=1e30), other.nan_to_num(nan=1e30))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other or (one != one and other != other)


def fingerprint(net: nn.Module) -> dict[str, Any]:
    """All that an analysis must leave as it is."""
    return copy.deepcopy(
        {
            "state": dict(net.state_dict()),
            "grad": [p.grad for p in net.parameters()],
            "requires_grad": [p.requires_grad for p in net.parameters()],
            "training": [m.training for m in net.modules()],
            "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in net.modules()],
            "generators": generator_states(),
        }
    )


def watch(analysis: Callback) -> set[str]:
    """Let every event of the analysis check that it changed nothing; returns the events seen, to be filled."""
    seen: set[str] = set()

    def watched(event: str, call: Callable[[Context], Any]) -> Callable[[Context], Any]:
        def check(context: Context) -> Any:
            state = analysis.state_dict()
            kept = copy.deepcopy(state)
            with unchanged(context.net):
                numbers = call(context)
            assert same(state, kept), f"{event} changed a value of the state in place"
            seen.add(event)
            return numbers

        return check

    for event in vars(Callback):
        if event.startswith("on_") and getattr(type(analysis), event) is not getattr(Callback, event):
            setattr(analysis, event, watched(event, getattr(analysis, event)))
    return seen


@contextmanager
def unchanged(net: nn.Module) -> Iterator[None]:
    """Fails if anything differs afterwards."""
    before = fingerprint(net)
    yield
    after = fingerprint(net)
    assert [key for key in before if not same(before[key], after[key])] == []
