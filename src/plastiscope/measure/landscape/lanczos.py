"""Lanczos with full re-orthogonalisation: extreme eigenpairs with true residuals at both ends, and quadrature nodes.

Vectors may be float32; dot products, the tridiagonal matrix and its eigenvectors are float64 on the CPU. Two
Gram-Schmidt passes against all earlier vectors keep the basis orthogonal, so no eigenvalue appears twice (Golub & Van
Loan, "Matrix computations", 10.1). A residual is always computed from a product: the estimate |beta_m s_mi| fails
below rounding.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from plastiscope.measure.keyed import keyed_normal, keyed_sign
from plastiscope.measure.landscape.operator import SymmetricOperator


@dataclass
class Krylov:
    """A basis of a Krylov space and the operator in it.

    Attributes:
        basis: orthonormal rows [m, D].
        alpha, beta: float64 [m], [m]: diagonal, and norms of the next vector (the last one is what is left).
    """

    basis: Tensor
    alpha: Tensor
    beta: Tensor

    @property
    def tridiagonal(self) -> Tensor:
        """T = Q H Q^T, float64 [m, m]."""
        off = self.beta[:-1]
        return torch.diag(self.alpha) + torch.diag(off, 1) + torch.diag(off, -1)

    def orthogonality_error(self) -> float:
        """Largest entry of |Q Q^T - I|."""
        gram = (self.basis.double() @ self.basis.double().T).cpu()
        return (gram - torch.eye(len(gram), dtype=torch.float64)).abs().max().item()


def random_signs(seed: int, purpose: str, probe: int, operator: SymmetricOperator) -> Tensor:
    """A Rademacher vector [D] keyed by (seed, purpose, coordinate, probe), equal on every device."""
    coordinates = torch.arange(operator.dimension, device=operator.device)
    return keyed_sign(seed, purpose, coordinates, probe).to(operator.dtype)


def random_gaussian(seed: int, purpose: str, k: int, operator: SymmetricOperator) -> Tensor:
    """A Gaussian vector [D] keyed like `random_signs`."""
    coordinates = torch.arange(operator.dimension, device=operator.device)
    return keyed_normal(seed, purpose, coordinates, k).to(operator.dtype)


def dot(a: Tensor, b: Tensor) -> float:
    """Inner product in float64."""
    return torch.dot(a.double(), b.double()).item()


def orthogonalised(vector: Tensor, basis: Tensor) -> Tensor:
    """`vector` without its components along the orthonormal rows of `basis` [m, D]; two passes."""
    for _ in range(2):
        if len(basis):
            vector = vector - (basis @ vector) @ basis
    return vector


def krylov(operator: SymmetricOperator, start: Tensor, steps: int) -> Krylov:
    """At most `steps` Lanczos steps from `start` [D]; fewer where the space is exhausted.

    A step costs one product. Memory 4 m D bytes in float32.
    """
    steps = min(steps, operator.dimension)
    basis = torch.empty(steps, operator.dimension, dtype=operator.dtype, device=operator.device)
    basis[0] = start / math.sqrt(dot(start, start))
    alphas, betas = [], []
    scale = 0.0
    for j in range(steps):
        product = operator.products(basis[j : j + 1])[0]
        alpha = dot(basis[j], product)
        rest = orthogonalised(product, basis[: j + 1])
        beta = math.sqrt(dot(rest, rest))
        alphas.append(alpha)
        betas.append(beta)
        scale = max(scale, abs(alpha), beta)
        if j + 1 == steps or beta <= 10 * torch.finfo(operator.dtype).eps * scale:
            break
        following = orthogonalised(rest / beta, basis[: j + 1])
        basis[j + 1] = following / math.sqrt(dot(following, following))
    m = len(alphas)
    return Krylov(basis[:m], torch.tensor(alphas, dtype=torch.float64), torch.tensor(betas, dtype=torch.float64))


@dataclass
class Eigenpairs:
    """Extreme eigenpairs.

    Attributes:
        values: float64 [n], descending: the largest ones, then the smallest ones.
        vectors: unit rows [n, D]; the entry of largest magnitude is positive.
        residuals: ||H y - theta y|| of each, float64 [n]; an exact eigenvalue lies within it of the value.
        gaps: distance of each value to the nearest other Ritz value, float64 [n].
        converged: residual <= tol * max |theta|, bool [n].
        num_top: how many of them are the largest ones.
        steps: Lanczos steps taken.
        products: cost.
        orthogonality_error: of the basis.
    """

    values: Tensor
    vectors: Tensor
    residuals: Tensor
    gaps: Tensor
    converged: Tensor
    num_top: int
    steps: int
    products: int
    orthogonality_error: float

    @property
    def top(self) -> Tensor:
        """The largest values, descending."""
        return self.values[: self.num_top]

    @property
    def bottom(self) -> Tensor:
        """The smallest values, ascending."""
        return self.values[self.num_top :].flip(0)

    @property
    def is_plane_unique(self) -> bool:
        """Whether the first two eigenvectors are told apart from each other and from the third."""
        two = slice(0, 2)
        return bool((self.gaps[two] > self.residuals[two]).all())


def extreme_eigenpairs(
    operator: SymmetricOperator, top: int, bottom: int, *, seed: int, tol: float = 1e-3, max_steps: int | None = None
) -> Eigenpairs:
    """The `top` largest and `bottom` smallest eigenpairs by one Lanczos process.

    The process goes on until all are converged, the space is exhausted, or `max_steps` (10 k + 20 by default) are
    taken. Where an exhausted space has too few vectors (repeated eigenvalues), it goes on from a fresh one.

    Args:
        operator: symmetric.
        top, bottom: how many at each end.
        seed: of the start.
        tol: relative to the largest magnitude.
        max_steps: Lanczos steps at most.
    """
    wanted = min(top + bottom, operator.dimension)
    top = min(top, operator.dimension)
    bottom = wanted - top
    limit = min(max_steps or 10 * wanted + 20, operator.dimension)
    process = _Process(operator, seed, limit)
    before = process.products
    while True:
        process.run(min(limit, max(process.size + 10, 2 * wanted)))
        theta, s = process.ritz()
        chosen = [*range(len(theta) - 1, len(theta) - 1 - top, -1), *range(bottom - 1, -1, -1)]
        if len(theta) >= wanted:
            bound = tol * theta.abs().max()
            if process.size >= limit or (process.estimates(s)[chosen] <= bound).all():
                break
    return _pairs(process, theta, s, chosen, top, tol, before)


class _Process:
    """A block-free Lanczos process that can be continued, and restarted in the complement when it is exhausted."""

    def __init__(self, operator: SymmetricOperator, seed: int, limit: int) -> None:
        self.operator, self.seed, self.products, self.restarts = operator, seed, 0, 0
        self.basis = torch.empty(limit, operator.dimension, dtype=operator.dtype, device=operator.device)
        self.matrix = torch.zeros(limit, limit, dtype=torch.float64)
        self.size, self.rest, self.beta, self.scale = 0, self._fresh(), 0.0, 0.0

    def _fresh(self) -> Tensor:
        start = random_gaussian(self.seed, "lanczos", self.restarts, self.operator)
        self.restarts += 1
        return start

    def run(self, size: int) -> None:
        """Go on until the basis has `size` vectors."""
        while self.size < size:
            done = self.basis[: self.size]
            vector = orthogonalised(self.rest / math.sqrt(dot(self.rest, self.rest)), done)
            self.basis[self.size] = vector / math.sqrt(dot(vector, vector))
            self._extend()

    def _extend(self) -> None:
        j = self.size
        product = self.operator.products(self.basis[j : j + 1])[0]
        self.products += 1
        self.size += 1
        done = self.basis[: self.size]
        column = (
            (done.double() @ product.double()).cpu() if self.operator.dtype == torch.float64 else _dots(done, product)
        )
        self.matrix[: self.size, j] = self.matrix[j, : self.size] = column
        self.rest = orthogonalised(product, done)
        self.beta = math.sqrt(dot(self.rest, self.rest))
        self.scale = max(self.scale, column.abs().max().item(), self.beta)
        if self.beta <= 10 * torch.finfo(self.operator.dtype).eps * self.scale:
            self.beta = 0.0
            self.rest = orthogonalised(self._fresh(), done)

    def ritz(self) -> tuple[Tensor, Tensor]:
        """Ritz values ascending and their coordinates in the basis (columns), float64."""
        theta, s = torch.linalg.eigh(self.matrix[: self.size, : self.size])
        return theta, s

    def estimates(self, s: Tensor) -> Tensor:
        """|beta_m s_mi|, good enough to stop by."""
        return self.beta * s[-1].abs()


def _dots(basis: Tensor, vector: Tensor) -> Tensor:
    return torch.stack([torch.dot(row.double(), vector.double()) for row in basis]).cpu()


def _pairs(
    process: _Process, theta: Tensor, s: Tensor, chosen: list[int], top: int, tol: float, before: int
) -> Eigenpairs:
    basis = process.basis[: process.size]
    vectors = s[:, chosen].T.to(basis.device, basis.dtype) @ basis
    vectors = vectors / vectors.double().norm(dim=1, keepdim=True).to(basis.dtype)
    largest = vectors.abs().argmax(1, keepdim=True)
    vectors = vectors * torch.sign(vectors.gather(1, largest))
    products = process.operator.products(vectors)
    process.products += len(chosen)
    values = theta[chosen]
    left = products.double() - values.to(products.device).unsqueeze(1) * vectors.double()
    residuals = left.norm(dim=1).cpu()
    gaps = torch.tensor([_gap(theta, i) for i in chosen], dtype=torch.float64)
    return Eigenpairs(
        values=values,
        vectors=vectors,
        residuals=residuals,
        gaps=gaps,
        converged=residuals <= tol * theta.abs().max(),
        num_top=top,
        steps=process.size,
        products=process.products - before,
        orthogonality_error=Krylov(basis, torch.empty(0), torch.empty(0)).orthogonality_error(),
    )


def _gap(theta: Tensor, i: int) -> float:
    others = torch.cat([theta[:i], theta[i + 1 :]])
    return (others - theta[i]).abs().min().item() if len(others) else math.inf
