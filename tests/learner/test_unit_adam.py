"""Adam with steps per unit: torch's own until something is set back, and then the formula element by element."""

import copy
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from plastiscope.learner.adam import UnitAdam
from plastiscope.learner.replacement import forget
from plastiscope.learner.unit_parameters import ByIndex, Slices

LR, BETAS, EPS = 0.1, (0.9, 0.99), 1e-6
SETTINGS = [(0.0, False), (0.1, False), (0.1, True)]
settings = pytest.mark.parametrize(("weight_decay", "decoupled"), SETTINGS, ids=["plain", "coupled", "decoupled"])


def parameters(dtype: torch.dtype = torch.float64) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(4, 3, 2, 2), (4,), (5, 8)]
    return [nn.Parameter(torch.randn(*shape, generator=generator, dtype=dtype)) for shape in shapes]


def run(optimizer: torch.optim.Optimizer, own: list[nn.Parameter], steps: range) -> None:
    for step in steps:
        for i, parameter in enumerate(own):
            generator = torch.Generator().manual_seed(100 * step + i)
            parameter.grad = torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(parameter)
        optimizer.step()


def make(own: list[nn.Parameter], weight_decay: float, decoupled: bool, lead: int = 0) -> UnitAdam:
    return UnitAdam(own, LR, BETAS, EPS, weight_decay, decoupled, lead)


def torchs(own: list[nn.Parameter], weight_decay: float, decoupled: bool) -> torch.optim.Optimizer:
    kind = torch.optim.AdamW if decoupled else torch.optim.Adam
    return kind(own, lr=LR, betas=BETAS, eps=EPS, weight_decay=weight_decay, fused=True)


@settings
def test_it_is_torchs_own_bit_for_bit_while_nothing_is_set_back(weight_decay, decoupled):
    ours, theirs = parameters(torch.float32), parameters(torch.float32)
    run(make(ours, weight_decay, decoupled), ours, range(20))
    run(torchs(theirs, weight_decay, decoupled), theirs, range(20))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@settings
def test_ages_that_nothing_sets_back_change_it_by_rounding_alone(weight_decay, decoupled):
    ours, theirs = parameters(), parameters()
    optimizer, reference = make(ours, weight_decay, decoupled), torchs(theirs, weight_decay, decoupled)
    run(optimizer, ours, range(5))
    run(reference, theirs, range(5))
    for axis, parameter in ((0, ours[0]), (1, ours[0]), (0, ours[1]), (1, ours[2])):
        assert optimizer.ages(parameter, axis).eq(5).all()
    run(optimizer, ours, range(5, 40))
    run(reference, theirs, range(5, 40))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-13)


class ElementwiseAdam:
    """The formula, each element with its own step count."""

    def __init__(self, theta: Tensor, weight_decay: float, decoupled: bool) -> None:
        self.theta, self.weight_decay, self.decoupled = theta.detach().clone(), weight_decay, decoupled
        self.m, self.v, self.t = (torch.zeros_like(theta) for _ in range(3))

    def step(self, g: Tensor) -> None:
        if self.decoupled:
            self.theta -= LR * self.weight_decay * self.theta
        else:
            g = g + self.weight_decay * self.theta
        self.t += 1
        self.m = BETAS[0] * self.m + (1 - BETAS[0]) * g
        self.v = BETAS[1] * self.v + (1 - BETAS[1]) * g * g
        m, v = self.m / (1 - BETAS[0] ** self.t), self.v / (1 - BETAS[1] ** self.t)
        self.theta -= LR * m / (v.sqrt() + EPS)

    def reset(self, where: tuple) -> None:
        for state in (self.m, self.v, self.t):
            state[where] = 0.0


RESETS = {3: ("row", 1), 4: ("columns", 2), 9: ("row", 1), 12: ("row", 3), 13: ("columns", 0)}


@settings
def test_each_element_counts_its_own_steps(weight_decay, decoupled):
    """Rows of the first parameter and its bias, blocks of two columns of the last, set back at several steps."""
    own = parameters()
    references = [ElementwiseAdam(p, weight_decay, decoupled) for p in own]
    optimizer = make(own, weight_decay, decoupled)
    rows, bias = Slices("w", own[0], 0, 4), Slices("b", own[1], 0, 4)
    blocks = Slices("v", own[2], 1, 4, block=2)
    inputs = Slices("w", own[0], 1, 3)
    for step in range(25):
        if step in RESETS:
            kind, unit = RESETS[step]
            chosen = ByIndex(torch.tensor([unit]))
            for slices in (rows, bias) if kind == "row" else (blocks, inputs):
                forget(optimizer, slices, chosen)
            if kind == "row":
                references[0].reset((unit,))
                references[1].reset((unit,))
            else:
                references[2].reset((slice(None), slice(2 * unit, 2 * unit + 2)))
                references[0].reset((slice(None), unit))
        run(optimizer, own, range(step, step + 1))
        for parameter, reference in zip(own, references, strict=True):
            reference.step(parameter.grad)
            torch.testing.assert_close(parameter.detach(), reference.theta, rtol=1e-12, atol=1e-12)


def test_stacked_parameters_are_updated_as_each_alone():
    singles = [[nn.Parameter(p.detach() * k) for p in parameters()] for k in (1, 2, 3)]
    stacked = [nn.Parameter(torch.stack([s[i].detach() for s in singles])) for i in range(3)]
    alone = [make(own, 0.1, False) for own in singles]
    together = make(stacked, 0.1, False, lead=1)
    units = torch.tensor([[1], [3], [0]])
    for step in range(8):
        for own, optimizer in zip(singles, alone, strict=True):
            run(optimizer, own, range(step, step + 1))
        for i, parameter in enumerate(stacked):
            parameter.grad = torch.stack([own[i].grad for own in singles])
        together.step()
        if step in (2, 5):
            for i, axis in ((0, 0), (1, 0), (0, 1)):
                width = 3 if axis else 4
                ids = units.clamp(max=width - 1)
                forget(together, Slices("", stacked[i], axis, width, lead=1), ByIndex(ids))
                for own, optimizer, unit in zip(singles, alone, ids, strict=True):
                    forget(optimizer, Slices("", own[i], axis, width), ByIndex(unit))
    for i, parameter in enumerate(stacked):
        torch.testing.assert_close(parameter.detach(), torch.stack([own[i].detach() for own in singles]))


def test_it_goes_on_from_its_state():
    own = parameters(torch.float32)
    optimizer = make(own, 0.1, True)
    run(optimizer, own, range(6))
    forget(optimizer, Slices("w", own[0], 0, 4), ByIndex(torch.tensor([2])))
    forget(optimizer, Slices("v", own[2], 1, 4, block=2), ByIndex(torch.tensor([2])))
    run(optimizer, own, range(6, 9))
    others = [nn.Parameter(p.detach().clone()) for p in own]
    other = make(others, 0.1, True)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for each, parameters_of in ((optimizer, own), (other, others)):
        run(each, parameters_of, range(9, 14))
    assert all(torch.equal(a, b) for a, b in zip(own, others, strict=True))


@pytest.mark.parametrize("kind", ["adam", "sgd"])
def test_what_is_forgotten_is_the_units_own_and_nothing_else(kind):
    own = parameters()
    makers = {"adam": partial(make, weight_decay=0.0, decoupled=False), "sgd": partial(torch.optim.SGD, momentum=0.9)}
    optimizer = makers[kind](own)
    run(optimizer, own, range(3))
    before = copy.deepcopy(optimizer.state_dict()["state"])
    forget(optimizer, Slices("v", own[2], 1, 4, block=2), ByIndex(torch.tensor([1])))
    after = optimizer.state_dict()["state"]
    for key, value in after[2].items():
        if value.shape == own[2].shape:
            assert not value[:, 2:4].any()
            assert torch.equal(value[:, [0, 1, 4, 5, 6, 7]], before[2][key][:, [0, 1, 4, 5, 6, 7]])
    for i in (0, 1):
        assert all(torch.equal(value, before[i][key]) for key, value in after[i].items())


def test_before_the_first_step_there_is_nothing_to_forget():
    own = parameters()
    optimizer = make(own, 0.0, False)
    forget(optimizer, Slices("w", own[0], 0, 4), ByIndex(torch.tensor([0])))
    assert not optimizer.state


def test_momentum_of_the_first_moment_may_be_0():
    own, theirs = parameters(), parameters()
    optimizer = UnitAdam(own, LR, (0.0, 0.99), EPS, 0.0)
    reference = torch.optim.Adam(theirs, lr=LR, betas=(0.0, 0.99), eps=EPS)
    run(optimizer, own, range(1))
    run(reference, theirs, range(1))
    assert optimizer.ages(own[0], 0) is not None
    run(optimizer, own, range(1, 5))
    run(reference, theirs, range(1, 5))
    torch.testing.assert_close(own[0], theirs[0], rtol=1e-12, atol=1e-12)
