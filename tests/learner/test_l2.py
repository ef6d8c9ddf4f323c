"""L2: weight decay as a learner of its own."""

import torch
from learning import assert_equal_states, batches, start, state_of
from torch import nn

from plans import make_plan
from plastiscope.learner.backprop import Backprop
from plastiscope.learner.l2 import L2
from plastiscope.learner.optimizer import Optimizer
from plastiscope.net.mlp import Mlp

SMALL = Mlp(widths=[6, 4]), (5,)


def test_without_a_gradient_weights_shrink_by_lr_times_lambda():
    """With theta = 2, lr .1, lambda .5: the penalty is lambda/2 theta^2, so theta becomes 1.9."""
    learner = start(L2(lr=0.1, momentum=0.0, weight_decay=0.5), *SMALL)
    for parameter in learner.net.parameters():
        nn.init.constant_(parameter, 2.0)
        parameter.grad = torch.zeros_like(parameter)
    learner.update()
    for parameter in learner.net.parameters():
        torch.testing.assert_close(parameter, torch.full_like(parameter, 1.9), rtol=1e-15, atol=0)


def test_adamw_decays_apart_from_the_moments():
    learner = start(L2(lr=0.1, weight_decay=0.5, optimizer=Optimizer.adamw), *SMALL)
    before = state_of(learner.net)
    for parameter in learner.net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    learner.update()
    for name, parameter in learner.net.named_parameters():
        torch.testing.assert_close(parameter, before[name] * 0.95, rtol=1e-15, atol=0)


def test_it_is_backprop_with_weight_decay():
    one, other = start(L2(), *SMALL), start(Backprop(weight_decay=1e-4), *SMALL)
    plain = start(Backprop(), *SMALL)
    for batch in batches((5,), [6] * 3):
        for learner in (one, other, plain):
            learner.step(batch)
    assert_equal_states(state_of(one.net), state_of(other.net))
    assert not torch.equal(one.net.head.weight, plain.net.head.weight)


def test_the_setting_is_that_of_every_learner():
    assert make_plan("learner=l2").learner.weight_decay == 1e-4
    assert make_plan("learner=l2", "learner.weight_decay=3e-6").learner.weight_decay == 3e-6
