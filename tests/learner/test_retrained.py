"""A fresh network for each task."""

import pytest
import torch
from learning import assert_equal_states, batches, start, state_of

from plastiscope.learner.optimizer import Optimizer
from plastiscope.learner.retrained import Retrained
from plastiscope.learner.trainee import Trainee
from plastiscope.net.convnet import ConvNet
from plastiscope.net.mlp import Mlp, Norm
from plastiscope.net.resnet18 import ResNet18
from tasks import make_task

NETS = {
    "mlp": (Mlp(widths=[6, 4], norm=Norm.batch), (5,)),
    "convnet": (ConvNet(channels=[6, 8], kernel_sizes=[3, 3], widths=[9]), (2, 14, 14)),
    "resnet18": (ResNet18(width=4), (3, 8, 8)),
}


@pytest.mark.parametrize("net", NETS)
def test_network_and_buffers_are_those_of_a_fresh_network_and_the_optimiser_knows_nothing(net):
    learner = start(Retrained(), *NETS[net], dtype=torch.float32)
    for batch in batches(NETS[net][1], [6, 6], dtype=torch.float32):
        learner.step(batch)
    learner.begin_task(make_task(3, index=4))
    assert_equal_states(state_of(learner.net), state_of(learner.initial_net(4)))
    assert not any(value.any() for state in learner.optimizer.state.values() for value in state.values())


def test_running_statistics_start_at_mean_zero_and_variance_one():
    learner = start(Retrained(), *NETS["resnet18"])
    learner.step(batches((3, 8, 8), [6])[0])
    assert learner.net.bn1.running_mean.any()
    learner.begin_task(make_task(3, index=1))
    assert not learner.net.bn1.running_mean.any()
    assert (learner.net.bn1.running_var == 1).all() and learner.net.bn1.num_batches_tracked == 0


@pytest.mark.parametrize("optimizer", list(Optimizer))
def test_training_goes_on_as_that_of_a_fresh_learner(optimizer):
    config, shape = Retrained(optimizer=optimizer, lr=0.01), NETS["mlp"][1]
    learner = start(config, *NETS["mlp"], dtype=torch.float32)
    for batch in batches(shape, [6, 6], dtype=torch.float32):
        learner.step(batch)
    learner.begin_task(make_task(3, index=1))
    fresh = config.make(Trainee(learner.initial_net(1).train(), learner.units, learner.initial_net, seed=0))
    fresh.take_up(make_task(3))
    fresh.begin_epoch(0)
    for batch in batches(shape, [6] * 4, seed=1, dtype=torch.float32):
        learner.step(batch)
        fresh.step(batch)
    assert_equal_states(state_of(learner.net), state_of(fresh.net))


def test_the_first_task_keeps_the_initialisation():
    learner = start(Retrained(), *NETS["mlp"])
    before = state_of(learner.net)
    learner.begin_task(make_task(3, index=0))
    assert_equal_states(state_of(learner.net), before)
