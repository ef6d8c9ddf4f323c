"""Spectral regularisation: penalty, gradient, power iteration, and what the learner adds to which gradients."""

import math

import pytest
import torch
from learning import batches, goes_on_from_its_state, start
from torch import Tensor, nn

from plastiscope.error import ConfigError
from plastiscope.learner.backprop import Backprop
from plastiscope.learner.optimizer import Optimizer
from plastiscope.learner.spectral_regularization import (
    SpectralRegularization,
    SpectralRegularizationLearner,
    largest_singular,
    penalty,
    penalty_slope,
    power_iteration,
)
from plastiscope.learner.trainee import Trainee
from plastiscope.net.activation import Activation
from plastiscope.net.convnet import ConvNet
from plastiscope.net.layers import Kind, Layers
from plastiscope.net.mlp import Mlp, Norm
from plastiscope.net.resnet18 import ResNet18
from plastiscope.net.stacked import stack

MATRIX = torch.tensor([[2.0, 0.0], [0.0, 0.5]], dtype=torch.float64)


def penalty_of(matrix: Tensor, beta: float = 1.0, exponent: float = 2.0) -> Tensor:
    return penalty(torch.linalg.matrix_norm(matrix, 2), beta, exponent)


def gradient_of(matrix: Tensor, beta: float = 1.0, exponent: float = 2.0) -> Tensor:
    sigma, left, right = largest_singular(matrix)
    return penalty_slope(sigma, beta, exponent) * torch.outer(left, right)


def test_penalty_and_gradient_of_a_diagonal_matrix():
    assert penalty_of(MATRIX).item() == pytest.approx(9.0, rel=1e-14)
    expected = torch.tensor([[24.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(gradient_of(MATRIX), expected, rtol=1e-14, atol=1e-14)
    unit = torch.tensor([[1.0, 0.0], [0.0, 0.5]], dtype=torch.float64)
    assert penalty_of(unit) == 0.0 and not gradient_of(unit).any()


@pytest.mark.parametrize("exponent", [1.0, 2.0, 3.0])
def test_the_gradient_is_that_of_central_differences(exponent):
    matrix = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for given in (MATRIX, matrix):
        found = gradient_of(given, 0.7, exponent)
        for i, j in [(i, j) for i in range(given.shape[0]) for j in range(given.shape[1])]:
            step = torch.zeros_like(given)
            step[i, j] = 1e-6
            central = (penalty_of(given + step, 0.7, exponent) - penalty_of(given - step, 0.7, exponent)) / 2e-6
            assert found[i, j].item() == pytest.approx(central.item(), abs=1e-6)


def test_power_iteration_finds_the_largest_singular_value():
    left = torch.tensor([1.0, 1.0], dtype=torch.float64) / 2**0.5
    found = []
    for _ in range(5):
        sigma, left, right = power_iteration(MATRIX, left)
        found.append(sigma.item())
    assert found[:2] == pytest.approx([1.944071, 1.999771], abs=5e-7)
    assert found[4] == pytest.approx(2.0, rel=1e-11)
    for n, sigma in enumerate(found, start=1):
        before, after = (math.hypot(2.0**power, 0.5**power) for power in (2 * n - 1, 2 * n))
        assert sigma == pytest.approx(after / before, rel=1e-14)
    torch.testing.assert_close(right, torch.tensor([1.0, 0.0], dtype=torch.float64), rtol=0, atol=1e-5)


def test_power_iteration_is_of_each_matrix_of_a_batch():
    generator = torch.Generator().manual_seed(0)
    matrices = torch.randn(3, 5, 4, dtype=torch.float64, generator=generator)
    starts = torch.randn(3, 5, dtype=torch.float64, generator=generator)
    together = power_iteration(matrices, starts)
    for r in range(3):
        for one, other in zip(power_iteration(matrices[r], starts[r]), together, strict=True):
            torch.testing.assert_close(one, other[r], rtol=1e-13, atol=1e-14)


def test_equal_largest_values_and_a_zero_matrix_are_finite():
    eye = torch.eye(3, dtype=torch.float64) * 2
    assert torch.isfinite(gradient_of(eye)).all()
    left = torch.ones(3, dtype=torch.float64) / 3**0.5
    for matrix, expected in ((eye, 2.0), (0 * eye, 0.0), (eye, 2.0)):
        sigma, left, right = power_iteration(matrix, left)
        assert sigma.item() == pytest.approx(expected) and torch.isfinite(right).all()
        assert torch.linalg.vector_norm(left).item() == pytest.approx(1.0)


# The learner.

NETS = {
    "mlp": (Mlp(widths=[6, 4]), (5,)),
    "batch norm, prelu": (Mlp(widths=[6, 4], norm=Norm.batch, activation=Activation.prelu), (5,)),
    "weight-normalised": (Mlp(widths=[6, 4], layers=Layers(kind=Kind.weight_normalised)), (5,)),
    "convnet": (ConvNet(channels=[4, 5], kernel_sizes=[3, 2], widths=[6]), (2, 13, 13)),
    "convnet, weight-normalised": (
        ConvNet(channels=[4, 5], kernel_sizes=[3, 2], widths=[6], layers=Layers(kind=Kind.weight_normalised)),
        (2, 13, 13),
    ),
    "resnet18": (ResNet18(width=2), (3, 8, 8)),
}


def whole_penalty(net: nn.Module, beta: float, exponent: float) -> Tensor:
    """By autograd through torch's own matrix norm."""
    total = torch.zeros((), dtype=torch.float64)
    for module in net.modules():
        weight = module._parameters.get("weight")
        is_slope = isinstance(module, nn.PReLU)
        if weight is not None and weight.ndim > 1:
            effective = module.effective_weight() if hasattr(module, "effective_weight") else weight
            total = total + beta * (torch.linalg.matrix_norm(effective.flatten(1), 2) ** exponent - 1).square()
        elif weight is not None and not is_slope:
            total = total + beta * (weight - 1).square().sum()
        if module._parameters.get("bias") is not None:
            total = total + beta * module.bias.square().sum()
    return total


def moved(learner: SpectralRegularizationLearner) -> None:
    """Away from the start, where biases of norms are 0 and their scales 1."""
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in learner.parameters:
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.3)


@pytest.mark.parametrize("net", NETS)
def test_what_is_added_is_the_gradient_of_the_penalty(net):
    config, shape = NETS[net]
    learner = start(SpectralRegularization(beta=0.3, exponent=3.0, exact=True, lr=0.0), config, shape)
    moved(learner)
    plain = start(Backprop(lr=0.0), config, shape)
    plain.net.load_state_dict(learner.net.state_dict())
    (batch,) = batches(shape, [6])
    losses = [one.step(batch)[0] for one in (learner, plain)]
    assert torch.equal(*losses)
    parameters = dict(learner.net.named_parameters())
    expected = torch.autograd.grad(
        whole_penalty(learner.net, 0.3, 3.0), list(parameters.values()), allow_unused=True, materialize_grads=True
    )
    for (name, parameter), wanted in zip(parameters.items(), expected, strict=True):
        found = parameter.grad - plain.net.get_parameter(name).grad
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12, msg=name)
    for name, buffer in plain.net.named_buffers():
        assert torch.equal(learner.net.get_buffer(name), buffer), name


def test_vectors_are_left_alone_on_request():
    given = batches((5,), [6])[0]
    config, shape = NETS["batch norm, prelu"]
    learner = start(SpectralRegularization(beta=0.3, include_vectors=False), config, shape)
    plain = start(Backprop(), config, shape)
    for one in (learner, plain):
        one.step(given)
    for name, parameter in learner.net.named_parameters():
        assert torch.equal(parameter.grad, plain.net.get_parameter(name).grad) == (parameter.ndim == 1), name


def test_the_iteration_follows_the_weights_and_is_told():
    """One iteration a step is enough: weights move little between steps."""
    learner = start(SpectralRegularization(beta=0.0, lr=1e-3), *NETS["convnet"])
    for batch in batches((2, 13, 13), [6] * 60):
        learner.step(batch)
    numbers = learner.numbers()
    assert set(numbers) == {f"{path}/largest_singular_value" for path in ("conv_1", "conv_2", "linear_1", "head")}
    for path, module in learner.matrices.items():
        exact = torch.linalg.matrix_norm(module.weight.detach().flatten(1), 2).item()
        assert float(numbers[f"{path}/largest_singular_value"]) == pytest.approx(exact, rel=1e-2)


def test_the_penalty_alone_drives_largest_values_to_one():
    learner = start(SpectralRegularization(beta=0.05, momentum=0.0, lr=0.05), Mlp(widths=[6]), (5,))
    biases = [learner.net.linear_1.bias, learner.net.head.bias]
    before = [bias.detach().clone() for bias in biases]
    for _ in range(400):
        for parameter in learner.parameters:
            parameter.grad = torch.zeros_like(parameter)
        learner.adjust_gradients()
        learner.optimizer.step()
    for module in learner.matrices.values():
        assert torch.linalg.matrix_norm(module.weight.detach(), 2).item() == pytest.approx(1.0, abs=1e-3)
    for bias, start_value in zip(biases, before, strict=True):
        torch.testing.assert_close(bias.detach(), start_value * (1 - 2 * 0.05 * 0.05) ** 400)


def test_a_head_that_starts_at_zero_is_found_again():
    learner = start(SpectralRegularization(), Mlp(widths=[6]), (5,))
    with torch.no_grad():
        learner.net.head.weight.zero_()
    for batch in batches((5,), [6] * 4):
        learner.step(batch)
    assert learner.largest["head"] > 0
    assert all(torch.isfinite(parameter).all() for parameter in learner.parameters)


def test_layers_of_several_factors_are_refused():
    with pytest.raises(ConfigError, match=r"weights of layer linear_1 \(SvdLinear\) are a product"):
        start(SpectralRegularization(), Mlp(widths=[6], layers=Layers(kind=Kind.svd)), (5,))


@pytest.mark.parametrize("wrong", [{"beta": -1.0}, {"exponent": 0.5}])
def test_ranges(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        SpectralRegularization(**wrong)


@pytest.mark.parametrize("optimizer", [Optimizer.sgd, Optimizer.adam])
def test_it_goes_on_from_its_state_bit_for_bit(optimizer):
    goes_on_from_its_state(SpectralRegularization(optimizer=optimizer, lr=0.01), *NETS["mlp"])


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("net", ["mlp", "batch norm, prelu", "weight-normalised", "convnet"])
def test_each_of_several_runs_is_as_alone(net, exact):
    seeds, (kind, shape) = [0, 3, 8], NETS[net]
    config = SpectralRegularization(beta=0.1, exact=exact)
    singles = [start(config, kind, shape) for _ in seeds]
    for learner, seed in zip(singles, seeds, strict=True):
        with torch.no_grad():
            for parameter in learner.parameters:
                parameter.add_(
                    torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)) * 0.1,
                )
    stacked = stack([learner.net for learner in singles])
    singles = [
        SpectralRegularizationLearner(config, Trainee(one.net, one.units, one.initial_net, seed))
        for one, seed in zip(singles, seeds, strict=True)
    ]
    together = SpectralRegularizationLearner(
        config, Trainee(stacked, singles[0].units, singles[0].initial_net, seeds, lead=1)
    )
    generator = torch.Generator().manual_seed(1)
    for _ in range(4):
        for name, parameter in together.net.named_parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            for r, learner in enumerate(singles):
                learner.net.get_parameter(name).grad = parameter.grad[r].clone()
        for learner in (together, *singles):
            learner.adjust_gradients()
            learner.optimizer.step()
    for r, learner in enumerate(singles):
        for name, parameter in learner.net.named_parameters():
            torch.testing.assert_close(together.net.get_parameter(name)[r], parameter, rtol=1e-10, atol=1e-12)
        for name, value in learner.numbers().items():
            torch.testing.assert_close(together.numbers()[name][r], value, rtol=1e-10, atol=1e-12)
