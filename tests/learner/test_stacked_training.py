"""Runs on stacked networks, through their own forward and backward: each trains as it does alone."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from learning import state_of
from torch import nn

from plastiscope.data.samples import Batch
from plastiscope.error import ConfigError
from plastiscope.learner.backprop import Backprop
from plastiscope.learner.continual_backprop import ContinualBackprop
from plastiscope.learner.learner import LearnerConfig
from plastiscope.learner.optimizer import Optimizer
from plastiscope.learner.redo import Redo
from plastiscope.learner.replacement import Init
from plastiscope.learner.trainee import Trainee
from plastiscope.learner.unit_parameters import ResidualMode
from plastiscope.measure.loss import Loss
from plastiscope.net.activation import Activation
from plastiscope.net.chain import Norm
from plastiscope.net.convnet import ConvNet
from plastiscope.net.mlp import Mlp
from plastiscope.net.net import NetConfig
from plastiscope.net.resnet18 import ResNet18
from plastiscope.net.stacked import stack, unstacked_state
from plastiscope.net.vit import Vit
from tasks import make_task

SEEDS = [3, 8]
STEPS, OUTPUTS = 6, 3
NETS: dict[str, tuple[NetConfig, tuple[int, ...]]] = {
    "mlp": (Mlp(widths=[9, 7]), (5,)),
    "mlp, batch norm, crelu": (Mlp(widths=[9, 7], norm=Norm.batch, activation=Activation.crelu), (5,)),
    "convnet": (ConvNet(channels=[4, 5], kernel_sizes=[3, 2], widths=[7], norm=Norm.batch), (3, 13, 13)),
    "resnet18": (ResNet18(width=4), (3, 16, 16)),
}
REPLACING: dict[str, Any] = {"replacement_rate": 0.1, "maturity_threshold": 2, "lr": 0.002}
CONFIGS: dict[str, LearnerConfig] = {
    "sgd": Backprop(momentum=0.0, lr=0.002),
    "momentum": Backprop(weight_decay=0.01, clip_norm=0.5, lr=0.002),
    "adam": Backprop(optimizer=Optimizer.adam, lr=0.001),
    "cbp": ContinualBackprop(**REPLACING),
    "cbp, adam": ContinualBackprop(optimizer=Optimizer.adam, init=Init.normal, **REPLACING),
    "redo": Redo(reset_period=3, tau=0.9, lr=0.002),
}


def networks(name: str) -> list[nn.Module]:
    config, shape = NETS[name]
    made = []
    for seed in SEEDS:
        torch.manual_seed(seed)
        made.append(config.make(shape, OUTPUTS).double().train())
    return made


def learner_of(config: LearnerConfig, net: nn.Module, units: Any, seed: Any, lead: int) -> Any:
    learner = config.make(Trainee(net, units, lambda k: net, seed, lead))
    learner.take_up(make_task(OUTPUTS, loss=Loss.cross_entropy))
    learner.begin_epoch(0)
    return learner


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("name", NETS)
def test_each_run_trains_as_alone(name, config):
    if name == "resnet18" and isinstance(config, ContinualBackprop) and config.optimizer is Optimizer.adam:
        config = replace(config, residual_mode=ResidualMode.group)
    nets = networks(name)
    units, stacked = nets[0].unit_description(), stack(nets)  # type: ignore[operator]
    group = learner_of(config, stacked, units, SEEDS, 1)
    alone = [learner_of(config, net, units, seed, 0) for net, seed in zip(nets, SEEDS, strict=True)]
    generator = torch.Generator().manual_seed(1)
    for step in range(STEPS):
        shape = (len(SEEDS), 4 - step % 2)
        inputs = torch.randn(*shape, *NETS[name][1], dtype=torch.float64, generator=generator)
        targets, ids = torch.randint(OUTPUTS, shape, generator=generator), torch.zeros(shape, dtype=torch.int64)
        losses, outputs = group.step(Batch(inputs, targets, ids))
        for r, learner in enumerate(alone):
            own = learner.step(Batch(inputs[r], targets[r], ids[r]))
            torch.testing.assert_close((losses[r], outputs[r]), own, rtol=1e-8, atol=1e-9)
    for r, learner in enumerate(alone):
        own = unstacked_state(stacked, r)
        for key, value in state_of(learner.net).items():
            torch.testing.assert_close(own[key], value, rtol=1e-7, atol=1e-8)
        if not isinstance(config, Backprop):
            assert any(value.any() for value in learner.generations.values())
            assert all(torch.equal(group.generations[key][r], value) for key, value in learner.generations.items())


def test_units_of_networks_that_run_as_a_whole_cannot_be_heard():
    net = Vit(depth=1, width=8, heads=2, hidden=6, patch=4).make((1, 8, 8), OUTPUTS)
    with pytest.raises(ConfigError, match="advance together only as a whole"):
        learner_of(Redo(), stack([net, net]), net.unit_description(), SEEDS, 1)  # type: ignore[operator]
