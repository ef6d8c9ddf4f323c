"""Learners on small networks and tasks, for the tests of this folder."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from plastiscope.data.samples import Batch
from plastiscope.learner.learner import Learner, LearnerConfig
from plastiscope.learner.trainee import Trainee
from plastiscope.net.describe import describe
from plastiscope.net.net import NetConfig
from tasks import make_task


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


def goes_on_from_its_state(config: LearnerConfig, net: NetConfig, shape: tuple[int, ...]) -> None:
    """Assert that a learner which takes back its state after 5 of 12 steps ends as one that never stopped."""
    given = batches(shape, [6] * 12, dtype=torch.float32)
    whole, half, again = (start(config, net, shape, dtype=torch.float32) for _ in range(3))
    for batch in given:
        whole.step(batch)
    for batch in given[:5]:
        half.step(batch)
    again.net.load_state_dict(half.net.state_dict())
    again.load_state_dict(copy.deepcopy(half.state_dict()))
    for batch in given[5:]:
        again.step(batch)
    assert_equal_states(whole.state_dict(), again.state_dict())
    assert_equal_states(dict(whole.net.state_dict()), dict(again.net.state_dict()))


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
