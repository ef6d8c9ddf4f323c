"""The Lanczos process with full re-orthogonalisation: an orthonormal basis, and a symmetric operator in it.

Vectors may be float32; dot products, the projected matrix and its eigenvectors are float64 on the CPU. Two Gram-Schmidt
passes against all earlier vectors keep the basis orthogonal, so no eigenvalue appears twice (Golub & Van Loan, "Matrix
computations", 10.1).
"""

import math

import torch
from torch import Tensor

from plastiscope.error import RunError
from plastiscope.measure.landscape.memory import budget, gigabytes
from plastiscope.measure.landscape.operator import SymmetricOperator


def random_signs(seed: int, purpose: str, probe: int, operator: SymmetricOperator) -> Tensor:
    """A Rademacher vector [D] keyed by (seed, purpose, parameter, element, probe)."""
    return operator.space.signs(seed, purpose, probe, operator.device).to(operator.dtype)


def dot(a: Tensor, b: Tensor) -> float:
    """Inner product in float64."""
    return torch.dot(a.double(), b.double()).item()


def orthogonalised(vector: Tensor, basis: Tensor) -> Tensor:
    """`vector` without its components along the orthonormal rows of `basis` [m, D]; two passes."""
    for _ in range(2):
        vector = vector - (basis @ vector) @ basis
    return vector


class Lanczos:
    """A process that goes on step by step; a step costs one product. Memory 4 D bytes a vector in float32.

    Attributes:
        operator: the symmetric operator H.
        size: m, vectors in the basis.
        steps: products taken.
        beta: norm of what is left of the last product outside the basis.
        first_product: H q_1, [D].
    """

    def __init__(self, operator: SymmetricOperator, start: Tensor, capacity: int) -> None:
        """Begin at `start` [D], with room for `capacity` vectors."""
        self.operator = operator
        self._vectors = torch.empty(capacity, len(start), dtype=operator.dtype, device=operator.device)
        self._matrix = torch.zeros(capacity, capacity, dtype=torch.float64)
        self._rest, self._scale = start, 0.0
        self.size, self.steps, self.beta = 0, 0, 0.0
        self.first_product = torch.empty(0)

    @property
    def basis(self) -> Tensor:
        """Q, orthonormal rows [m, D]."""
        return self._vectors[: self.size]

    @property
    def matrix(self) -> Tensor:
        """T = Q H Q^T, float64 [m, m]: tridiagonal unless begun anew or contracted."""
        return self._matrix[: self.size, : self.size]

    @property
    def is_full(self) -> bool:
        """Whether there is no room for another vector."""
        return self.size == len(self._vectors)

    @property
    def is_exhausted(self) -> bool:
        """Whether the basis spans an invariant space: nothing but rounding is left of the last product."""
        return self.size > 0 and self.beta <= 10 * torch.finfo(self.operator.dtype).eps * self._scale

    def extend(self) -> None:
        """Add the next vector and its product."""
        rest = orthogonalised(self._rest / math.sqrt(dot(self._rest, self._rest)), self.basis)
        vector = rest / math.sqrt(dot(rest, rest))
        self._vectors[self.size] = vector
        self.size += 1
        self.steps += 1
        product = self.operator.products(vector.unsqueeze(0))[0]
        if self.steps == 1:
            self.first_product = product
        column = dots(self.basis, product)
        self._matrix[: self.size, self.size - 1] = self._matrix[self.size - 1, : self.size] = column
        self._rest = orthogonalised(product, self.basis)
        self.beta = math.sqrt(dot(self._rest, self._rest))
        self._scale = max(self._scale, column.abs().max().item(), self.beta)

    def begin_anew(self, start: Tensor) -> None:
        """Go on in the complement of an invariant space, from `start`'s part of it."""
        self._rest, self.beta = orthogonalised(start, self.basis), 0.0

    def ritz(self) -> tuple[Tensor, Tensor]:
        """Ritz values ascending [m] and their coordinates in the basis, columns [m, m]; float64."""
        theta, s = torch.linalg.eigh(self.matrix)
        return theta, s

    def estimates(self, s: Tensor) -> Tensor:
        """|beta_m s_mi|, the residual of each Ritz pair in exact arithmetic: good enough to stop by, no more."""
        return self.beta * s[-1].abs()

    def ritz_vectors(self, s: Tensor) -> Tensor:
        """Unit rows [k, D] of coordinates [m, k]."""
        vectors = s.T.to(self.basis.device, self.basis.dtype) @ self.basis
        return vectors / vectors.double().norm(dim=1, keepdim=True).to(vectors.dtype)

    def contract(self, keep: list[int]) -> None:
        """Thick restart: keep some Ritz vectors and what is left of the last product (Wu & Simon 2000)."""
        theta, s = self.ritz()
        self._vectors[: len(keep)] = self.ritz_vectors(s[:, keep])
        self._matrix.zero_()
        self._matrix.diagonal()[: len(keep)] = theta[keep]
        self.size = len(keep)

    def orthogonality_error(self) -> float:
        """Largest entry of |Q Q^T - I|."""
        gram = torch.stack([dots(self.basis, row) for row in self.basis])
        return (gram - torch.eye(self.size, dtype=torch.float64)).abs().max().item()


def dots(basis: Tensor, vector: Tensor) -> Tensor:
    """Inner products of rows [m, D] with a vector in float64 on the CPU [m], few rows at a time."""
    wide = vector.double()
    return torch.cat([rows.double() @ wide for rows in basis.split(16)]).cpu()


def krylov(operator: SymmetricOperator, start: Tensor, steps: int, memory: int | None = None) -> Lanczos:
    """At most `steps` Lanczos steps from `start` [D]; fewer where the space is exhausted.

    Args:
        operator: symmetric.
        start: of the process.
        steps: and vectors in memory: a process that is to say something of its start cannot be restarted.
        memory: bytes that they may take; None = a share of what is free.

    Raises:
        RunError: they would take more.
    """
    steps, fit = min(steps, operator.space.dimension), vectors_that_fit(operator, memory)
    if steps > fit:
        size = gigabytes(steps * vector_bytes(operator))
        raise RunError(
            f"{steps} Lanczos vectors of {operator.space.dimension} weights take {size}, more than may be taken of the "
            f"free memory; ask for at most {fit} steps (lanczos_steps), or choose fewer parameters (params)"
        )
    process = Lanczos(operator, start, steps)
    while not (process.is_full or process.is_exhausted):
        process.extend()
    return process


def vector_bytes(operator: SymmetricOperator) -> int:
    """Of one vector [D]."""
    return operator.space.dimension * operator.dtype.itemsize


def vectors_that_fit(operator: SymmetricOperator, memory: int | None) -> int:
    """How many vectors may be kept in `memory` bytes; None = a share of what is free."""
    return budget(operator.device, memory) // vector_bytes(operator)
