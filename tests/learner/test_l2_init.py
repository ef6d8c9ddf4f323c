"""Regenerative L2: the pull towards the first weights."""

import copy

import pytest
import torch
from learning import assert_equal_states, batches, start, state_of
from torch import nn

from plastiscope.error import ConfigError
from plastiscope.learner.l2 import L2
from plastiscope.learner.l2_init import L2Init
from plastiscope.learner.learner import Reset
from plastiscope.learner.optimizer import Optimizer
from plastiscope.learner.scope import Scope
from plastiscope.learner.trainee import Trainee
from plastiscope.net.activation import Activation
from plastiscope.net.mlp import Mlp, Norm
from tasks import make_task

SMALL = Mlp(widths=[6, 4]), (5,)


def from_ones(config: L2Init):
    """A learner whose theta_0 is 1 everywhere."""
    net = start(L2(), *SMALL).net
    for parameter in net.parameters():
        nn.init.ones_(parameter)
    other = start(L2(), *SMALL)
    return config.make(Trainee(net, other.units, other.initial_net, seed=0))


def update_without_gradient(learner, theta: float) -> float:
    for parameter in learner.net.parameters():
        nn.init.constant_(parameter, theta)
        parameter.grad = torch.zeros_like(parameter)
    learner.begin_epoch(0)
    learner.update()
    (value,) = {value.item() for parameter in learner.net.parameters() for value in parameter.flatten()}
    return value


def test_without_a_gradient_weights_go_back_by_lr_times_lambda():
    """theta_0 = 1, theta = 3, lr .1, lambda .5: 2.9."""
    learner = from_ones(L2Init(lr=0.1, momentum=0.0, strength=0.5))
    assert update_without_gradient(learner, 3.0) == pytest.approx(2.9, rel=1e-15)


def test_at_lr_times_lambda_one_weights_are_back_at_once():
    learner = from_ones(L2Init(lr=0.1, momentum=0.0, strength=10.0))
    assert update_without_gradient(learner, 3.0) == pytest.approx(1.0, rel=1e-15)


def test_a_strong_pull_keeps_the_weights_where_they_began():
    distances = []
    for strength in (0.0, 10.0, 100.0):
        learner = start(L2Init(lr=0.005, momentum=0.0, strength=strength), *SMALL)
        before = state_of(learner.net)
        for batch in batches((5,), [6] * 200):
            learner.step(batch)
        distances.append(max((p - before[name]).abs().max().item() for name, p in learner.net.named_parameters()))
    none, some, most = distances
    assert none > 5 * some > 25 * most > 0


@pytest.mark.parametrize("clip_norm", [None, 0.1])
@pytest.mark.parametrize("optimizer", [Optimizer.sgd, Optimizer.adam])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_from_zero_it_is_l2_bit_for_bit(optimizer, dtype, clip_norm):
    own = start(L2Init(optimizer=optimizer, lr=0.01, strength=0.3, clip_norm=clip_norm), *SMALL, dtype=dtype)
    plain = start(L2(optimizer=optimizer, lr=0.01, weight_decay=0.3, clip_norm=clip_norm), *SMALL, dtype=dtype)
    for first in own.origin.values():
        first.zero_()
    for batch in batches((5,), [6] * 20, dtype=dtype):
        own.step(batch)
        plain.step(batch)
    assert_equal_states(state_of(own.net), state_of(plain.net))


def test_weight_decay_is_a_pull_of_its_own():
    learner = from_ones(L2Init(lr=0.1, momentum=0.0, strength=0.5, weight_decay=0.25))
    assert update_without_gradient(learner, 3.0) == pytest.approx(3.0 - 0.1 * (0.5 * 2 + 0.25 * 3), rel=1e-15)


def test_adamw_takes_it_as_a_gradient():
    """The first step of AdamW has the size lr, whatever the gradient's."""
    learner = from_ones(L2Init(optimizer=Optimizer.adamw, lr=0.1, strength=0.5))
    assert update_without_gradient(learner, 3.0) == pytest.approx(2.9, rel=1e-7)


@pytest.mark.parametrize("scope", list(Scope))
def test_scope(scope):
    net = Mlp(widths=[6, 4], norm=Norm.layer, activation=Activation.prelu)
    learner = start(L2Init(scope=scope), net, (5,))
    left_out = {name for name, p in learner.net.named_parameters() if p not in learner.origin}
    others = {name for name in state_of(learner.net) if name.startswith(("norm", "activation"))}
    assert left_out == (others if scope is Scope.weights_biases else set())


@pytest.mark.parametrize("reset", list(Reset))
def test_what_is_initialised_anew_is_drawn_to_its_new_values(reset):
    learner = start(L2Init(reset=reset), *SMALL)
    first = state_of(learner.net)
    for batch in batches((5,), [6] * 3):
        learner.step(batch)
    learner.begin_task(make_task(3, index=2))
    fresh = learner.initial_net(2).state_dict()
    for name, parameter in learner.net.named_parameters():
        is_new = reset is Reset.network or (reset is Reset.head and name.startswith("head."))
        assert torch.equal(learner.origin[parameter], fresh[name].double() if is_new else first[name])


@pytest.mark.parametrize("reset", [Reset.nothing, Reset.head])
def test_it_goes_on_from_its_state_bit_for_bit(reset):
    config = L2Init(strength=0.1, lr=0.01, reset=reset)
    given = batches((5,), [6] * 18, dtype=torch.float32)
    whole, half, again = (start(config, *SMALL, dtype=torch.float32) for _ in range(3))
    for n, batch in enumerate(given):
        if n == 5:
            whole.begin_task(make_task(3, index=1))
            half.begin_task(make_task(3, index=1))
        whole.step(batch)
        if n < 9:
            half.step(batch)
    for parameter in again.net.parameters():
        nn.init.zeros_(parameter)
    again.net.load_state_dict(copy.deepcopy(half.net.state_dict()))
    again.load_state_dict(copy.deepcopy(half.state_dict()))
    for batch in given[9:]:
        again.step(batch)
    assert_equal_states(state_of(whole.net), state_of(again.net))
    assert_equal_states(whole.state_dict(), again.state_dict())


def test_running_statistics_are_those_of_the_batches():
    net = Mlp(widths=[6], norm=Norm.batch)
    pulled, plain = start(L2Init(lr=0.0, strength=5.0), net, (5,)), start(L2(lr=0.0), net, (5,))
    (batch,) = batches((5,), [6])
    for learner in (pulled, plain):
        learner.step(batch)
    assert_equal_states(state_of(pulled.net), state_of(plain.net))
    assert pulled.net.norm_1.num_batches_tracked == 1


def test_ranges():
    with pytest.raises(ConfigError, match="strength"):
        L2Init(strength=-1.0)
