"""The Lanczos process with full re-orthogonalisation: an orthonormal basis, and a symmetric operator in it.

Vectors may be float32; dot products, the projected matrix and its eigenvectors are float64 on the CPU. Two Gram-Schmidt
passes against all earlier vectors keep the basis orthogonal, so no eigenvalue appears twice (Golub & Van Loan, "Matrix
computations", 10.1).
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from plastiscope.error import RunError
from plastiscope.measure.landscape.memory import budget, gigabytes
from plastiscope.measure.landscape.operator import SymmetricOperator

ENTRIES, ENTRIES_CUDA = 2**19, 2**26
"""Of a basis, worked on at a time: 4 megabytes in float64; where each launch costs, more."""
MOST_PASSES = 4
KEPT_BY_A_PASS = 0.7
"""Of a norm: a pass that leaves more has taken away rounding alone."""


def random_signs(seed: int, purpose: str, probe: int, operator: SymmetricOperator) -> Tensor:
    """A Rademacher vector [D] keyed by (seed, purpose, parameter, element, probe)."""
    return operator.space.signs(seed, purpose, probe, operator.device).to(operator.dtype)


def dot(a: Tensor, b: Tensor) -> float:
    """Inner product in float64."""
    return torch.dot(a.double(), b.double()).item()


def orthogonalised(vector: Tensor, basis: Tensor) -> Tensor:
    """`vector` without its components along the orthonormal rows of `basis` [m, D]; see `freed`."""
    return freed(vector, basis)[1]


def freed(vector: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    """Components of a vector [D] along orthonormal rows [m, D], float64 on the CPU, and what is left without them [D].

    Gram-Schmidt passes, two at least; further ones while a pass takes away a large part of what the one before left,
    for then rounding is a large part of it, too (Daniel et al. 1976). A pass takes the components of the last one away
    and finds the next ones chunk by chunk, so it reads the basis once; the components of the first are found in
    float64, each number converted once.
    """
    first = along = dots(basis, vector)
    if not len(basis):
        return first, vector
    left, before = vector.clone(), math.inf
    for step in range(1, MOST_PASSES + 1):
        along, after = _pass(left, basis, along.to(basis.device, basis.dtype))
        if step > 1 and (after > KEPT_BY_A_PASS * before or not after):
            break
        before = after
    return first, left


def _pass(left: Tensor, basis: Tensor, along: Tensor) -> tuple[Tensor, float]:
    """Take `along` [m] times the rows away from `left` in place; its components then, and its norm."""
    found = torch.zeros_like(along)
    for part in chunks(basis):
        rows, rest = basis[:, part], left[part]
        rest -= along @ rows
        found += rows @ rest
    return found, math.sqrt(dot(left, left))


def chunks(basis: Tensor) -> list[slice]:
    """Places of columns of a basis [m, D] that are worked on together: so few that they fit into a cache."""
    m, dimension = basis.shape
    size = min(max(1, (ENTRIES_CUDA if basis.is_cuda else ENTRIES) // max(m, 1)), dimension)
    return [slice(begin, begin + size) for begin in range(0, dimension, size)]


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
        vector = self._rest / math.sqrt(dot(self._rest, self._rest))
        self._vectors[self.size] = vector
        self.size += 1
        self.steps += 1
        product = self.operator.products(vector.unsqueeze(0))[0]
        if self.steps == 1:
            self.first_product = product
        column, self._rest = freed(product, self.basis)
        self._matrix[: self.size, self.size - 1] = self._matrix[self.size - 1, : self.size] = column
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
        self._rest = orthogonalised(self._rest / math.sqrt(dot(self._rest, self._rest)), self.basis)

    def orthogonality_error(self) -> float:
        """Largest entry of |Q Q^T - I|."""
        gram = torch.zeros(self.size, self.size, dtype=torch.float64, device=self.basis.device)
        for _, columns in in_float64(self.basis):
            gram += columns @ columns.T
        return (gram.cpu() - torch.eye(self.size, dtype=torch.float64)).abs().max().item()


def dots(basis: Tensor, vector: Tensor) -> Tensor:
    """Inner products of rows [m, D] with a vector in float64 on the CPU [m], few columns at a time."""
    found = torch.zeros(len(basis), dtype=torch.float64, device=basis.device)
    for part, columns in in_float64(basis):
        found += columns @ vector[part].double()
    return found.cpu()


def in_float64(basis: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Chunks of columns of a basis [m, D] with their places, each converted once, into the same memory."""
    places = chunks(basis)
    if basis.dtype is torch.float64 or not places:
        yield from ((part, basis[:, part]) for part in places)
        return
    wide = torch.empty(len(basis), places[0].stop, dtype=torch.float64, device=basis.device)
    for part in places:
        columns = basis[:, part]
        yield part, wide[:, : columns.shape[1]].copy_(columns)


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
