"""Learners that replace units on a CUDA device: no step waits for it, and the same units are fresh in the same way."""

from collections.abc import Iterator

import pytest
import torch
from learning import batches, start

from plastiscope.data.samples import Batch
from plastiscope.learner.continual_backprop import ContinualBackprop
from plastiscope.learner.learner import LearnerConfig
from plastiscope.learner.optimizer import Optimizer
from plastiscope.learner.redo import Redo
from plastiscope.learner.trainee import Trainee
from plastiscope.learner.unit_statistics import UtilityType
from plastiscope.net.convnet import ConvNet

NET, SHAPE = ConvNet(channels=[4, 5], kernel_sizes=[3, 2], widths=[6]), (2, 13, 13)
CONFIGS: dict[str, LearnerConfig] = {
    f"{kind}, {optimizer.value}": config
    for optimizer in (Optimizer.sgd, Optimizer.adam)
    for kind, config in {
        "continual_backprop": ContinualBackprop(
            optimizer=optimizer, replacement_rate=0.1, maturity_threshold=2, util_type=UtilityType.random, lr=0.0
        ),
        "redo": Redo(optimizer=optimizer, reset_period=2, tau=1e9, lr=0.0),
    }.items()
}


@pytest.fixture
def unsynchronised() -> Iterator[None]:
    """Whatever makes the host wait for the device is an error."""
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_steps_on_a_gpu_do_not_wait_and_replace_as_on_the_cpu(config, request):
    here = start(config, NET, SHAPE)
    there = start(config, NET, SHAPE)
    there.net.cuda()
    there = config.make(Trainee(there.net, there.units, there.initial_net, 0))
    there.take_up(here.task)
    there.begin_epoch(0)
    given = batches(SHAPE, [6] * 12)
    on_device = [Batch(batch.inputs.cuda(), batch.targets.cuda(), batch.ids.cuda()) for batch in given]
    for batch in given:
        here.step(batch)
    there.step(on_device[0])  # kernels and workspaces are made
    request.getfixturevalue("unsynchronised")
    for batch in on_device[1:]:
        there.step(batch)
    torch.cuda.set_sync_debug_mode("default")
    for name, value in here.generations.items():
        assert value.any()
        assert torch.equal(there.generations[name].cpu(), value)
    for name, parameter in here.net.named_parameters():
        torch.testing.assert_close(there.net.get_parameter(name).cpu(), parameter)
