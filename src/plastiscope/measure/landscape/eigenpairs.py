"""Extreme eigenpairs of a symmetric operator, at both ends of its spectrum, with true residuals.

A residual is always computed from a product: the estimate |beta_m s_mi| fails below rounding. Whatever the process
missed, some exact eigenvalue lies within its residual of every value (Parlett, "The symmetric eigenvalue problem",
4.5).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum

import torch
from torch import Tensor

from plastiscope.error import ConfigError
from plastiscope.measure.landscape.krylov import Lanczos, vectors_that_fit
from plastiscope.measure.landscape.operator import SymmetricOperator

STEPS_BETWEEN_LOOKS = 10
ROUNDING = 100
"""Gaps below so many units of rounding of the largest value are none."""


class Order(Enum):
    """Which eigenvalues are the first."""

    algebraic = "algebraic"
    """The largest."""
    magnitude = "magnitude"
    """Those of the largest magnitude, of whatever sign."""


@dataclass(frozen=True)
class Eigenpairs:
    """Extreme eigenpairs.

    Attributes:
        values: float64 [n]: the top ones in their order, then the smallest ones, descending.
        vectors: unit rows [n, D]; the entry of largest magnitude is positive.
        images: H y of each vector, rows [n, D].
        residuals: ||H y - theta y|| of each, float64 [n]; an exact eigenvalue lies within it of the value.
        gaps: distance of each value to the nearest other Ritz value, float64 [n]. One start sees one vector of an
            eigenspace, so copies of a repeated eigenvalue show only after the rest of the space is exhausted.
        converged: residual <= tol * max |theta|, bool [n].
        is_distinct: the gap is larger than the residual and than rounding, bool [n]; else the vector is one of many in
            an invariant space.
        num_top: how many of them are the top ones.
        steps: Lanczos steps taken.
        products: cost: the steps, and one for each residual.
        orthogonality_error: of the basis.
        is_by_magnitude: whether the top ones are those of the largest magnitude.
        notes: what was changed for lack of memory, in words.
    """

    values: Tensor
    vectors: Tensor
    images: Tensor
    residuals: Tensor
    gaps: Tensor
    converged: Tensor
    is_distinct: Tensor
    num_top: int
    steps: int
    products: int
    orthogonality_error: float
    is_by_magnitude: bool = False
    notes: tuple[str, ...] = ()

    @property
    def top(self) -> Tensor:
        """The top values, in their order."""
        return self.values[: self.num_top]

    @property
    def bottom(self) -> Tensor:
        """The smallest values, ascending."""
        return self.values[self.num_top :].flip(0)

    @property
    def is_plane_unique(self) -> bool:
        """Whether there are two top eigenvectors, each told apart from all others."""
        return self.num_top >= 2 and bool(self.is_distinct[:2].all())


def extreme_eigenpairs(
    operator: SymmetricOperator,
    top: int,
    bottom: int,
    *,
    seed: int,
    tol: float = 1e-3,
    max_steps: int | None = None,
    max_vectors: int | None = None,
    memory: int | None = None,
    order: Order = Order.algebraic,
    told: Callable[[int], None] = lambda step: None,
) -> Eigenpairs:
    """The `top` first and `bottom` smallest eigenpairs by one Lanczos process.

    The process goes on until all are converged or `max_steps` are taken. Where it has exhausted an invariant space, it
    goes on in the complement, until that adds nothing to what is wanted. Where memory is full, it is restarted from
    the best Ritz vectors.

    Args:
        operator: symmetric.
        top: how many first ones.
        bottom: how many smallest ones, of those that are left; together at most D are found.
        seed: of the start.
        tol: relative to the largest magnitude.
        max_steps: Lanczos steps at most; 10 (top + bottom) + 20 by default, and never fewer than are wanted.
        max_vectors: vectors in memory at most, four more than are wanted or more; by default `max_steps`, or as many
            as `memory` holds.
        memory: bytes that they may take; None = a share of what is free.
        order: which are the top ones.
        told: is called with the number of each step.

    Raises:
        ConfigError: nothing is wanted, or `max_vectors` is too small.
    """
    dimension = operator.space.dimension
    if top < 0 or bottom < 0 or top + bottom < 1:
        raise ConfigError(f"top={top} and bottom={bottom} eigenpairs: must be 0 or more, and one at least")
    search = _Search(min(top, dimension), min(bottom, dimension - min(top, dimension)), order)
    limit = max(search.wanted, max_steps or 10 * search.wanted + 20)
    most, least = min(limit, dimension), min(search.wanted + 4, limit, dimension)
    capacity = min(max_vectors or max(least, vectors_that_fit(operator, memory)), most)
    if capacity < least:
        raise ConfigError(f"max_vectors={max_vectors}: must be four more than the {search.wanted} eigenpairs, or more")
    restarts = f"memory for {capacity} vectors of {dimension} weights, fewer than {most}: the search restarts"
    start = operator.space.normals(seed, "lanczos", 0, operator.device).to(operator.dtype)
    process = Lanczos(operator, start, capacity)
    _run(process, search, limit, tol, seed, told)
    return replace(_pairs(process, search, tol), notes=(restarts,) if capacity < most and not max_vectors else ())


@dataclass(frozen=True)
class _Search:
    """Which Ritz values are wanted."""

    top: int
    bottom: int
    order: Order

    @property
    def wanted(self) -> int:
        return self.top + self.bottom

    def chosen(self, theta: Tensor, more: int = 0) -> list[int]:
        """Places of the wanted values among ascending ones; with `more` of each kind that is wanted at all."""
        places = list(range(len(theta)))
        rank = theta.abs() if self.order is Order.magnitude else theta
        first = sorted(places, key=lambda i: -rank[i].item())[: self.top + more if self.top else 0]
        left = [i for i in places if i not in first]
        return first + left[: self.bottom + more if self.bottom else 0][::-1]


def _run(process: Lanczos, search: _Search, limit: int, tol: float, seed: int, told: Callable[[int], None]) -> None:
    """Go on until what is wanted is converged, nothing is left, or `limit` steps are taken."""
    operator, starts = process.operator, 1
    before = torch.empty(0, dtype=torch.float64)
    while process.steps < limit and process.size < operator.space.dimension:
        if process.is_full:
            process.contract(search.chosen(process.ritz()[0], more=(process.size - search.wanted) // 4))
        process.extend()
        told(process.steps)
        if process.is_exhausted:
            theta = process.ritz()[0]
            values = theta[search.chosen(theta)]
            if len(before) == search.wanted and ((values - before).abs() <= tol * theta.abs().max()).all():
                return
            before = values
            process.begin_anew(operator.space.normals(seed, "lanczos", starts, operator.device).to(operator.dtype))
            starts += 1
        elif starts == 1 and process.steps % STEPS_BETWEEN_LOOKS == 0 and process.size >= search.wanted:
            theta, s = process.ritz()
            if (process.estimates(s)[search.chosen(theta)] <= tol * theta.abs().max()).all():
                return


def _pairs(process: Lanczos, search: _Search, tol: float) -> Eigenpairs:
    """The wanted pairs, and what their own products say of them."""
    operator = process.operator
    theta, s = process.ritz()
    chosen = search.chosen(theta)
    vectors = process.ritz_vectors(s[:, chosen])
    vectors = vectors * torch.sign(vectors.gather(1, vectors.abs().argmax(1, keepdim=True)))
    products = operator.products(vectors)
    values, largest = theta[chosen], theta.abs().max().item()
    residuals = (products.double() - values.to(products.device).unsqueeze(1) * vectors.double()).norm(dim=1).cpu()
    gaps = torch.tensor([_gap(theta, i) for i in chosen], dtype=torch.float64)
    rounding = ROUNDING * torch.finfo(operator.dtype).eps * largest
    return Eigenpairs(
        values=values,
        vectors=vectors,
        images=products,
        residuals=residuals,
        gaps=gaps,
        converged=residuals <= tol * largest,
        is_distinct=gaps > residuals.clamp_min(rounding),
        num_top=search.top,
        steps=process.steps,
        products=process.steps + len(chosen),
        orthogonality_error=process.orthogonality_error(),
        is_by_magnitude=search.order is Order.magnitude,
    )


def _gap(theta: Tensor, i: int) -> float:
    others = torch.cat([theta[:i], theta[i + 1 :]])
    return (others - theta[i]).abs().min().item() if len(others) else math.inf
