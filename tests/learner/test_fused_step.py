"""The kernel alone is torch's own step, bit for bit, and leaves torch's own state."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from learning import assert_equal_states
from torch import Tensor

from plastiscope.learner.fused_step import fused_step

SHAPES = ((5, 3), (5,), (2, 4, 3))
MAKERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, fused=True),
    "sgd, decay": lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.1, fused=True),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1, fused=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.1, weight_decay=0.1, betas=(0.8, 0.95), eps=1e-3, fused=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.1, fused=True),
    "not fused": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, fused=True),
    "amsgrad": lambda p: torch.optim.Adam(p, lr=0.1, amsgrad=True, fused=True),
}


def parameters() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


@pytest.mark.parametrize("is_grouped", [False, True])
@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_steps_are_those_of_the_optimiser(make, is_grouped):
    sides = []
    for _ in range(2):
        own = parameters()
        groups = [{"params": own[:1]}, {"params": own[1:], "lr": 0.03, "weight_decay": 0.0}] if is_grouped else own
        sides.append((own, make(groups)))
    generator = torch.Generator().manual_seed(1)
    for step in range(7):
        for shape, *both in zip(SHAPES, *(own for own, _ in sides), strict=True):
            gradient = torch.randn(shape, generator=generator)
            for parameter in both:
                parameter.grad = None if step == 5 and len(shape) == 1 else gradient.clone()
        fused_step(sides[0][1])
        sides[1][1].step()
        if step == 3:
            for _, optimizer in sides:
                optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
                optimizer.param_groups[0]["lr"] = 0.02
        assert all(torch.equal(*both) for both in zip(*(own for own, _ in sides), strict=True))
        assert_equal_states(sides[0][1].state_dict(), sides[1][1].state_dict())


def test_hooks_of_the_optimiser_are_called():
    own, called = parameters(), []
    optimizer = MAKERS["sgd"](own)
    optimizer.register_step_post_hook(lambda *_: called.append(1))
    for parameter in own:
        parameter.grad = torch.ones_like(parameter)
    fused_step(optimizer)
    assert called == [1]


def test_the_kernel_is_called_alone(monkeypatch):
    """From the second step on of those that keep something, from the first of plain SGD."""
    own = parameters()
    optimizer = MAKERS["adam"](own)
    for parameter in own:
        parameter.grad = torch.ones_like(parameter)
    fused_step(optimizer)
    monkeypatch.setattr(optimizer, "step", lambda: pytest.fail("the whole step"))
    before = [parameter.detach().clone() for parameter in own]
    fused_step(optimizer)
    assert not any(torch.equal(*both) for both in zip(own, before, strict=True))
