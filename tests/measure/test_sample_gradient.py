"""Per-sample gradients against closed forms and against one sample at a time."""

import copy

import pytest
import torch
from gradient_cases import DOUBLE, MODULES, PACKAGED, GradientCase
from torch import Tensor, nn

from plastiscope.error import ConfigError
from plastiscope.measure import ghost_norm, sample_gradient
from plastiscope.measure.loss import Loss, per_sample_loss
from plastiscope.measure.sample_gradient import (
    Engine,
    choose_engine,
    input_gradients,
    loss_and_input_gradient,
    parameter_gradient_norms,
    sample_norms,
)

EVERY = PACKAGED | MODULES
cases = pytest.mark.parametrize("case", PACKAGED.values(), ids=PACKAGED)


def test_linear_softmax_in_closed_form() -> None:
    """The input gradient is W^T (p - y) / T."""
    torch.manual_seed(0)
    net, inputs, labels = nn.Linear(7, 5).double(), torch.randn(9, 7, dtype=DOUBLE), torch.randint(0, 4, (9,))
    for temperature in (1.0, 2.5):
        found = input_gradients(net, Loss.cross_entropy, inputs, labels, 4, temperature)
        errors = (net(inputs)[:, :4] / temperature).softmax(1) - nn.functional.one_hot(labels, 4)
        expected = errors @ net.weight[:4] / temperature
        assert (found.inputs - expected).abs().max() < 1e-12
        assert (found.by_outputs - errors / temperature).abs().max() < 1e-12
    losses, norms, outputs = loss_and_input_gradient(net, Loss.cross_entropy, inputs, labels, 4)
    expected = (net(inputs)[:, :4].softmax(1) - nn.functional.one_hot(labels, 4)) @ net.weight[:4]
    assert (norms - expected.norm(dim=1)).abs().max() < 1e-12
    assert outputs.equal(net(inputs)[:, :4])
    assert losses.equal(per_sample_loss(Loss.cross_entropy, outputs, labels))


@cases
def test_input_gradient_is_that_of_a_sample_alone(case: GradientCase) -> None:
    net, inputs, targets = case.make()
    losses, norms, _ = loss_and_input_gradient(net, case.loss, inputs, targets, case.active)
    for i in range(len(inputs)):
        x = inputs[i : i + 1].clone().requires_grad_()
        loss = per_sample_loss(case.loss, net(x)[:, : case.active], targets[i : i + 1])[0]
        (gradient,) = torch.autograd.grad(loss, x)
        assert losses[i].item() == pytest.approx(loss.item(), rel=1e-12)
        assert norms[i].item() == pytest.approx(gradient.norm().item(), rel=1e-11)


@cases
def test_batch_size_matters_only_by_rounding(case: GradientCase) -> None:
    net, inputs, targets = case.make(23)  # in float32 an activation at 0 may fall on either side of a kink
    whole = loss_and_input_gradient(net, case.loss, inputs, targets, case.active)[1]
    for size in (1, 7):
        pieces = zip(inputs.split(size), targets.split(size), strict=True)
        norms = torch.cat([loss_and_input_gradient(net, case.loss, x, y, case.active)[1] for x, y in pieces])
        assert ((norms - whole).abs() <= 1e-11 * whole).all()


def test_norms_of_channels_last_gradients() -> None:
    values = torch.randn(3, 4, 5, 6, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
    norms = sample_norms(values.to(memory_format=torch.channels_last))
    assert norms.tolist() == pytest.approx(values.flatten(1).norm(dim=1).tolist(), rel=1e-14)


@pytest.mark.parametrize("frozen", [True, False])
def test_nothing_is_touched(frozen: bool) -> None:
    net, inputs, targets = PACKAGED["mlp_batch"].make()
    net.requires_grad_(not frozen)
    for i, parameter in enumerate(net.parameters()):
        parameter.grad = None if i % 2 else torch.full_like(parameter, 3.0)
    grads = [None if p.grad is None else p.grad.clone() for p in net.parameters()]
    state, generator = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    with torch.no_grad():
        loss_and_input_gradient(net, Loss.cross_entropy, inputs, targets, 4)
    assert all(a is b is None or a.equal(b) for a, b in zip(grads, (p.grad for p in net.parameters()), strict=True))
    assert all(p.requires_grad is not frozen for p in net.parameters())
    assert all(value.equal(state[name]) for name, value in net.state_dict().items())
    assert not any(module.training for module in net.modules())
    assert torch.get_rng_state().equal(generator)
    assert not inputs.requires_grad


def test_samples_that_see_each_other_are_refused_by_name() -> None:
    net, inputs, targets = PACKAGED["mlp_batch"].make()
    net.norm_2.train()
    with pytest.raises(ConfigError, match=r"norm_2 .*statistics of the batch"):
        loss_and_input_gradient(net, Loss.cross_entropy, inputs, targets, 4)
    net.eval().dropout_1.train()
    with pytest.raises(ConfigError, match=r"dropout_1 .*at random"):
        loss_and_input_gradient(net, Loss.cross_entropy, inputs, targets, 4)
    without_statistics = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5, track_running_stats=False)).double().eval()
    with pytest.raises(ConfigError, match=r"1 .*statistics of the batch"):
        loss_and_input_gradient(without_statistics, Loss.cross_entropy, inputs.flatten(1), targets, 4)


def brute_force(case: GradientCase, net: nn.Module, inputs: Tensor, targets: Tensor, names: set[str]) -> list[float]:
    """Norm of the gradient of each sample, by one ordinary backward each."""
    net = copy.deepcopy(net).requires_grad_(True)
    norms = []
    for x, y in zip(inputs, targets, strict=True):
        net.zero_grad()
        per_sample_loss(case.loss, net(x[None])[:, : case.active], y[None])[0].backward()
        gradients = [p.grad for name, p in net.named_parameters() if name in names and p.grad is not None]
        norms.append(sum(g.square().sum().item() for g in gradients) ** 0.5)
    return norms


@pytest.mark.parametrize("engine", Engine)
@pytest.mark.parametrize("case", EVERY.values(), ids=EVERY)
def test_parameter_norms_equal_one_sample_at_a_time(case: GradientCase, engine: Engine) -> None:
    net, inputs, targets = case.make(4)
    names = {name for name, _ in net.named_parameters()}
    found = parameter_gradient_norms(net, case.loss, inputs, targets, case.active, engine)
    assert found.tolist() == pytest.approx(brute_force(case, net, inputs, targets, names), rel=1e-10)


@pytest.mark.parametrize("engine", [Engine.ghost, Engine.vmap])
@pytest.mark.parametrize("name", ["convnet", "groups", "reused", "sequence"])
def test_pieces_of_a_batch_join(name: str, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    case = EVERY[name]
    net, inputs, targets = case.make(5)
    whole = parameter_gradient_norms(net, case.loss, inputs, targets, case.active, engine)
    monkeypatch.setitem(ghost_norm.ELEMENTS_AT_ONCE, "cpu", 300)
    monkeypatch.setattr(sample_gradient, "VMAP_ELEMENTS", 1)
    pieces = parameter_gradient_norms(net, case.loss, inputs, targets, case.active, engine)
    assert pieces.tolist() == pytest.approx(whole.tolist(), rel=1e-12)


@pytest.mark.parametrize("engine", [Engine.ghost, Engine.vmap])
@pytest.mark.parametrize("name", ["mlp", "convnet", "resnet18", "vit"])
def test_parameter_norms_in_float32(name: str, engine: Engine) -> None:
    case = PACKAGED[name]
    net, inputs, targets = case.make(5, torch.float32)
    found = parameter_gradient_norms(net, case.loss, inputs, targets, case.active, engine)
    loop = parameter_gradient_norms(net, case.loss, inputs, targets, case.active, Engine.loop)
    assert found.tolist() == pytest.approx(loop.tolist(), rel=1e-5)


@pytest.mark.parametrize("engine", Engine)
@pytest.mark.parametrize("name", ["mlp_batch", "vit", "reused", "sequence"])
def test_frozen_parameters_are_left_out(name: str, engine: Engine) -> None:
    """Those without the flag, unless none has it; those not named, whatever the flags."""
    case = EVERY[name]
    net, inputs, targets = case.make(3)
    names = {name for i, (name, _) in enumerate(net.named_parameters()) if i % 3}
    expected = pytest.approx(brute_force(case, net, inputs, targets, names), rel=1e-10)
    arguments = net, case.loss, inputs, targets, case.active, engine
    assert parameter_gradient_norms(*arguments, names).tolist() == expected
    for parameter_name, parameter in net.named_parameters():
        parameter.requires_grad_(parameter_name in names)
    assert parameter_gradient_norms(*arguments).tolist() == expected
    everything = {name for name, _ in net.named_parameters()}
    net.requires_grad_(False)
    assert parameter_gradient_norms(*arguments).tolist() == pytest.approx(
        brute_force(case, net, inputs, targets, everything), rel=1e-10
    )


@pytest.mark.parametrize("engine", Engine)
def test_parameter_norms_touch_nothing(engine: Engine) -> None:
    net, inputs, targets = PACKAGED["mlp_batch"].make()
    for i, parameter in enumerate(net.parameters()):
        parameter.requires_grad_(bool(i % 2)).grad = torch.full_like(parameter, 3.0)
    state, generator = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    with torch.no_grad():
        norms = parameter_gradient_norms(net, Loss.cross_entropy, inputs, targets, 4, engine)
    assert not norms.requires_grad
    assert [p.requires_grad for p in net.parameters()] == [bool(i % 2) for i in range(len(list(net.parameters())))]
    assert all(bool((p.grad == 3.0).all()) for p in net.parameters())
    assert all(value.equal(state[name]) for name, value in net.state_dict().items())
    assert torch.get_rng_state().equal(generator)
    assert not any(m.training or m._forward_hooks for m in net.modules())
    net.train()
    with pytest.raises(ConfigError, match="norm_1"):
        parameter_gradient_norms(net, Loss.cross_entropy, inputs, targets, 4, engine)


class Odd(nn.Module):
    """A head whose weight is also used without its module; or a scale of its own."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what
        self.first, self.head = nn.Linear(7, 5), nn.Linear(5, 5)
        self.scale = nn.Parameter(torch.randn(5)) if what == "scale" else None

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.first(x))
        if self.what == "functional":
            return nn.functional.linear(self.head(x), self.head.weight)
        out = self.head(x)
        return out if self.scale is None else out * self.scale


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("functional", "ghost: differs from one sample at a time"),
        ("scale", "ghost: scale belongs to a Odd"),
        ("nothing", "it can treat the network"),
    ],
)
def test_an_engine_that_cannot_treat_a_network_is_not_chosen(what: str, reason: str) -> None:
    torch.manual_seed(0)
    net, inputs, labels = Odd(what).eval(), torch.randn(6, 7), torch.randint(0, 5, (6,))
    choice = choose_engine(net, Loss.cross_entropy, inputs, labels, 5)
    assert choice.engine is (Engine.ghost if what == "nothing" else choice.engine)
    assert choice.reason.startswith(reason)
    assert choice == choose_engine(net, Loss.cross_entropy, inputs, labels, 5)
    timed = choose_engine(net, Loss.cross_entropy, inputs, labels, 5, by_timing=True)
    assert timed.reason.startswith("the fastest on the first batch")
    if what != "nothing":
        assert Engine.ghost not in (choice.engine, timed.engine)
