"""UPGD against its formulas, weight by weight in plain numbers."""

import copy
import math
from dataclasses import dataclass, replace

import pytest
import torch
from learning import batches, goes_on_from_its_state, start
from torch import Tensor, nn

from plastiscope.error import ConfigError
from plastiscope.learner.learner import Reset
from plastiscope.learner.optimizer import Optimizer
from plastiscope.learner.step_noise import StepNoise
from plastiscope.learner.trainee import Trainee
from plastiscope.learner.upgd import Gate, GateCorrection, GatedDescent, GatingMode, Upgd, UpgdLearner
from plastiscope.net.activation import Activation
from plastiscope.net.mlp import Mlp

SIGMOID_OF_1 = 1 / (1 + math.exp(-1))


def parameters(dtype: torch.dtype = torch.float64) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator, dtype=dtype)) for shape in [(3, 2), (3,), ()]]


def give_gradients(own: list[nn.Parameter], step: int) -> None:
    generator = torch.Generator().manual_seed(100 + step)
    for parameter in own:
        parameter.grad = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)


@dataclass
class Weight:
    """One number, with all that is known of it."""

    theta: float
    utility: float = 0.0
    first: float = 0.0
    second: float = 0.0
    steps: int = 0


def by_hand(
    config: Upgd, weights: list[Weight], gradients: list[float], noise: list[float], gated: list[bool]
) -> list[float]:
    """One step by the formulas; the factors (1 - s) of the weights."""
    b, corrected = config.utility_decay, []
    for w, g in zip(weights, gradients, strict=True):
        w.steps += 1
        w.utility = b * w.utility + (1 - b) * (-g * w.theta)
        corrected.append(w.utility / (1 - b**w.steps))
    is_published = config.gate_correction is GateCorrection.as_published
    most = max(w.utility for w in weights) if is_published else max(corrected)
    factors = []
    for w, g, xi, u, has_gate in zip(weights, gradients, noise, corrected, gated, strict=True):
        if config.optimizer is Optimizer.adam:
            b1, b2 = config.betas
            w.first, w.second = b1 * w.first + (1 - b1) * g, b2 * w.second + (1 - b2) * g * g
            m = (w.first / (1 - b1**w.steps)) / (math.sqrt(w.second / (1 - b2**w.steps)) + config.eps)
        else:
            m = w.first = config.momentum * w.first + g
        if config.gate is Gate.sigmoid:
            s = 1 / (1 + math.exp(-u / most)) if most > 0 else 0.0
        else:
            s = min(max(u / most, 0.0), 1.0) if most > 0 else 0.0
        factors.append(1 - s if has_gate else config.non_gated_scale)
        w.theta *= 1 - config.lr * config.weight_decay
        w.theta -= config.step_multiplier * config.lr * factors[-1] * (m + config.noise * xi)
    return factors


CONFIGS = {
    "default": Upgd(lr=0.05, utility_decay=0.9),
    "as published": Upgd(lr=0.05, utility_decay=0.9, gate_correction=GateCorrection.as_published, weight_decay=0.1),
    "linear": Upgd(lr=0.05, utility_decay=0.9, gate=Gate.linear, noise=0.3),
    "linear, as published": Upgd(lr=0.05, gate=Gate.linear, gate_correction=GateCorrection.as_published),
    "sgd": Upgd(lr=0.05, optimizer=Optimizer.sgd, momentum=0.7, noise=0.2, step_multiplier=1.0),
    "no momentum, no noise": Upgd(lr=0.05, optimizer=Optimizer.sgd, noise=0.0, weight_decay=0.5),
}


@pytest.mark.parametrize("gates", ["all", "first"])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_steps_are_those_of_the_formulas(config, gates):
    own = parameters()
    gated = set(own) if gates == "all" else {own[0]}
    noise = StepNoise(own, 5, "upgd")
    taken: list[Tensor] = []

    def drawn(step: int) -> dict[Tensor, Tensor]:
        numbers = noise.at(step)
        taken[:] = [torch.cat([one.flatten() for one in numbers]).clone()]
        return dict(zip(own, numbers, strict=True))

    optimizer = GatedDescent(own, config, gated, drawn, lead=0)
    weights = [Weight(value) for parameter in own for value in parameter.flatten().tolist()]
    has_gate = [parameter in gated for parameter in own for _ in range(parameter.numel())]
    for step in range(8):
        give_gradients(own, step)
        gradients = [value for parameter in own for value in parameter.grad.flatten().tolist()]
        optimizer.step()
        by_hand(config, weights, gradients, taken[0].tolist(), has_gate)
        found = torch.cat([parameter.detach().flatten() for parameter in own])
        torch.testing.assert_close(
            found, torch.tensor([w.theta for w in weights], dtype=torch.float64), rtol=1e-12, atol=0
        )


def closing(config: Upgd, theta: list[float], gradient: list[float], steps: int = 1) -> list[float]:
    """What each weight moves in the last of some equal steps, in units of the ungated step of plain SGD."""
    parameter = nn.Parameter(torch.tensor(theta, dtype=torch.float64))
    optimizer = GatedDescent([parameter], config, {parameter}, None, lead=0)
    for _ in range(steps):
        with torch.no_grad():
            parameter.copy_(torch.tensor(theta, dtype=torch.float64))
        parameter.grad = torch.tensor(gradient, dtype=torch.float64)
        optimizer.step()
    moved = torch.tensor(theta, dtype=torch.float64) - parameter.detach()
    return (moved / (config.step_multiplier * config.lr * torch.tensor(gradient, dtype=torch.float64))).tolist()


PLAIN = {"optimizer": Optimizer.sgd, "noise": 0.0, "lr": 0.01}


@pytest.mark.parametrize("steps", [1, 7])
def test_the_most_useful_weight_keeps_a_quarter_of_its_step(steps):
    """Utilities -g theta of 3, 1.5, 0, -3: the largest ratio u/U is 1 from the first step on."""
    found = closing(Upgd(**PLAIN), [3.0, 1.5, 0.0, -3.0], [-1.0, -1.0, -1.0, -1.0], steps)
    assert found == pytest.approx([1 - SIGMOID_OF_1, 1 / (1 + math.exp(0.5)), 0.5, SIGMOID_OF_1], rel=1e-9)
    assert found[0] == pytest.approx(0.2689, abs=5e-5)
    linear = closing(Upgd(**PLAIN, gate=Gate.linear), [3.0, 1.5, 0.0, -3.0], [-1.0, -1.0, -1.0, -1.0], steps)
    assert linear == pytest.approx([0.0, 0.5, 1.0, 1.0], abs=1e-12)


def test_as_published_the_first_ratios_are_a_thousand_times_too_large():
    published = Upgd(**PLAIN, gate_correction=GateCorrection.as_published)
    found = closing(published, [3.0, 0.003, 0.0], [-1.0, -1.0, -1.0])
    assert found[0] == pytest.approx(0.0, abs=1e-9)
    assert found[1:] == pytest.approx([1 - SIGMOID_OF_1, 0.5], rel=1e-6)


@pytest.mark.parametrize("gate", Gate)
def test_gates_are_open_where_no_utility_is_positive(gate):
    assert closing(Upgd(**PLAIN, gate=gate), [1.0, 2.0], [1.0, 1.0]) == pytest.approx([1.0, 1.0])
    assert closing(Upgd(**PLAIN, gate=gate), [0.0, 0.0], [1.0, 1.0]) == pytest.approx([1.0, 1.0])


def test_the_largest_utility_is_that_of_all_groups_and_what_has_no_gradient_stays():
    config = Upgd(lr=0.05, noise=0.0)
    one, two = parameters(), parameters()
    whole = GatedDescent(one, config, set(one), None, lead=0)
    groups = [{"params": two[:1]}, {"params": two[1:], "lr": 0.05, "weight_decay": 0.0}]
    split = GatedDescent(groups, config, set(two), None, lead=0)
    for step in range(4):
        for own, optimizer in ((one, whole), (two, split)):
            give_gradients(own, step)
            if step == 1:
                own[0].grad = None
            before = own[0].detach().clone()
            optimizer.step()
            assert torch.equal(own[0], before) == (step == 1)
    for first, second in zip(one, two, strict=True):
        assert torch.equal(first, second)
    assert whole.state[one[0]]["step"] == 3 and whole.state[one[1]]["step"] == 4


def test_no_gradient_at_all_is_no_update():
    own = parameters()
    optimizer = GatedDescent(own, Upgd(), set(own), None, lead=0)
    optimizer.step()
    assert all(torch.equal(one, other) for one, other in zip(own, parameters(), strict=True))


@pytest.mark.parametrize("mode", GatingMode)
def test_gated_are_the_parameters_that_the_mode_says(mode):
    learner = start(Upgd(gating_mode=mode), Mlp(widths=[6, 4]), (5,))
    names = {name for name, p in learner.net.named_parameters() if p in learner.optimizer.gated}
    hidden = {f"linear_{i}.{part}" for i in (1, 2) for part in ("weight", "bias")}
    head = {"head.weight", "head.bias"}
    assert names == {GatingMode.full: hidden | head, GatingMode.output_only: head, GatingMode.hidden_only: hidden}[mode]


def test_a_net_whose_head_is_not_known_has_no_gate_for_it():
    learner = start(Upgd(), Mlp(widths=[6]), (5,))

    headless = replace(learner.units, head="")
    with pytest.raises(ConfigError, match="head of this network was not found, which gating_mode=output_only"):
        UpgdLearner(Upgd(gating_mode=GatingMode.output_only), Trainee(learner.net, headless, learner.initial_net, 0))
    UpgdLearner(Upgd(), Trainee(learner.net, headless, learner.initial_net, 0))


def test_slopes_take_no_weight_decay():
    config = Upgd(weight_decay=100.0, lr=0.01, noise=0.0, step_multiplier=0.0)
    learner = start(config, Mlp(widths=[6], activation=Activation.prelu), (5,))
    learner.step(batches((5,), [4])[0])
    weights = dict(learner.net.named_parameters())
    slopes = [name for name in weights if weights[name].shape == (6,) and "linear" not in name]
    assert slopes
    for name, value in weights.items():
        assert bool(value.any()) == (name in slopes)


def test_the_schedule_and_a_reset_reach_it():
    config = Upgd(milestones=[1], decay=0.5, reset=Reset.network)
    learner = start(config, Mlp(widths=[6]), (5,))
    learner.step(batches((5,), [4])[0])
    learner.begin_epoch(1)
    assert [group["lr"] for group in learner.optimizer.param_groups] == [0.0005]
    learner.forget_optimizer_state(learner.parameters)
    assert all(not value.any() for state in learner.optimizer.state.values() for value in state.values())


@pytest.mark.parametrize("config", [Upgd(), CONFIGS["sgd"]], ids=["adam", "sgd"])
def test_it_goes_on_from_its_state_bit_for_bit(config):
    goes_on_from_its_state(config, Mlp(widths=[6]), (5,))


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_each_of_several_runs_is_as_alone(config):
    seeds = [0, 3, 8]
    singles = [start(config, Mlp(widths=[6, 4]), (5,)) for _ in seeds]
    for learner, seed in zip(singles, seeds, strict=True):
        with torch.no_grad():
            for parameter in learner.parameters:
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)))
    stacked = copy.deepcopy(singles[0].net)
    for path, _ in singles[0].net.named_parameters():
        module, _, name = path.rpartition(".")
        values = torch.stack([learner.net.get_parameter(path).detach() for learner in singles])
        setattr(stacked.get_submodule(module), name, nn.Parameter(values))
    singles = [
        UpgdLearner(config, Trainee(one.net, one.units, one.initial_net, seed))
        for one, seed in zip(singles, seeds, strict=True)
    ]
    together = UpgdLearner(config, Trainee(stacked, singles[0].units, singles[0].initial_net, seeds, lead=1))
    generator = torch.Generator().manual_seed(1)
    for _ in range(6):
        for name, parameter in together.net.named_parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            for r, learner in enumerate(singles):
                learner.net.get_parameter(name).grad = parameter.grad[r].clone()
        for learner in (together, *singles):
            learner.optimizer.step()
    for r, learner in enumerate(singles):
        for name, parameter in learner.net.named_parameters():
            torch.testing.assert_close(together.net.get_parameter(name)[r], parameter, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    "wrong",
    [
        {"optimizer": Optimizer.adamw},
        {"utility_decay": 1.0},
        {"noise": -0.1},
        {"non_gated_scale": -1.0},
        {"step_multiplier": -2.0},
    ],
)
def test_ranges(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Upgd(**wrong)
