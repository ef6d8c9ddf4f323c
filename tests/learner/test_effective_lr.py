"""A constant effective rate of scale-invariant layers, by step sizes or by projection."""

import copy
from typing import Any

import pytest
import torch
from learning import assert_equal_states, batches, start, state_of
from torch import nn

from plastiscope.error import ConfigError
from plastiscope.learner.backprop import Backprop
from plastiscope.learner.continual_backprop import ContinualBackprop
from plastiscope.learner.effective_lr import EFFECTIVE_LR, EffectiveLrMode, joint_norm
from plastiscope.learner.layer_rates import LayerLr
from plastiscope.learner.learner import Learner, Reset
from plastiscope.learner.optimizer import Optimizer
from plastiscope.learner.shrink_and_perturb import ShrinkAndPerturb
from plastiscope.learner.upgd import Upgd
from plastiscope.net.convnet import ConvNet
from plastiscope.net.layers import Kind, Layers
from plastiscope.net.mlp import Mlp, Norm
from plastiscope.net.resnet18 import ResNet18
from tasks import make_task

NETS = {
    "batch": (Mlp(widths=[6, 4], norm=Norm.batch), (5,)),
    "layer": (Mlp(widths=[6, 4], norm=Norm.layer), (5,)),
    "weight_normalised": (Mlp(widths=[6, 4], layers=Layers(kind=Kind.weight_normalised)), (5,)),
    "convnet": (ConvNet(channels=[6, 8], kernel_sizes=[3, 3], widths=[9], norm=Norm.batch), (2, 14, 14)),
    "resnet18": (ResNet18(width=4), (3, 8, 8)),
}
PROJECT = EffectiveLrMode.project


def scale(e: float, **settings: Any) -> Backprop:
    return Backprop(**{"effective_lr": e, "lr": 0.1, "momentum": 0.0} | settings)


def invariant(learner: Learner) -> list[list[nn.Parameter]]:
    return [group["params"] for group in learner.optimizer.param_groups if EFFECTIVE_LR in group]


def exact(learner: Learner) -> Any:
    """Norms without their eps."""
    for module in learner.net.modules():
        if hasattr(module, "eps"):
            module.eps = 1e-300  # torch takes no 0
    return learner


@pytest.mark.parametrize(
    ("net", "optimizer"),
    [(net, kind) for net in NETS for kind in Optimizer if kind is Optimizer.sgd or net not in ("convnet", "resnet18")],
)
def test_starts_of_other_lengths_keep_one_direction(net, optimizer):
    """20 steps from w and from 10 w, small ones where many layers make more of rounding errors.

    With Adam its eps is 0, so that steps do not depend on the gradient's scale; then gradients that are nothing but
    rounding errors make whole steps, so there it is small networks alone.
    """
    is_deep = net in ("convnet", "resnet18")
    config = scale(1e-4 if is_deep else 0.01, lr=1e-3 if is_deep else 0.1, optimizer=optimizer, eps=1e-300)
    one, ten = (exact(start(config, *NETS[net])) for _ in range(2))
    assert len(invariant(one)) == {"batch": 2, "layer": 2, "weight_normalised": 3, "convnet": 3, "resnet18": 20}[net]
    with torch.no_grad():
        for together in invariant(ten):
            for parameter in together:
                parameter.mul_(10.0)
    # Dead biases before a batch norm get rounding errors as gradients, which Adam would blow up to whole steps.
    for learner in (one, ten):
        for layer in learner.units.layers:
            if layer.norm is not None and net != "layer":
                learner.net.get_parameter(layer.incoming[-1].parameter).register_hook(torch.zeros_like)
    for batch in batches(NETS[net][1], [6] * 20):
        one.step(batch)
        ten.step(batch)
    for first, second in zip(invariant(one), invariant(ten), strict=True):
        ratio = joint_norm(second) / joint_norm(first)
        assert ratio.item() == pytest.approx(10.0, rel=1e-9)
        for p, q in zip(first, second, strict=True):
            torch.testing.assert_close(p / joint_norm(first), q / joint_norm(second), rtol=0, atol=1e-10)
    moved = state_of(start(config, *NETS[net]).net)
    assert all((p - moved[name]).abs().max() > 1e-6 for name, p in one.net.named_parameters() if "weight" in name)


@pytest.mark.parametrize("optimizer", list(Optimizer))
def test_the_step_size_is_the_rate_times_the_norm(optimizer):
    """SGD: e ||w||^2 = .03 * 25; Adam and AdamW: e ||w|| = .03 * 5; other parameters take lr."""
    settings: dict[str, Any] = {"optimizer": optimizer, "momentum": 0.0, "weight_decay": 0.1}
    learner = start(scale(0.03, **settings), *NETS["batch"])
    size = 0.03 * (25 if optimizer is Optimizer.sgd else 5)
    with torch.no_grad():
        for (weight,) in invariant(learner):
            weight.mul_(5.0 / weight.norm())
    before = state_of(learner.net)
    plain = {}
    for name, parameter in learner.net.named_parameters():
        generator = torch.Generator().manual_seed(len(name))
        parameter.grad = torch.randn(parameter.shape, dtype=torch.float64, generator=generator)
        alone = nn.Parameter(before[name].clone())
        alone.grad = parameter.grad.clone()
        lr = size if name in ("linear_1.weight", "linear_2.weight") else 0.1
        kind = {Optimizer.sgd: torch.optim.SGD, Optimizer.adam: torch.optim.Adam, Optimizer.adamw: torch.optim.AdamW}
        kind[optimizer]([alone], lr=lr, weight_decay=0.1).step()
        plain[name] = alone
    learner.update()
    for name, parameter in learner.net.named_parameters():
        torch.testing.assert_close(parameter, plain[name], rtol=1e-12, atol=1e-14)


def test_it_takes_the_schedule_and_the_rates_of_layers():
    config = scale(0.08, milestones=[2], decay=0.5, layer_lr=LayerLr(depth_decay=0.25))
    learner = start(config, *NETS["batch"])
    learner.begin_epoch(2)
    by_layer = {
        group["layer"]: group[EFFECTIVE_LR] for group in learner.optimizer.param_groups if EFFECTIVE_LR in group
    }
    assert by_layer == pytest.approx({1: 0.0025, 2: 0.01}, rel=1e-15)
    others = {group["layer"]: group["lr"] for group in learner.optimizer.param_groups if EFFECTIVE_LR not in group}
    assert others == pytest.approx({1: 0.1 / 32, 2: 0.1 / 8, 3: 0.1 / 2}, rel=1e-15)


def test_a_layer_that_is_not_due_does_not_move():
    learner = start(scale(0.01, layer_lr=LayerLr(update_period=2)), *NETS["batch"])
    before = state_of(learner.net)
    learner.step(batches((5,), [6])[0])
    for name, parameter in learner.net.named_parameters():
        assert torch.equal(parameter, before[name]) is not name.startswith("head")


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("kind", [Backprop, ShrinkAndPerturb, ContinualBackprop, Upgd])
def test_projection_keeps_the_norms_after_every_step(net, kind):
    """To 1e-6 in float32, whatever the learner does after the optimiser's step."""
    rates: dict[Any, dict[str, Any]] = {
        ShrinkAndPerturb: {"noise_std": 0.1},
        ContinualBackprop: {"replacement_rate": 0.05, "maturity_threshold": 1},
    }
    learner = start(kind(effective_lr_mode=PROJECT, lr=0.1, **rates.get(kind, {})), *NETS[net], dtype=torch.float32)
    first = [sum(p.double().square().sum() for p in own).sqrt().item() for own in learner._invariant()]
    assert first
    for batch in batches(NETS[net][1], [6] * 8, dtype=torch.float32):
        learner.step(batch)
        norms = [sum(p.double().square().sum() for p in own).sqrt().item() for own in learner._invariant()]
        assert norms == pytest.approx(first, rel=1e-6)


@pytest.mark.parametrize("net", NETS)
def test_the_projection_alone_changes_no_output(net):
    learner = exact(start(Backprop(effective_lr_mode=PROJECT), *NETS[net]))
    (batch,) = batches(NETS[net][1], [6])
    with torch.no_grad():
        before = learner.net(batch.inputs)
        for own in learner._invariant():
            for parameter in own:
                parameter.mul_(3.0)
        learner.projection.project()
        torch.testing.assert_close(learner.net(batch.inputs), before, rtol=1e-9, atol=1e-11)
        for own in learner._invariant():
            for parameter in own:
                parameter.mul_(3.0)
        torch.testing.assert_close(learner.net(batch.inputs), before, rtol=1e-9, atol=1e-11)


def test_a_step_with_projection_is_one_without_it_and_then_projected():
    projected, plain = start(Backprop(effective_lr_mode=PROJECT), *NETS["layer"]), start(Backprop(), *NETS["layer"])
    first = [joint_norm(own) for own in projected._invariant()]
    (batch,) = batches((5,), [6])
    for learner in (projected, plain):
        learner.step(batch)
    together = {id(p): (own, norm) for own, norm in zip(projected._invariant(), first, strict=True) for p in own}
    for name, parameter in projected.net.named_parameters():
        expected = plain.net.get_parameter(name)
        if id(parameter) in together:
            layer = name.split(".")[0]
            both = [plain.net.get_parameter(f"{layer}.{part}") for part in ("weight", "bias")]
            expected = expected * together[id(parameter)][1] / joint_norm(both)
        torch.testing.assert_close(parameter, expected, rtol=1e-12, atol=1e-14)


def test_weights_of_zero_stay():
    learner = start(Backprop(effective_lr_mode=PROJECT), *NETS["batch"])
    with torch.no_grad():
        learner.net.linear_1.weight.zero_()
        learner.projection.project()
    assert not learner.net.linear_1.weight.any()


def test_what_is_initialised_anew_has_new_norms():
    net = NETS["weight_normalised"]
    learner = start(Backprop(effective_lr_mode=PROJECT, reset=Reset.head), *net)
    before = [norm.item() for norm in learner.projection.norms]
    learner.begin_task(make_task(3, index=1))
    after = [norm.item() for norm in learner.projection.norms]
    assert after[:2] == before[:2]
    assert after[2] == pytest.approx(learner.net.head.weight.norm().item(), rel=1e-12) and after[2] != before[2]


@pytest.mark.parametrize("mode", list(EffectiveLrMode))
@pytest.mark.parametrize("optimizer", [Optimizer.sgd, Optimizer.adam])
def test_it_goes_on_from_its_state_bit_for_bit(mode, optimizer):
    e = 0.01 if mode is EffectiveLrMode.scale else None
    config = Backprop(effective_lr=e, effective_lr_mode=mode, optimizer=optimizer, lr=0.01)
    given = batches((5,), [6] * 12, dtype=torch.float32)
    whole, half, again = (start(config, *NETS["layer"], dtype=torch.float32) for _ in range(3))
    for batch in given:
        whole.step(batch)
    for batch in given[:5]:
        half.step(batch)
    for norm in again.projection.norms if again.projection else []:
        norm.zero_()
    again.net.load_state_dict(copy.deepcopy(half.net.state_dict()))
    again.load_state_dict(copy.deepcopy(half.state_dict()))
    for batch in given[5:]:
        again.step(batch)
    assert_equal_states(state_of(whole.net), state_of(again.net))
    assert_equal_states(whole.state_dict(), again.state_dict())


@pytest.mark.parametrize("settings", [{"effective_lr": 0.1}, {"effective_lr_mode": PROJECT}])
@pytest.mark.parametrize("net", [Mlp(widths=[6, 4]), Mlp(widths=[6, 4], layers=Layers(kind=Kind.svd))])
def test_a_network_without_such_layers_is_refused(net, settings):
    with pytest.raises(ConfigError, match=r"scale-invariant.*net\.norm=batch"):
        start(Backprop(**settings), net, (5,))


@pytest.mark.parametrize("wrong", [{"effective_lr": 0.0}, {"effective_lr": 0.1, "effective_lr_mode": PROJECT}])
def test_ranges(wrong):
    with pytest.raises(ConfigError, match="effective_lr"):
        Backprop(**wrong)
