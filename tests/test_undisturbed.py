"""What surrounds every look: nothing that a callback draws, switches or clears is left behind."""

import random

import numpy as np
import pytest
import torch
from torch import nn

from plastiscope.event import undisturbed


def draws() -> tuple[float, float, float]:
    return torch.rand(()).item(), np.random.random_sample(), random.random()


@pytest.mark.parametrize("generator", ["torch", "numpy", "python"])
@pytest.mark.parametrize("fails", [False, True])
def test_generators_go_on_as_if_nothing_had_been_drawn(generator, fails):
    place = ["torch", "numpy", "python"].index(generator)
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    expected = draws()
    torch.set_rng_state(states[0])
    np.random.set_state(states[1])
    random.setstate(states[2])
    try:
        with undisturbed(nn.Linear(1, 1, device="meta")):
            draws()
            assert not fails
    except AssertionError:
        assert fails
    assert draws()[place] == expected[place]


def test_gradients_flags_and_modes_are_as_before():
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 1))
    net[1].eval()
    net[2].bias.requires_grad_(False)
    net(torch.ones(3, 2)).sum().backward()
    before = [p.grad for p in net.parameters()]
    values = [None if grad is None else grad.clone() for grad in before]
    assert before[0] is not None and before[-1] is None
    with undisturbed(net):
        assert not any(module.training for module in net.modules())
        net.zero_grad()
        net.requires_grad_(True)
        net(torch.ones(3, 2) * 2).sum().backward()
    for p, grad, value in zip(net.parameters(), before, values, strict=True):
        assert p.grad is grad
        assert value is None or torch.equal(grad, value)
    assert [p.requires_grad for p in net.parameters()] == [True] * 5 + [False]
    assert [module.training for module in net.modules()] == [True, True, False, True]
