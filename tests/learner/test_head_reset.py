"""A fresh head for each task."""

import pytest
import torch
from learning import batches, start, state_of

from plastiscope.learner.head_reset import HeadReset
from plastiscope.learner.optimizer import Optimizer
from plastiscope.net.convnet import ConvNet
from plastiscope.net.mlp import Mlp, Norm
from plastiscope.net.resnet18 import ResNet18
from tasks import make_task

NETS = {
    "mlp": (Mlp(widths=[6, 4], norm=Norm.batch), (5,)),
    "convnet": (ConvNet(channels=[6, 8], kernel_sizes=[3, 3], widths=[9]), (2, 14, 14)),
    "resnet18": (ResNet18(width=4), (3, 8, 8)),
}


@pytest.mark.parametrize("optimizer", [Optimizer.sgd, Optimizer.adam])
@pytest.mark.parametrize("net", NETS)
def test_the_head_and_what_the_optimiser_knows_of_it_start_anew(net, optimizer):
    learner = start(HeadReset(optimizer=optimizer, lr=0.01), *NETS[net])
    for batch in batches(NETS[net][1], [6, 6]):
        learner.step(batch)
    before, fresh = state_of(learner.net), learner.initial_net(2)
    learner.begin_task(make_task(3, index=2))
    head = learner.units.head
    for name, value in learner.net.state_dict().items():
        expected = fresh.state_dict()[name].to(value.dtype) if name.startswith(f"{head}.") else before[name]
        assert torch.equal(value, expected), name
    for name, parameter in learner.net.named_parameters():
        kept = learner.optimizer.state[parameter].values()
        assert any(value.any() for value in kept) is not name.startswith(f"{head}.")


def test_the_first_task_keeps_its_head():
    learner = start(HeadReset(), *NETS["mlp"])
    before = state_of(learner.net)
    learner.begin_task(make_task(3, index=0))
    assert torch.equal(learner.net.head.weight, before["head.weight"])


def test_each_task_has_another_head():
    learner = start(HeadReset(), *NETS["mlp"])
    heads = []
    for k in (1, 2, 1):
        learner.begin_task(make_task(3, index=k))
        heads.append(learner.net.head.weight.detach().clone())
    assert torch.equal(heads[0], heads[2])
    assert not torch.equal(heads[0], heads[1])


def test_the_head_of_the_published_residual_network_is_normal_with_gain_one_and_bias_zero():
    learner = start(HeadReset(), ResNet18(width=64), (3, 8, 8), outputs=100)
    learner.begin_task(make_task(100, index=1))
    weight = learner.net.fc.weight
    assert weight.std().item() == pytest.approx(512**-0.5, rel=0.02)
    assert not learner.net.fc.bias.any()
