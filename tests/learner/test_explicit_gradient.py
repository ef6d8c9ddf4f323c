"""Steps without autograd: outputs, gradients and updates are autograd's, for one run and for several together."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from learning import assert_equal_states, state_of
from torch import Tensor, nn

from plastiscope.data.samples import Batch
from plastiscope.error import ConfigError
from plastiscope.learner import explicit_gradient
from plastiscope.learner.backprop import Backprop
from plastiscope.learner.continual_backprop import ContinualBackprop
from plastiscope.learner.explicit_gradient import dense_layers
from plastiscope.learner.learner import Learner, LearnerConfig
from plastiscope.learner.optimizer import Optimizer
from plastiscope.learner.redo import Redo
from plastiscope.learner.trainee import Trainee
from plastiscope.learner.unit_statistics import UtilityType
from plastiscope.measure.loss import Loss
from plastiscope.net.activation import Activation
from plastiscope.net.chain import Norm
from plastiscope.net.deep_linear import DeepLinear
from plastiscope.net.mlp import Mlp
from plastiscope.net.net import NetConfig
from plastiscope.net.resnet18 import ResNet18
from plastiscope.net.stacked import stack
from tasks import make_task

SHAPE, OUTPUTS, RUNS = (2, 3), 4, 3
CLOSE = {"rtol": 1e-12, "atol": 1e-13}
"""Float64: sums in another order."""
PLAIN = (
    Activation.relu,
    Activation.leaky_relu,
    Activation.elu,
    Activation.selu,
    Activation.gelu,
    Activation.silu,
    Activation.tanh,
    Activation.sigmoid,
)
NETS: dict[str, NetConfig] = {kind.value: Mlp(widths=[7, 5], activation=kind) for kind in PLAIN} | {
    "no hidden layer": Mlp(widths=[]),
    "linear without bias": DeepLinear(widths=[6, 5]),
    "linear": DeepLinear(widths=[6], bias=True),
}


def networks(config: NetConfig, number: int) -> list[nn.Module]:
    made = []
    for seed in range(number):
        torch.manual_seed(seed)
        made.append(config.make(SHAPE, OUTPUTS).double())
    return made


def learner_of(config: LearnerConfig, net: NetConfig, lead: int, loss: Loss, active: int = OUTPUTS) -> Learner:
    nets = networks(net, RUNS if lead else 1)
    units = nets[0].unit_description()
    module, seed = (stack(nets), [4, 5, 6]) if lead else (nets[0], 4)
    learner = config.make(Trainee(module.train(), units, lambda k: module, seed, lead))  # type: ignore[arg-type]
    learner.take_up(make_task(active, loss=loss))
    learner.begin_epoch(0)
    return learner


TARGETS = ("indices", "rows", "squares", "multi-hot")
LOSSES = dict(zip(TARGETS, (Loss.cross_entropy, Loss.cross_entropy, Loss.mse, Loss.binary_cross_entropy), strict=True))


def block_of(
    kind: str, lead: int, steps: int = 1, size: int = 3, weighted: bool = False, active: int = OUTPUTS
) -> Batch:
    """Inputs, targets and weights of some steps."""
    generator = torch.Generator().manual_seed(size)
    shape = (steps, *(RUNS,) * lead, size)
    inputs = torch.randn(*shape, *SHAPE, dtype=torch.float64, generator=generator)
    if kind == "indices":
        targets = torch.randint(active, shape, generator=generator)
    else:
        targets = torch.rand(*shape, active, dtype=torch.float64, generator=generator)
        targets = (targets > 0.5).double() if kind == "multi-hot" else targets
    weights = torch.rand(shape, dtype=torch.float64, generator=generator) + 0.5 if weighted else None
    return Batch(inputs, targets, torch.zeros(shape, dtype=torch.int64), weights)


def gradients_of(learner: Learner, block: Batch) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Gradients, losses and outputs of the first step of a block."""
    found: dict[str, Tensor] = {}

    def look() -> None:
        found.update({name: p.grad.clone() for name, p in learner.net.named_parameters() if p.grad is not None})

    learner.on_backward = look
    losses, outputs = learner.step(next(block.steps()))
    learner.on_backward = None
    return found, losses, outputs


@pytest.mark.parametrize("lead", [0, 1])
@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("net", NETS.values(), ids=NETS)
def test_losses_outputs_and_gradients_are_those_of_autograd(net, kind, lead):
    for size, weighted, active in ((1, False, OUTPUTS), (3, True, OUTPUTS), (4, False, 2)):
        block = block_of(kind, lead, size=size, weighted=weighted, active=active)
        config = Backprop(momentum=0.0, lr=0.3)
        sides = [
            learner_of(replace(config, autograd=autograd), net, lead, LOSSES[kind], active)
            for autograd in (True, False)
        ]
        (wanted, losses, outputs), (found, own_losses, own_outputs) = (gradients_of(side, block) for side in sides)
        assert losses.shape == own_losses.shape
        torch.testing.assert_close(own_losses, losses, **CLOSE)
        torch.testing.assert_close(own_outputs, outputs, **CLOSE)
        assert found.keys() == wanted.keys()
        for name, gradient in wanted.items():
            assert gradient.any(), name
            torch.testing.assert_close(found[name], gradient, **CLOSE)
        for own, other in zip(sides[1].net.parameters(), sides[0].net.parameters(), strict=True):
            torch.testing.assert_close(own, other, **CLOSE)


REPLACING: dict[str, Any] = {
    "lr": 0.05,
    "util_type": UtilityType.adaptable_contribution,
    "replacement_rate": 0.1,
    "maturity_threshold": 3,
}
CONFIGS: dict[str, LearnerConfig] = {
    "sgd": Backprop(momentum=0.0),
    "momentum": Backprop(weight_decay=0.01),
    "decay": Backprop(momentum=0.0, weight_decay=0.01),
    "clip": Backprop(momentum=0.0, clip_norm=0.2),
    "adam": Backprop(optimizer=Optimizer.adam, lr=0.01),
    "adamw": Backprop(optimizer=Optimizer.adamw, lr=0.01, weight_decay=0.1),
    "cbp": ContinualBackprop(momentum=0.0, **REPLACING),
    "cbp, momentum": ContinualBackprop(**REPLACING),
    "cbp, adam": ContinualBackprop(optimizer=Optimizer.adam, **REPLACING),
    "redo": Redo(momentum=0.0, reset_period=4, tau=0.5),
}


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("lead", [0, 1])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_runs_are_those_of_autograd_step_by_step_and_in_blocks(config, lead, size):
    """A ragged last batch in the middle; the steps of a block are single steps bit for bit, watched or not."""
    net = Mlp(widths=[7, 5])
    by_autograd, watched, blocks = (
        learner_of(replace(config, autograd=autograd), net, lead, Loss.cross_entropy)
        for autograd in (True, False, False)
    )
    assert blocks.works_in_blocks and not by_autograd.works_in_blocks
    watched.on_backward = watched.on_update = lambda: None
    for block in (
        block_of("indices", lead, steps=9, size=size),
        block_of("indices", lead, steps=1, size=2),
        block_of("indices", lead, steps=8, size=size, weighted=True),
    ):
        wanted = by_autograd.step_block(block)
        made = blocks.step_block(block)
        for single, losses, outputs, *both in zip(block.steps(), *made, *wanted, strict=True):
            own = watched.step(single)
            assert torch.equal(own[0], losses) and torch.equal(own[1], outputs)
            torch.testing.assert_close(tuple(own), tuple(both), rtol=1e-9, atol=1e-11)
    assert_equal_states(state_of(watched.net), state_of(blocks.net))
    assert_equal_states(watched.state_dict(), blocks.state_dict())
    for own, other in zip(blocks.net.parameters(), by_autograd.net.parameters(), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-8, atol=1e-10)
    if hasattr(blocks, "generations"):
        assert any(value.any() for value in blocks.generations.values())
        assert_equal_states(blocks.generations, by_autograd.generations)  # type: ignore[attr-defined]


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("lead", [0, 1])
def test_large_weights_are_updated_in_pieces(monkeypatch, lead, size):
    """Each piece is read for the layer below before it is updated; who watches sees the same run."""
    monkeypatch.setattr(explicit_gradient, "PIECE", 3 * 7)
    config, net = Backprop(momentum=0.0, lr=0.3), Mlp(widths=[7, 40, 7], activation=Activation.tanh)
    by_autograd, watched, blocks = (
        learner_of(replace(config, autograd=autograd), net, lead, Loss.cross_entropy)
        for autograd in (True, False, False)
    )
    watched.on_update = lambda: None
    block = block_of("indices", lead, steps=5, size=size)
    for learner in (by_autograd, watched, blocks):
        learner.step_block(block)
    assert max(len(link.pieces) for link in blocks._explicit._links) > 5  # type: ignore[union-attr]
    assert_equal_states(state_of(watched.net), state_of(blocks.net))
    for own, other in zip(blocks.net.parameters(), by_autograd.net.parameters(), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-11, atol=1e-12)


def test_gradients_are_there_for_who_watches_and_gone_for_who_does_not():
    learner = learner_of(Backprop(momentum=0.0, autograd=False), Mlp(widths=[7]), 0, Loss.mse)
    gradients_of(learner, block_of("squares", 0))
    assert all(p.grad is not None for p in learner.net.parameters())
    learner.step_block(block_of("squares", 0))
    assert all(p.grad is None for p in learner.net.parameters())


@pytest.mark.parametrize("lead", [0, 1])
def test_outputs_that_are_not_active_have_no_gradient_whatever_was_added_before(lead):
    learner = learner_of(Backprop(momentum=0.0, autograd=False), Mlp(widths=[7]), lead, Loss.mse, active=2)
    block = block_of("squares", lead, active=2)
    gradients_of(learner, block)
    for parameter in learner.net.parameters():
        parameter.grad.fill_(7.0)  # type: ignore[union-attr]
    found, *_ = gradients_of(learner, block)
    for name in ("head.weight", "head.bias"):
        of_each = found[name].unflatten(lead, (2, 2))
        assert of_each.select(lead, 0).any() and not of_each.select(lead, 1).any()


@pytest.mark.parametrize(
    ("net", "named"),
    [
        (Mlp(widths=[7], norm=Norm.batch), "layer norm_1 \\(BatchNorm1d\\)"),
        (Mlp(widths=[7], dropout=0.5), "layer dropout_1 \\(Dropout\\)"),
        (Mlp(widths=[7], activation=Activation.prelu), "layer activation_1 \\(PReLU\\)"),
        (ResNet18(width=2), "ResNet is no chain"),
    ],
)
def test_networks_that_are_not_plain_are_refused_by_layer(net, named):
    shape = (3, 8, 8) if isinstance(net, ResNet18) else SHAPE
    with pytest.raises(ConfigError, match=rf"autograd=false .*{named}"):
        dense_layers(net.make(shape, OUTPUTS), 0)


def test_frozen_layers_and_ends_that_are_not_linear_are_refused():
    frozen = nn.Sequential(nn.Flatten(), nn.Linear(3, 2))
    frozen[1].bias.requires_grad_(False)
    with pytest.raises(ConfigError, match="not trained"):
        dense_layers(frozen, 0)
    with pytest.raises(ConfigError, match="ends in no linear layer"):
        dense_layers(nn.Sequential(nn.Linear(3, 2), nn.ReLU()), 0)
    with pytest.raises(ConfigError, match="slope is negative"):
        dense_layers(nn.Sequential(nn.Linear(3, 2), nn.LeakyReLU(-0.1), nn.Linear(2, 2)), 0)


def test_a_learner_with_a_step_of_its_own_is_refused():
    class Other(Learner):
        def step(self, batch: Batch) -> tuple[Tensor, Tensor]:
            return super().step(batch)

    (net,) = networks(Mlp(widths=[3]), 1)
    with pytest.raises(ConfigError, match="a step of its own"):
        Other(Backprop(autograd=False), Trainee(net, net.unit_description(), lambda k: net, 0))
