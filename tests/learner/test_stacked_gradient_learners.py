"""Gradient learners on networks that advance together: each run is as alone."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from learning import batches, start
from torch import Tensor, nn

from plastiscope.data.samples import Batch
from plastiscope.learner.backprop import Backprop
from plastiscope.learner.effective_lr import EffectiveLrMode
from plastiscope.learner.head_reset import HeadReset
from plastiscope.learner.l2 import L2
from plastiscope.learner.l2_init import L2Init
from plastiscope.learner.layer_rates import LayerLr
from plastiscope.learner.learner import LearnerConfig
from plastiscope.learner.optimizer import Optimizer
from plastiscope.learner.retrained import Retrained
from plastiscope.learner.scope import Scope
from plastiscope.learner.shrink_and_perturb import ShrinkAndPerturb
from plastiscope.learner.shrink_and_perturb_task import ShrinkAndPerturbTask
from plastiscope.learner.trainee import Trainee
from plastiscope.net.activation import Activation
from plastiscope.net.convnet import ConvNet
from plastiscope.net.layers import Kind, Layers
from plastiscope.net.mlp import Mlp, Norm
from plastiscope.net.net import NetConfig
from plastiscope.net.stacked import stack
from tasks import make_task

SEEDS = [0, 3, 8]
NETS: dict[str, tuple[NetConfig, tuple[int, ...]]] = {
    "batch": (Mlp(widths=[7, 6], norm=Norm.batch), (5,)),
    "layer, prelu": (Mlp(widths=[7, 6], norm=Norm.layer, activation=Activation.prelu), (5,)),
    "weight_normalised": (Mlp(widths=[7, 6], layers=Layers(kind=Kind.weight_normalised)), (5,)),
    "convnet": (ConvNet(channels=[4, 5], kernel_sizes=[3, 3], widths=[6], norm=Norm.batch), (2, 14, 14)),
}
CONFIGS: dict[str, LearnerConfig] = {
    "l2": L2(weight_decay=0.1),
    "l2_init": L2Init(strength=0.3),
    "l2_init, weights": L2Init(strength=0.3, scope=Scope.weights_biases, clip_norm=0.5),
    "head_reset": HeadReset(),
    "retrained": Retrained(),
    "shrink_and_perturb": ShrinkAndPerturb(noise_std=0.1),
    "shrink_and_perturb, weights": ShrinkAndPerturb(noise_std=0.1, scope=Scope.weights_biases),
    "shrink_and_perturb_task": ShrinkAndPerturbTask(noise_std=0.1),
    "depth and period": Backprop(layer_lr=LayerLr(depth_decay=0.5, update_period=2)),
    "scale": Backprop(effective_lr=0.05, momentum=0.5),
    # A larger eps, for biases before a batch norm have nothing but rounding errors as gradients.
    "scale, adam": Backprop(effective_lr=0.05, lr=0.01, optimizer=Optimizer.adam, eps=1e-3),
    "project": Backprop(effective_lr_mode=EffectiveLrMode.project),
}


def fresh(net: NetConfig, shape: tuple[int, ...], seed: int, k: int) -> nn.Module:
    """The k-th fresh network of a run."""
    with torch.random.fork_rng([]):
        torch.manual_seed(1000 * seed + k)
        return net.make(shape, 3).double()


def make(config: LearnerConfig, net: NetConfig, shape: tuple[int, ...]) -> tuple[Any, list[Any]]:
    """The learner of the stack, and those of the runs alone."""
    units = start(Backprop(), net, shape).units
    singles = [
        config.make(Trainee(fresh(net, shape, seed, 0), units, lambda k, seed=seed: fresh(net, shape, seed, k), seed))
        for seed in SEEDS
    ]

    def stacked(k: int) -> nn.Module:
        return stack([fresh(net, shape, seed, k) for seed in SEEDS])

    return config.make(Trainee(stacked(0), units, stacked, SEEDS, 1)), singles


def assert_as_alone(together: Any, singles: list[Any]) -> None:
    for r, alone in enumerate(singles):
        stacked = together.net.state_dict()
        for name, value in alone.net.state_dict().items():
            torch.testing.assert_close(stacked[name][r], value, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_each_of_several_runs_is_as_alone(config, net):
    together, singles = make(config, *NETS[net])
    learners = [together, *singles]
    shape = NETS[net][1]
    streams = [batches(shape, [6] * 10, seed=seed) for seed in SEEDS]
    for k in range(2):
        for learner in learners:
            learner.take_up(make_task(3, index=k))
            learner.begin_task(learner.task)
            learner.begin_epoch(0)
            learner.net.train()
        for n in range(5 * k, 5 * k + 5):
            own = [stream[n] for stream in streams]
            inputs, targets = (torch.stack([getattr(batch, part) for batch in own]) for part in ("inputs", "targets"))
            losses, _ = together.step(Batch(inputs, targets, own[0].ids))
            for r, alone in enumerate(singles):
                torch.testing.assert_close(losses[r], alone.step(own[r])[0], rtol=1e-9, atol=1e-11)
    assert_as_alone(together, singles)
    values: list[Tensor] = [p for _, p in together.net.named_parameters()]
    assert not any(torch.equal(value[0], value[1]) for value in values if value.ndim > 2)


PLAIN = [name for name in CONFIGS if not name.startswith(("scale", "project"))]


@pytest.mark.parametrize("name", PLAIN)
def test_with_gradients_by_hand_they_are_the_same(name):
    """In a plain network, to rounding; also a learner that has a gradient or an update of its own."""
    learners = [start(replace(CONFIGS[name], autograd=by_hand), Mlp(widths=[7, 6]), (5,)) for by_hand in (True, False)]
    for k in range(2):
        for learner in learners:
            learner.take_up(make_task(3, index=k))
            learner.begin_task(learner.task)
            for batch in batches((5,), [6] * 5, seed=k):
                learner.step(batch)
    one, other = (dict(learner.net.state_dict()) for learner in learners)
    for path, value in one.items():
        torch.testing.assert_close(other[path], value, rtol=1e-9, atol=1e-11)
