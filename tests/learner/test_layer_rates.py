"""Rates by layer: over depth, in time, by period; the defaults change nothing."""

import copy
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from learning import assert_equal_states, batches, start, state_of
from torch import nn

from plans import make_plan
from plastiscope.error import ConfigError
from plastiscope.learner.backprop import Backprop
from plastiscope.learner.continual_backprop import ContinualBackprop
from plastiscope.learner.layer_rates import Between, Faster, LayerLr, Restart, layers_of_parameters
from plastiscope.learner.learner import Learner, Reset
from plastiscope.learner.optimizer import Optimizer
from plastiscope.learner.upgd import Upgd
from plastiscope.net.activation import Activation
from plastiscope.net.convnet import ConvNet
from plastiscope.net.deep_linear import DeepLinear
from plastiscope.net.describe import describe
from plastiscope.net.layers import Kind, Layers
from plastiscope.net.mlp import Mlp, Norm
from plastiscope.net.resnet18 import ResNet18
from plastiscope.net.units import Layer, Site, UnitDescription, Wire
from plastiscope.net.vit import Vit
from tasks import make_task

THREE = Mlp(widths=[6, 4]), (5,)
LAYERS = ("linear_1", "linear_2", "head")


def rates(learner: Learner) -> dict[int, float]:
    """The step size of each layer."""
    return {group["layer"]: group["lr"] for group in learner.optimizer.param_groups}


@pytest.mark.parametrize(("gamma", "expected"), [(0.5, [0.025, 0.05, 0.1]), (2.0, [0.4, 0.2, 0.1])])
def test_over_depth(gamma, expected):
    learner = start(Backprop(lr=0.1, layer_lr=LayerLr(depth_decay=gamma)), *THREE)
    assert [rates(learner)[layer] for layer in (1, 2, 3)] == pytest.approx(expected, rel=1e-15)


HALF_WAY = {Faster.early: [0.5, 0.5**0.5, 1.0], Faster.late: [1.0, 0.5**0.5, 0.5]}


@pytest.mark.parametrize("faster", list(Faster))
def test_in_time(faster):
    """At half of a task, kappa = ln 4: the factors are .5, .707107, 1 or the reverse."""
    learner = start(Backprop(lr=0.1, layer_lr=LayerLr(time_decay=math.log(4), faster=faster)), *THREE, epochs=10)
    assert list(rates(learner).values()) == [0.1, 0.1, 0.1]
    learner.begin_epoch(5, 10)
    assert list(rates(learner).values()) == pytest.approx([0.1 * factor for factor in HALF_WAY[faster]], rel=1e-12)
    learner.take_up(make_task(3, index=1))
    learner.begin_epoch(0, 10)
    assert list(rates(learner).values()) == [0.1, 0.1, 0.1]


def test_in_time_over_the_whole_run():
    config = Backprop(lr=0.1, layer_lr=LayerLr(time_decay=math.log(4), restart=Restart.never))
    learner = start(config, *THREE, epochs=10)
    learner.take_up(make_task(3, index=2))
    learner.begin_epoch(5, 10)
    assert list(rates(learner).values()) == pytest.approx([0.1 * 4**-2.5, 0.1 * 4**-1.25, 0.1], rel=1e-12)


def test_a_network_of_one_layer_has_no_decay_in_time():
    assert LayerLr(time_decay=5.0).factor(1, 1, 0.7) == 1.0
    assert LayerLr(time_decay=5.0, faster=Faster.late).factor(1, 1, 0.7) == 1.0


def test_rates_multiply_the_schedule():
    config = Backprop(lr=0.1, milestones=[2], decay=0.2, layer_lr=LayerLr(depth_decay=0.5))
    learner = start(config, *THREE)
    learner.begin_epoch(2)
    assert list(rates(learner).values()) == pytest.approx([0.005, 0.01, 0.02], rel=1e-15)


def test_rates_in_time_ask_for_the_length_of_a_task():
    learner = start(Backprop(layer_lr=LayerLr(time_decay=1.0)), *THREE, epochs=10)
    with pytest.raises(ValueError, match="number of epochs"):
        learner.begin_epoch(1)


@pytest.mark.parametrize("optimizer", list(Optimizer))
def test_a_step_moves_each_layer_by_its_rate(optimizer):
    settings: dict[str, Any] = {"optimizer": optimizer, "lr": 0.1, "weight_decay": 0.2}
    learner = start(Backprop(layer_lr=LayerLr(depth_decay=0.5), **settings), *THREE)
    plain = start(Backprop(**settings), *THREE)
    before = state_of(plain.net)
    (batch,) = batches((5,), [6])
    learner.step(batch)
    plain.step(batch)
    for name, parameter in learner.net.named_parameters():
        share = 0.5 ** (2 - LAYERS.index(name.split(".")[0]))
        moved = plain.net.get_parameter(name) - before[name]
        torch.testing.assert_close(parameter - before[name], share * moved, rtol=1e-9, atol=1e-13)


def constant_steps(learner: Learner, steps: int, gradient: float = 1.0) -> None:
    """Updates whose gradient is a constant."""
    for _ in range(steps):
        for parameter in learner.net.parameters():
            parameter.grad = torch.full_like(parameter, gradient)
        learner.update()


@pytest.mark.parametrize("between", list(Between))
def test_later_layers_are_updated_more_often(between):
    """L = 3, r = 2: 2, 4, 8 updates in 8 steps, each by lr g."""
    config = Backprop(lr=0.1, momentum=0.0, layer_lr=LayerLr(update_period=2, between=between))
    learner = start(config, *THREE)
    before = state_of(learner.net)
    for step in range(1, 9):
        constant_steps(learner, 1)
        for name, parameter in learner.net.named_parameters():
            updates = step // 2 ** (2 - LAYERS.index(name.split(".")[0]))
            torch.testing.assert_close(parameter, before[name] - 0.1 * updates, rtol=0, atol=1e-14)


@pytest.mark.parametrize(("between", "taken"), [(Between.mean, 3.0), (Between.drop, 5.0)])
def test_an_update_takes_the_mean_gradient_since_the_last_one_or_its_own(between, taken):
    """Gradients 1, 5 of the layer before the head, then 0, 0; the first layer is not updated before step 4."""
    learner = start(Backprop(lr=1.0, momentum=0.0, layer_lr=LayerLr(update_period=2, between=between)), *THREE)
    before = state_of(learner.net)
    for gradient in (1.0, 5.0):
        constant_steps(learner, 1, gradient)
    assert torch.equal(learner.net.linear_1.weight, before["linear_1.weight"])
    torch.testing.assert_close(learner.net.linear_2.weight, before["linear_2.weight"] - taken, rtol=0, atol=1e-14)
    for gradient in (0.0, 0.0):
        constant_steps(learner, 1, gradient)
    torch.testing.assert_close(learner.net.linear_2.weight, before["linear_2.weight"] - taken, rtol=0, atol=1e-14)
    mean = 6.0 / 4 if between is Between.mean else 0.0
    torch.testing.assert_close(learner.net.linear_1.weight, before["linear_1.weight"] - mean, rtol=0, atol=1e-14)


@pytest.mark.parametrize("optimizer", list(Optimizer))
def test_a_skipped_layer_keeps_weights_and_optimiser_state_and_its_gradient_can_be_looked_at(optimizer):
    """Weight decay does not act on it either."""
    learner = start(Backprop(optimizer=optimizer, lr=0.1, weight_decay=0.5, layer_lr=LayerLr(update_period=2)), *THREE)
    constant_steps(learner, 4)
    before, kept = state_of(learner.net), copy.deepcopy(learner.optimizer.state_dict()["state"])
    constant_steps(learner, 1)
    for name, parameter in learner.net.named_parameters():
        assert torch.equal(parameter, before[name]) is not name.startswith("head")
        assert torch.equal(parameter.grad, torch.ones_like(parameter))
    after = learner.optimizer.state_dict()["state"]
    numbers = [
        i for group in learner.optimizer.state_dict()["param_groups"] if group["layer"] < 3 for i in group["params"]
    ]
    assert len(numbers) == 4
    assert_equal_states({i: kept[i] for i in numbers}, {i: after[i] for i in numbers})


def test_steps_count_from_the_tasks_start():
    learner = start(Backprop(lr=1.0, momentum=0.0, layer_lr=LayerLr(update_period=2)), *THREE)
    constant_steps(learner, 3, 7.0)
    learner.begin_task(make_task(3, index=1))
    before = state_of(learner.net)
    constant_steps(learner, 1)
    assert torch.equal(learner.net.linear_2.weight, before["linear_2.weight"])
    constant_steps(learner, 1)
    torch.testing.assert_close(learner.net.linear_2.weight, before["linear_2.weight"] - 1.0, rtol=0, atol=1e-14)


def test_gradients_of_what_was_initialised_anew_are_dropped():
    learner = start(Backprop(lr=1.0, layer_lr=LayerLr(update_period=2), reset=Reset.network), *THREE)
    constant_steps(learner, 1)
    learner.reinitialised([learner.net.linear_2.weight])
    sums = {
        name: learner.layer_rates.sums[p].any().item()
        for name, p in learner.net.named_parameters()
        if "head" not in name
    }
    assert [name for name, any_left in sums.items() if not any_left] == ["linear_2.weight"]


CONFIGS: dict[str, Any] = {
    "depth": Backprop(layer_lr=LayerLr(depth_decay=0.5), lr=0.01),
    "time": Backprop(layer_lr=LayerLr(time_decay=1.0), lr=0.01),
    "period": Backprop(layer_lr=LayerLr(update_period=2), lr=0.01),
    "period, drop, adam": Backprop(
        layer_lr=LayerLr(update_period=3, between=Between.drop), optimizer=Optimizer.adam, lr=0.01
    ),
    "period, adam": Backprop(layer_lr=LayerLr(update_period=2), optimizer=Optimizer.adam, lr=0.01),
    "continual backprop": ContinualBackprop(
        layer_lr=LayerLr(update_period=2, depth_decay=0.5),
        optimizer=Optimizer.adam,
        replacement_rate=0.1,
        maturity_threshold=3,
        lr=0.01,
    ),
    "upgd": Upgd(layer_lr=LayerLr(update_period=2, depth_decay=0.5)),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_they_go_on_from_their_state_bit_for_bit(name):
    """Stopped after step 3, in the middle of a mean."""
    given = batches((5,), [6] * 12, dtype=torch.float32)
    whole, half, again = (start(CONFIGS[name], *THREE, dtype=torch.float32, epochs=10) for _ in range(3))
    for learner in (whole, half, again):
        learner.begin_epoch(3, 10)
    for batch in given:
        whole.step(batch)
    for batch in given[:3]:
        half.step(batch)
    again.net.load_state_dict(copy.deepcopy(half.net.state_dict()))
    again.load_state_dict(copy.deepcopy(half.state_dict()))
    for batch in given[3:]:
        again.step(batch)
    assert_equal_states(state_of(whole.net), state_of(again.net))
    assert_equal_states(whole.state_dict(), again.state_dict())


@pytest.mark.parametrize("kind", [Backprop, ContinualBackprop, Upgd])
@pytest.mark.parametrize("optimizer", [Optimizer.sgd, Optimizer.adam])
def test_groups_of_their_own_alone_change_nothing(kind, optimizer):
    """A period of 1 in all but name: the groups of layers make the same 50 steps, bit for bit."""
    plain = start(kind(optimizer=optimizer, lr=0.01), *THREE, dtype=torch.float32)
    assert plain.layer_rates is None and plain.projection is None
    assert len(plain.optimizer.param_groups) == 1
    config = kind(optimizer=optimizer, lr=0.01, layer_lr=LayerLr(time_decay=1e-300))
    grouped = start(config, *THREE, dtype=torch.float32, epochs=10)
    assert len(grouped.optimizer.param_groups) == 3
    for batch in batches((5,), [6] * 50, dtype=torch.float32):
        plain.step(batch)
        grouped.step(batch)
    assert_equal_states(state_of(plain.net), state_of(grouped.net))


@pytest.mark.parametrize("kind", [Backprop, ContinualBackprop])
def test_the_defaults_leave_a_learner_as_it_is(kind):
    """50 steps, against torch's own optimiser and nothing else."""
    learner = start(kind(lr=0.05, layer_lr=LayerLr()), *THREE, dtype=torch.float32)
    if kind is ContinualBackprop:
        learner.mechanism = lambda: None
    net = copy.deepcopy(learner.net)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, fused=True)
    for batch in batches((5,), [6] * 50, dtype=torch.float32):
        learner.step(batch)
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(batch.inputs), batch.targets).backward()
        optimizer.step()
    assert_equal_states(state_of(learner.net), dict(net.state_dict()))


def layers_of(net: Any, shape: tuple[int, ...]) -> dict[str, int]:
    module = net.make(shape, 3)
    return layers_of_parameters(module, describe(module, torch.zeros(2, *shape)))


def test_norms_and_slopes_belong_to_the_layer_that_they_follow():
    found = layers_of(Mlp(widths=[6, 4], norm=Norm.layer, activation=Activation.prelu), (5,))
    assert {name: layer for name, layer in found.items() if name.endswith("weight")} == {
        "linear_1.weight": 1,
        "norm_1.weight": 1,
        "activation_1.weight": 1,
        "linear_2.weight": 2,
        "norm_2.weight": 2,
        "activation_2.weight": 2,
        "head.weight": 3,
    }
    assert all(found[name] == found[name.replace("bias", "weight")] for name in found if name.endswith("bias"))


def test_shortcuts_belong_to_the_layer_whose_units_they_make():
    found = layers_of(ResNet18(width=4), (3, 8, 8))
    shortcuts = {layer for name, layer in found.items() if name.startswith("layer2.0.downsample")}
    assert shortcuts == {found["layer2.0.conv2.weight"]} == {found["layer2.0.bn2.bias"]}
    assert sorted(set(found.values())) == list(range(1, 19))
    assert found["conv1.weight"] == 1 and found["fc.weight"] == 18


def test_the_description_says_what_belongs_to_a_layer_in_whatever_order_parameters_come():
    """The shortcut before all layers, norms after others' layers, the head in their midst."""
    paths = ("shortcut", "first", "shortcut_norm", "head", "norm", "second", "late")
    net = nn.ModuleDict({path: nn.Linear(2, 2) for path in paths})
    layers = [
        Layer(path, 2, Site(path), (Wire(f"{path}.weight", 0), Wire(f"{path}.bias", 0))) for path in ("first", "second")
    ]
    ways = (Wire("shortcut.weight", 0), Wire("shortcut.bias", 0))
    layers[1] = replace(layers[1], norm="norm", shortcut=ways, shortcut_norm="shortcut_norm")
    found = layers_of_parameters(net, UnitDescription(tuple(layers), "head"))
    expected = {"norm": 2, "shortcut_norm": 2, "shortcut": 2, "first": 1, "head": 3, "second": 2, "late": 2}
    assert found == {f"{path}.{part}": expected[path] for path in paths for part in ("weight", "bias")}


@pytest.mark.parametrize("kind", list(Kind))
@pytest.mark.parametrize("shape", [(5,), (2, 14, 14)])
def test_layers_of_every_parametrisation_are_counted(kind, shape):
    layers = Layers(kind=kind)
    if len(shape) == 1:
        found, paths = layers_of(Mlp(widths=[4, 4], layers=layers), shape), ("linear_1", "linear_2", "head")
    else:
        net = ConvNet(channels=[6, 8], kernel_sizes=[3, 3], widths=[9], layers=layers)
        found, paths = layers_of(net, shape), ("conv_1", "conv_2", "linear_1", "head")
    for name, layer in found.items():
        assert paths[layer - 1] == name.split(".")[0], name
    assert set(found.values()) == set(range(1, len(paths) + 1))


def test_what_the_description_does_not_name_belongs_to_what_it_follows():
    found = layers_of(Vit(depth=2, width=8, heads=2), (3, 8, 8))
    names = list(found)
    assert found[names[0]] == 1
    assert [found[name] for name in names] == sorted(found.values())
    assert set(found.values()) == {1, 2, 3}


def test_deep_linear_networks_count_all_their_matrices():
    assert list(layers_of(DeepLinear(widths=[4, 4, 4]), (5,)).values()) == [1, 2, 3, 4]


def test_slopes_take_no_weight_decay_in_groups_of_layers():
    net = Mlp(widths=[6, 4], activation=Activation.prelu)
    learner = start(Backprop(weight_decay=0.1, layer_lr=LayerLr(depth_decay=0.5)), net, (5,))
    decays = {
        name: group["weight_decay"]
        for group in learner.optimizer.param_groups
        for parameter in group["params"]
        for name, own in learner.net.named_parameters()
        if own is parameter
    }
    assert {name for name, decay in decays.items() if decay == 0.0} == {"activation_1.weight", "activation_2.weight"}
    assert set(decays) == {name for name, _ in learner.net.named_parameters()}


def test_settings_reach_every_learner_from_the_command_line():
    overrides = (
        "learner.layer_lr.depth_decay=0.5",
        "learner.layer_lr.between=drop",
        "learner.layer_lr.update_period=3",
    )
    for name in ("backprop", "redo", "continual_backprop", "l2", "l2_init", "shrink_and_perturb"):
        assert make_plan(f"learner={name}", *overrides).learner.layer_lr == LayerLr(
            depth_decay=0.5, between=Between.drop, update_period=3
        )


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("depth_decay=0", r"learner\.layer_lr\.depth_decay"),
        ("time_decay=-1", r"learner\.layer_lr\.time_decay"),
        ("update_period=0", r"learner\.layer_lr\.update_period"),
        ("faster=middle", r"learner\.layer_lr\.faster"),
    ],
)
def test_ranges(wrong, message):
    with pytest.raises(ConfigError, match=message):
        make_plan(f"learner.layer_lr.{wrong}")
