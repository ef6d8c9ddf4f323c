"""Per-sample gradients against closed forms and against one sample at a time."""

import copy

import pytest
import torch
from gradient_cases import DOUBLE, PACKAGED, GradientCase
from torch import nn

from plastiscope.error import ConfigError
from plastiscope.measure.loss import Loss, per_sample_loss
from plastiscope.measure.sample_gradient import input_gradients, loss_and_input_gradient, sample_norms

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
