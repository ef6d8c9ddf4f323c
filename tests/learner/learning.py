"""Learners on small networks and tasks, for the tests of this folder."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from plastiscope.data.samples import ArraySource, Batch, Samples
from plastiscope.learner.learner import Learner, LearnerConfig
from plastiscope.learner.trainee import Trainee
from plastiscope.measure.loss import Loss
from plastiscope.net.describe import describe
from plastiscope.net.net import NetConfig
from plastiscope.task_shift_mode.task import NewHead, Task


def make_task(outputs: int, index: int = 0, loss: Loss = Loss.cross_entropy) -> Task:
    rows = torch.arange(4)
    samples = Samples(
        source=ArraySource(torch.randn(4, 2), rows),
        split="train",
        rows=rows,
        labels=rows,
        clean_labels=rows,
        targets=rows,
    )
    return Task(
        index=index,
        train=samples,
        validation=None,
        test=samples,
        new_train=samples,
        new_test=samples,
        classes=tuple(range(outputs)),
        active_outputs=outputs,
        loss=loss,
        new_head=NewHead.keep,
        numbers={},
    )


def start(
    config: LearnerConfig,
    net: NetConfig,
    shape: tuple[int, ...],
    outputs: int = 3,
    dtype: torch.dtype = torch.float64,
    epochs: int | None = None,
) -> Any:
    """A learner at the beginning of a task, with its network in training mode."""

    def initial_net(k: int) -> nn.Module:
        with torch.random.fork_rng([]):
            torch.manual_seed(k)
            return net.make(shape, outputs)

    module = initial_net(0)
    units = describe(module, torch.zeros(2, *shape))
    module.to(dtype)
    if getattr(module, "prefers_channels_last", False):
        module.to(memory_format=torch.channels_last)
    learner = config.make(Trainee(module, units, initial_net, seed=0))
    learner.take_up(make_task(outputs))
    learner.begin_epoch(0, epochs)
    module.train()
    return learner


def batches(
    shape: tuple[int, ...], sizes: list[int], outputs: int = 3, seed: int = 0, dtype: torch.dtype = torch.float64
) -> list[Batch]:
    generator = torch.Generator().manual_seed(seed)
    made = []
    for n in sizes:
        x = torch.randn(n, *shape, dtype=dtype, generator=generator)
        made.append(Batch(x, torch.randint(outputs, (n,), generator=generator), torch.arange(n)))
    return made


def before_mechanism(learner: Learner, look: Callable[[], None]) -> None:
    """Call `look` in each step after the optimiser and before the learner's own mechanism."""
    mechanism = learner.mechanism

    def looked() -> None:
        look()
        mechanism()

    learner.mechanism = looked  # type: ignore[method-assign]


def state_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def flat(state: Any, prefix: str = "") -> dict[str, Any]:
    """Nested containers as one dictionary of leaves."""
    items = state.items() if isinstance(state, dict) else enumerate(state)
    leaves: dict[str, Any] = {}
    for key, value in items:
        inner = isinstance(value, dict | list | tuple)
        leaves |= flat(value, f"{prefix}{key}.") if inner else {f"{prefix}{key}": value}
    return leaves


def assert_equal_states(one: Any, other: Any) -> None:
    """All tensors bit for bit, all numbers."""
    first, second = flat(one), flat(other)
    assert first.keys() == second.keys()
    for key, value in first.items():
        if isinstance(value, Tensor):
            assert torch.equal(value, second[key]), key
        else:
            assert value == second[key], key
