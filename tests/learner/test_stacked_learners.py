"""Rules on stacked parameters: runs that advance together replace the same units, with the same weights, as alone."""

import copy
from typing import Any

import pytest
import torch
from learning import start
from torch import Tensor, nn

from plastiscope.learner.budget import Count
from plastiscope.learner.continual_backprop import ContinualBackprop, ContinualBackpropLearner
from plastiscope.learner.optimizer import Optimizer
from plastiscope.learner.redo import Redo, RedoLearner
from plastiscope.learner.replacement import Init, ReplacingConfig
from plastiscope.learner.trainee import Trainee
from plastiscope.learner.unit_statistics import UtilityType
from plastiscope.net.mlp import Mlp

SEEDS = [0, 3, 8]
NET, SHAPE, WIDTHS = Mlp(widths=[9, 7]), (5,), (9, 7)
LEARNERS: dict[type[ReplacingConfig], Any] = {ContinualBackprop: ContinualBackpropLearner, Redo: RedoLearner}


def together(config: ReplacingConfig, nets: list[nn.Module], seeds: list[int] = SEEDS) -> Any:
    """A learner on a module whose parameters are those of the networks, stacked; its forward is not used."""
    stacked = copy.deepcopy(nets[0])
    for path, _ in nets[0].named_parameters():
        values = torch.stack([net.get_parameter(path).detach() for net in nets])
        module, _, name = path.rpartition(".")
        setattr(stacked.get_submodule(module), name, nn.Parameter(values))
    units = nets[0].unit_description()
    return LEARNERS[type(config)](config, Trainee(stacked, units, lambda k: nets[0], seeds, lead=1))


def alone(config: ReplacingConfig, seed: int) -> Any:
    learner = start(config, NET, SHAPE)
    with torch.no_grad():
        for parameter in learner.net.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)) * 0.1)
    return LEARNERS[type(config)](config, Trainee(learner.net, learner.units, learner.initial_net, seed))


def advance(learner: Any, gradients: dict[str, Tensor], features: list[Tensor]) -> None:
    """A step whose gradients and features are given."""
    for name, parameter in learner.net.named_parameters():
        parameter.grad = gradients[name].clone()
    learner.optimizer.step()
    learner.features.give(features)
    learner.mechanism()


CONFIGS = {
    **{
        f"{kind.value}, {optimizer.value}": ContinualBackprop(
            util_type=kind, optimizer=optimizer, replacement_rate=0.1, maturity_threshold=3, lr=0.01
        )
        for kind in (UtilityType.contribution, UtilityType.adaptable_contribution, UtilityType.random)
        for optimizer in (Optimizer.sgd, Optimizer.adam)
    },
    "normal": ContinualBackprop(init=Init.normal, replacement_rate=0.1, maturity_threshold=3),
    "drawn": ContinualBackprop(accumulate=False, replacement_rate=0.05, maturity_threshold=3),
    "drawn, all, adam": ContinualBackprop(
        accumulate=False,
        count=Count.all,
        replacement_rate=0.15,
        maturity_threshold=3,
        optimizer=Optimizer.adam,
        lr=0.01,
    ),
    "redo, sgd": Redo(reset_period=4, tau=0.9, lr=0.01),
    "redo, adam": Redo(reset_period=4, tau=0.9, lr=0.01, optimizer=Optimizer.adam),
}


@pytest.mark.parametrize("samples", [1, 4])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_each_of_several_runs_is_as_alone(config, samples):
    singles = [alone(config, seed) for seed in SEEDS]
    stack = together(config, [learner.net for learner in singles])
    generator = torch.Generator().manual_seed(1)
    for _ in range(45):
        features = [torch.randn(3, samples, width, generator=generator, dtype=torch.float64).relu() for width in WIDTHS]
        gradients = {
            name: torch.randn(p.shape, generator=generator, dtype=torch.float64)
            for name, p in stack.net.named_parameters()
        }
        advance(stack, gradients, features)
        for r, learner in enumerate(singles):
            advance(learner, {name: g[r] for name, g in gradients.items()}, [h[r] for h in features])
    for r, learner in enumerate(singles):
        assert any(value.any() for value in learner.generations.values())
        for name, value in learner.generations.items():
            assert torch.equal(stack.generations[name][r], value)
        for name, parameter in learner.net.named_parameters():
            torch.testing.assert_close(stack.net.get_parameter(name)[r], parameter, rtol=1e-9, atol=1e-12)
    if isinstance(config, Redo):
        counts = [[int(learner.replaced[name]) for learner in singles] for name in ("linear_1", "linear_2")]
        assert [stack.replaced[name].tolist() for name in ("linear_1", "linear_2")] == counts
