"""Shrink and perturb after every step: variance, scope, weight decay, and where its noise comes from."""

import copy
from typing import Any

import pytest
import torch
from learning import assert_equal_states, batches, start, state_of

from plans import make_plan
from plastiscope.error import ConfigError
from plastiscope.learner.backprop import Backprop
from plastiscope.learner.optimizer import Optimizer
from plastiscope.learner.scope import Scope
from plastiscope.learner.shrink_and_perturb import ShrinkAndPerturb
from plastiscope.learner.trainee import Trainee
from plastiscope.net.activation import Activation
from plastiscope.net.convnet import ConvNet
from plastiscope.net.layers import Kind, Layers
from plastiscope.net.mlp import Mlp, Norm

SMALL = Mlp(widths=[6, 4]), (5,)


def noise_of(learner: Any, steps: int) -> dict[str, torch.Tensor]:
    """How far parameters are after steps that only add noise."""
    before = state_of(learner.net)
    with torch.no_grad():
        for _ in range(steps):
            learner.mechanism()
    return {name: value - before[name] for name, value in learner.net.named_parameters()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_variance_after_n_steps_is_n_times_that_of_one(dtype):
    """100,000 parameters: the relative standard error of the variance is .45 %."""
    learner = start(ShrinkAndPerturb(lr=0.0, weight_decay=0.0, noise_std=1e-3), Mlp(widths=[300]), (330,), dtype=dtype)
    before = state_of(learner.net)
    for batch in batches((330,), [2] * 20, dtype=dtype):
        learner.step(batch)
    moved = torch.cat([(p - before[name]).flatten() for name, p in learner.net.named_parameters()])
    assert len(moved) > 100_000
    assert moved.var().item() == pytest.approx(20 * 1e-6, rel=0.02)
    assert abs(moved.mean().item()) < 5 * (20 * 1e-6 / len(moved)) ** 0.5


NORMED = {
    "batch": Mlp(widths=[6, 4], norm=Norm.batch),
    "layer": Mlp(widths=[6, 4], norm=Norm.layer, activation=Activation.prelu),
    "weight_normalised": Mlp(widths=[6, 4], layers=Layers(kind=Kind.weight_normalised)),
}


@pytest.mark.parametrize("scope", list(Scope))
@pytest.mark.parametrize("net", NORMED)
def test_scope(net, scope):
    """Norms, slopes and the lengths of normalised rows are left out of weights_biases."""
    learner = start(ShrinkAndPerturb(lr=0.0, noise_std=0.1, scope=scope), NORMED[net], (5,))
    moved = {name for name, change in noise_of(learner, 1).items() if change.any()}
    names = {name for name, _ in learner.net.named_parameters()}
    of_layers = {name for name in names if name.startswith(("linear_", "head."))}
    inside = {name for name in of_layers if not name.endswith("scale")}
    assert moved == (names if scope is Scope.all else inside)
    assert scope is Scope.all or moved < names


def test_a_step_is_that_of_backprop_and_then_noise():
    settings: dict[str, Any] = {"lr": 0.1, "weight_decay": 0.3, "momentum": 0.5}
    noisy = start(ShrinkAndPerturb(noise_std=0.01, **settings), *SMALL)
    plain = start(Backprop(**settings), *SMALL)
    noise = noise_of(start(ShrinkAndPerturb(noise_std=0.01), *SMALL), 1)
    (batch,) = batches((5,), [6])
    noisy.step(batch)
    plain.step(batch)
    for name, value in plain.net.named_parameters():
        torch.testing.assert_close(noisy.net.get_parameter(name), value + noise[name], rtol=0, atol=1e-15)


def test_without_noise_it_is_backprop_bit_for_bit():
    noisy, plain = start(ShrinkAndPerturb(noise_std=0.0), *SMALL), start(Backprop(weight_decay=1e-4), *SMALL)
    for batch in batches((5,), [6] * 5):
        noisy.step(batch)
        plain.step(batch)
    assert_equal_states(state_of(noisy.net), state_of(plain.net))


def test_noise_depends_on_the_seed_and_on_nothing_that_others_draw():
    one = noise_of(start(ShrinkAndPerturb(noise_std=1.0), *SMALL), 3)
    torch.rand(5)
    again, config = noise_of(start(ShrinkAndPerturb(noise_std=1.0), *SMALL), 3), ShrinkAndPerturb(noise_std=1.0)
    other = start(config, *SMALL)
    other = noise_of(config.make(Trainee(other.net, other.units, other.initial_net, seed=1)), 3)
    for name, value in one.items():
        assert torch.equal(again[name], value)
        assert not torch.equal(other[name], value)


def test_the_global_generator_is_left_alone():
    learner = start(ShrinkAndPerturb(noise_std=0.1), *SMALL)
    state = torch.get_rng_state()
    noise_of(learner, 2)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("optimizer", list(Optimizer))
def test_it_goes_on_from_its_state_bit_for_bit(optimizer):
    """Step 9 lies within a block of noise."""
    config = ShrinkAndPerturb(noise_std=0.1, lr=0.01, optimizer=optimizer)
    given = batches((5,), [6] * 18, dtype=torch.float32)
    whole, half, again = (start(config, *SMALL, dtype=torch.float32) for _ in range(3))
    for batch in given:
        whole.step(batch)
    for batch in given[:9]:
        half.step(batch)
    again.net.load_state_dict(copy.deepcopy(half.net.state_dict()))
    again.load_state_dict(copy.deepcopy(half.state_dict()))
    for batch in given[9:]:
        again.step(batch)
    assert_equal_states(state_of(whole.net), state_of(again.net))
    assert_equal_states(whole.state_dict(), again.state_dict())


def test_kernels_keep_their_memory_format():
    learner = start(
        ShrinkAndPerturb(noise_std=0.1), ConvNet(channels=[6, 8], kernel_sizes=[3, 3], widths=[9]), (2, 14, 14)
    )
    strides = {name: p.stride() for name, p in learner.net.named_parameters()}
    assert all(change.any() for change in noise_of(learner, 1).values())
    assert {name: p.stride() for name, p in learner.net.named_parameters()} == strides


@pytest.mark.parametrize("wrong", [{"noise_std": -1.0}, {"noise_std": float("nan")}])
def test_ranges(wrong):
    with pytest.raises(ConfigError, match="noise_std"):
        ShrinkAndPerturb(**wrong)


def test_an_unknown_scope_is_refused():
    with pytest.raises(ConfigError, match=r"learner\.scope"):
        make_plan("learner=shrink_and_perturb", "learner.scope=norms")
