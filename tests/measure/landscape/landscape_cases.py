"""Losses over which the landscape is compared with closed forms and with brute force."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from measure.gradient_cases import PACKAGED, GradientCase
from plastiscope.measure.landscape.frozen import FrozenLoss
from plastiscope.measure.landscape.operator import HessianOperator
from plastiscope.measure.landscape.space import ParameterSpace, choose
from plastiscope.measure.loss import Loss, per_sample_loss

DOUBLE = torch.float64
TOP = [0.61459031, 0.42869625, 0.39665148, 0.35907464, 0.35471587]
"""Largest eigenvalues of fixture F, descending."""
BOTTOM = [-0.31657632, -0.28182838]
"""Smallest ones, ascending."""
TRACE, FROBENIUS2, PROBE_VARIANCE = 2.34810752, 2.68996688, 4.90322435

NETS = {name: PACKAGED[name] for name in ("mlp", "mlp_mse", "mlp_batch", "convnet", "resnet18", "vit")}
"""Networks of the package: plain, regression, batch norm and dropout, convolutions, attention."""


def frozen_loss(net: nn.Module, inputs: Tensor, targets: Tensor, outputs: int, **options) -> FrozenLoss:
    options = {"loss": Loss.cross_entropy, "space": choose(net)} | options
    return FrozenLoss(net=net.eval(), inputs=inputs, targets=targets, active_outputs=outputs, **options)


def fixture_f(dtype: torch.dtype = DOUBLE, **options) -> FrozenLoss:
    """Fixture F: a net of 115 weights with a softmax loss on 64 samples, drawn in float32."""
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(10, 8), nn.Tanh(), nn.Linear(8, 3))
    inputs, targets = torch.randn(64, 10), torch.randint(0, 3, (64,))
    return frozen_loss(net.to(dtype), inputs.to(dtype), targets, 3, **options)


def net_case(case: GradientCase, n: int = 6, **options) -> FrozenLoss:
    net, inputs, targets = case.make(n)
    return frozen_loss(net, inputs, targets, case.active, loss=case.loss, **options)


class OfWeights(nn.Module):
    """A net whose one output is a function of its weights, times the first feature of the input."""

    def __init__(self, function: Callable[[Tensor], Tensor], theta: Tensor) -> None:
        super().__init__()
        self.theta, self.function = nn.Parameter(theta.clone()), function

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs[:, :1] * self.function(self.theta)


def loss_of_weights(function: Callable[[Tensor], Tensor], theta: Tensor, **options) -> FrozenLoss:
    """The frozen loss L(theta) = function(theta): two samples whose mean feature is 1."""
    inputs = torch.tensor([[0.5], [1.5]], dtype=theta.dtype)
    net = OfWeights(function, theta)
    return frozen_loss(net, inputs, torch.zeros(2), 1, loss=lambda outputs, _: outputs[:, 0], **options)


def quadratic(matrix: Tensor, slope: Tensor, theta: Tensor, **options) -> FrozenLoss:
    """.5 theta^T A theta + b^T theta."""
    return loss_of_weights(lambda t: 0.5 * torch.dot(t, matrix @ t) + torch.dot(slope, t), theta, **options)


def with_spectrum(values: Tensor, seed: int = 0) -> Tensor:
    """A symmetric matrix with these eigenvalues and random eigenvectors."""
    generator = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(len(values), len(values), dtype=values.dtype, generator=generator))
    matrix = q @ torch.diag(values) @ q.T
    return (matrix + matrix.T) / 2


def quadratic_case(seed: int = 0, **options) -> tuple[FrozenLoss, Tensor, Tensor]:
    """A quadratic with negatives, a zero cluster and a repeated top: the loss, A, b."""
    values = torch.cat(
        [torch.tensor([-3.0, -2.0, -1.0]), torch.zeros(8), torch.linspace(0.1, 4, 26), torch.full((3,), 5.0)]
    )
    matrix = with_spectrum(values.to(DOUBLE), seed)
    generator = torch.Generator().manual_seed(seed + 1)
    slope, theta = torch.randn(2, len(values), dtype=DOUBLE, generator=generator)
    return quadratic(matrix, slope, theta, **options), matrix, slope


class DenseOperator:
    """A matrix as an operator."""

    def __init__(self, matrix: Tensor) -> None:
        self.matrix, self.dtype, self.device = matrix, matrix.dtype, matrix.device
        self.space = ParameterSpace(("theta",), (torch.Size([len(matrix)]),))
        self.count = 0

    def products(self, vectors: Tensor) -> Tensor:
        self.count += len(vectors)
        return vectors @ self.matrix


def mean_loss(frozen: FrozenLoss) -> Callable[[Tensor], Tensor]:
    """L as a function of the flat chosen weights, all samples in one batch."""

    def at(vector: Tensor) -> Tensor:
        outputs = torch.func.functional_call(frozen.net, frozen.space.named(vector), (frozen.inputs,))
        outputs = outputs[:, : frozen.active_outputs]
        if isinstance(frozen.loss, Loss):
            return per_sample_loss(frozen.loss, outputs, frozen.targets).mean()
        return frozen.loss(outputs, frozen.targets).mean()

    return at


def exact_hessian(frozen: FrozenLoss) -> Tensor:
    """The Hessian entry by entry, by torch.autograd.functional."""
    return torch.autograd.functional.hessian(mean_loss(frozen), frozen.space.values(frozen.net))


def matrix_of(operator: HessianOperator) -> Tensor:
    return operator.products(torch.eye(operator.space.dimension, dtype=operator.dtype))


def state_of(net: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in (*net.named_parameters(), *net.named_buffers())}


def linear_regression(n: int = 11) -> tuple[FrozenLoss, Tensor]:
    """Mean over outputs of the squared error of a linear net, and its Hessian 2 / (N k) I (x) X^T X."""
    torch.manual_seed(0)
    net = nn.Linear(5, 3, bias=False).double()
    inputs, targets = torch.randn(n, 5, dtype=DOUBLE), torch.randn(n, 3, dtype=DOUBLE)
    hessian = torch.kron(torch.eye(3, dtype=DOUBLE), inputs.T @ inputs) * 2 / (n * 3)
    return frozen_loss(net, inputs, targets, 3, loss=Loss.mse), hessian


def softmax_regression(n: int = 11) -> tuple[FrozenLoss, Tensor]:
    """Cross-entropy of a linear net, and its Hessian mean_n (diag p - p p^T) (x) x x^T."""
    torch.manual_seed(0)
    net = nn.Linear(5, 3, bias=False).double()
    inputs, targets = torch.randn(n, 5, dtype=DOUBLE), torch.randint(0, 3, (n,))
    p = F.softmax(net(inputs).detach(), 1)
    hessian = sum(
        torch.kron(torch.diag(q) - torch.outer(q, q), torch.outer(x, x)) for q, x in zip(p, inputs, strict=True)
    )
    return frozen_loss(net, inputs, targets, 3), hessian / n
