"""Products with the generalised Gauss-Newton matrix against closed forms, brute force, and curvlinops."""

import pytest
import torch
from landscape_cases import (
    DOUBLE,
    NETS,
    OfWeights,
    exact_hessian,
    fixture_f,
    frozen_loss,
    linear_regression,
    matrix_of,
    net_case,
    softmax_regression,
)
from torch import nn

from plastiscope.measure.landscape.eigenpairs import extreme_eigenpairs
from plastiscope.measure.landscape.frozen import FrozenLoss
from plastiscope.measure.landscape.operator import Backend, GaussNewtonOperator
from plastiscope.measure.loss import Loss

backends = pytest.mark.parametrize("backend", Backend, ids=lambda backend: backend.value)


def by_definition(frozen: FrozenLoss) -> torch.Tensor:
    """(1/N) sum_n J_n^T H_n J_n, entry by entry."""
    weights = frozen.space.values(frozen.net)
    total = torch.zeros(len(weights), len(weights), dtype=DOUBLE)
    for x, y in zip(frozen.inputs.split(1), frozen.targets.split(1), strict=True):

        def outputs(vector, x=x):
            return frozen.outputs(x, frozen.space.named(vector))[0]

        jacobian = torch.autograd.functional.jacobian(outputs, weights)
        curvature = torch.autograd.functional.hessian(
            lambda o, y=y: frozen.per_sample(o.unsqueeze(0), y).sum(), outputs(weights)
        )
        total += jacobian.T @ curvature @ jacobian
    return total / len(frozen)


@pytest.fixture(scope="module")
def expected() -> torch.Tensor:
    return by_definition(fixture_f())


@backends
def test_fixture_f_by_definition(backend: Backend, expected: torch.Tensor) -> None:
    decay = 0.2 * torch.eye(115, dtype=DOUBLE)
    found = matrix_of(GaussNewtonOperator(fixture_f(micro_batch=60, weight_decay=0.2), backend))
    assert (found - expected - decay).abs().max() <= 1e-13
    assert torch.linalg.eigvalsh(found - decay)[0] >= -1e-14
    assert torch.linalg.eigvalsh(exact_hessian(fixture_f()))[0] < -0.3


@backends
@pytest.mark.parametrize("make", [linear_regression, softmax_regression])
def test_it_is_the_hessian_of_linear_nets(backend: Backend, make) -> None:
    frozen, hessian = make()
    found = matrix_of(GaussNewtonOperator(frozen.with_micro_batch(4), backend))
    assert (found - hessian).abs().max() <= 1e-12


def test_it_is_2_j_transposed_j_of_squared_errors() -> None:
    frozen = net_case(NETS["mlp_mse"], 5, micro_batch=3)
    weights = frozen.space.values(frozen.net)
    jacobian = torch.autograd.functional.jacobian(
        lambda v: frozen.outputs(frozen.inputs, frozen.space.named(v)).flatten(), weights
    )
    expected = 2 / len(jacobian) * jacobian.T @ jacobian
    assert (matrix_of(GaussNewtonOperator(frozen)) - expected).norm() <= 1e-13 * expected.norm()


@pytest.mark.parametrize("backend", [Backend.retained, Backend.jvp])
@pytest.mark.parametrize("name", ["mlp_batch", "convnet", "resnet18", "vit"])
def test_networks_of_the_package(backend: Backend, name: str) -> None:
    """v^T G v = (1/N) sum_n (J_n v)^T H_n (J_n v), and it is symmetric."""
    frozen = net_case(NETS[name], 5, micro_batch=3)
    weights = frozen.space.values(frozen.net)
    vector = frozen.space.normals(0, "test", 0).double()
    outputs, moved = torch.func.jvp(
        lambda v: frozen.outputs(frozen.inputs, frozen.space.named(v)), (weights,), (vector,)
    )
    slopes = torch.func.grad(lambda o: frozen.per_sample(o, frozen.targets).sum())
    rises = (torch.func.jvp(slopes, (outputs,), (moved,))[1] * moved).sum() / 5
    product = GaussNewtonOperator(frozen, backend)(vector)
    assert torch.dot(vector, product).item() == pytest.approx(rises.item(), rel=1e-11)
    other = frozen.space.normals(0, "test", 1).double()
    again = GaussNewtonOperator(frozen, backend)(other)
    assert torch.dot(other, product).item() == pytest.approx(torch.dot(vector, again).item(), rel=1e-9)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # of its dependencies, and of forward mode
def test_curvlinops_gives_the_same_matrix() -> None:
    curvlinops = pytest.importorskip("curvlinops", reason="curvlinops is not installed: the extra test-oracles")
    frozen = fixture_f(micro_batch=60)
    data, parameters = list(frozen.batches()), list(frozen.net.parameters())
    oracle = curvlinops.GGNLinearOperator(frozen.net, nn.CrossEntropyLoss(), parameters, data)
    found = matrix_of(GaussNewtonOperator(frozen))
    assert (oracle @ torch.eye(len(found), dtype=DOUBLE) - found).abs().max() <= 1e-12


@backends
def test_weights_without_influence_and_what_moves_them(backend: Backend) -> None:
    """A constant output; and products after the weights have been written to."""
    features, targets = torch.tensor([[0.5], [1.5]], dtype=DOUBLE), torch.zeros(2, 1, dtype=DOUBLE)

    def frozen_of(function, theta: list[float]) -> FrozenLoss:
        return frozen_loss(OfWeights(function, torch.tensor(theta, dtype=DOUBLE)), features, targets, 1, loss=Loss.mse)

    still = frozen_of(lambda t: torch.ones((), dtype=DOUBLE), [1.0, 1.0, 1.0])
    assert matrix_of(GaussNewtonOperator(still, backend)).count_nonzero() == 0
    frozen = frozen_of(lambda t: t.pow(3).sum(), [1.0, 1.0])
    operator = GaussNewtonOperator(frozen, backend)
    operator(torch.ones(2, dtype=DOUBLE))
    with torch.no_grad():
        frozen.net.theta.copy_(torch.tensor([2.0, 3.0]))
    slope = torch.tensor([12.0, 27.0], dtype=DOUBLE)  # of the sum of cubes; the features' mean square is 1.25
    assert (matrix_of(operator) - 2.5 * torch.outer(slope, slope)).abs().max() <= 1e-11


def test_its_spectrum_is_found_like_any(expected: torch.Tensor) -> None:
    frozen = fixture_f()
    exact = torch.linalg.eigvalsh(expected)
    pairs = extreme_eigenpairs(GaussNewtonOperator(frozen, Backend.retained), 2, 0, seed=0, tol=1e-10, max_steps=115)
    assert pairs.top.tolist() == pytest.approx(exact.flip(0)[:2].tolist(), abs=1e-10)
