"""Incoming vectors that restore rank: orthogonal, over the data, to what the other units of a layer compute.

A layer's inputs h have the second moment M = E h h^T. The pre-activations of units with vectors u and v have the inner
product <u, v> = u^T S v, S = M + ridge I. A fresh vector is a normal draw without its part in the span of the kept
vectors; where the kept ones leave nothing that the data show, it is the direction of the data that they cover least.
All arithmetic is float64, on the tensors' device.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from plastiscope.error import RunError

RESIDUAL = 1e-8
"""A residual is none when it is shorter than this times the draw."""
ROUNDING = 2e-6
"""Of tr(M): an exponential mean over many steps in single precision is known up to that, and data show no less."""
COVERED = 1e-10
"""Singular values of the kept vectors below this times the largest are none."""


@dataclass(frozen=True, kw_only=True)
class Energy:
    """How the squared length <w, w> of fresh vectors follows from what the layer's units should have together.

    With v = tr(S)/d and N units, each should have q = v / activation_energy, all N q. What the kept ones do not have is
    shared out among the fresh ones, each at most q; one without a residual has min(q, max(share lambda_min(S), l)).

    Attributes:
        units: N.
        activation_energy: E phi(z)^2 of a standard normal z.
        saturated_share: of lambda_min(S); times the ridge it is also the least that any vector gets.
        by_coverage: l = min(1, 2 lambda), lambda how well the kept vectors cover the direction; else 0.
    """

    units: int
    activation_energy: float
    saturated_share: float = 1e-2
    by_coverage: bool = False


class _Geometry:
    """S = L L^T, and what of R^d the vectors so far cover, for each entry of the leading axes."""

    def __init__(self, moment: Tensor, kept: Tensor, ridge: float) -> None:
        d = moment.shape[-1]
        self.moment = (moment + moment.mT) / 2
        self.variance = moment.diagonal(dim1=-2, dim2=-1).mean(-1)
        self.least_shown = ROUNDING * d * self.variance
        # Rounding must not make it indefinite.
        self.ridge = self.least_shown.clamp_min(ridge)
        eye = torch.eye(d, dtype=moment.dtype, device=moment.device)
        self.root = torch.linalg.cholesky(self.moment + self.ridge[..., None, None] * eye)
        self.vectors = kept
        _, sizes, directions = torch.linalg.svd(kept @ self.root, full_matrices=False)
        is_there = sizes > COVERED * sizes[..., :1]
        self.basis = directions * is_there.unsqueeze(-1)

    def whitened(self, vector: Tensor) -> Tensor:
        """L^T w: <u, w> is the plain inner product of these."""
        return _apply(self.root.mT, vector)

    def unwhitened(self, vector: Tensor) -> Tensor:
        """The vector w of L^T w."""
        return torch.linalg.solve_triangular(self.root.mT, vector.unsqueeze(-1), upper=True).squeeze(-1)

    def residual(self, vector: Tensor) -> Tensor:
        """What the basis leaves of a whitened vector; twice, so that rounding leaves no more than rounding."""
        for _ in range(2):
            vector = vector - _apply(self.basis.mT, _apply(self.basis, vector))
        return vector

    def is_shown(self, vector: Tensor) -> Tensor:
        """Whether the data show a direction w, bool [*lead]."""
        energy = (vector * _apply(self.moment, vector)).sum(-1)
        return energy > self.least_shown * vector.square().sum(-1)

    def add(self, vector: Tensor, direction: Tensor | None) -> None:
        """One vector more; its whitened residual direction, 0 where there is none (None: the basis stays)."""
        self.vectors = torch.cat([self.vectors, vector.unsqueeze(-2)], -2)
        if direction is not None:
            self.basis = torch.cat([self.basis, direction.unsqueeze(-2)], -2)


class _Spectrum:
    """M = E diag(s) E^T; made only where a vector has no residual."""

    def __init__(self, geometry: _Geometry) -> None:
        self.geometry = geometry
        values, self.directions = torch.linalg.eigh(geometry.moment)
        self.is_shown = values > geometry.least_shown.unsqueeze(-1)
        self.sizes = (values.clamp_min(0.0) + geometry.ridge.unsqueeze(-1)).sqrt()

    @property
    def least(self) -> Tensor:
        """lambda_min(S), [*lead]."""
        return self.sizes[..., 0].square()

    def least_covered(self, draw: Tensor) -> tuple[Tensor, Tensor]:
        """The shown direction that the vectors so far cover least, with <w, w> = 1, and how well they cover it.

        It points to the side of the draw. The draw itself where the data show no direction at all.
        """
        inner = self.geometry.vectors @ self.directions * (self.sizes * self.is_shown).unsqueeze(-2)
        coverage = inner.mT @ inner
        # Directions that are not shown come last.
        last = 1.0 + 2.0 * coverage.diagonal(dim1=-2, dim2=-1).sum(-1, keepdim=True)
        values, vectors = torch.linalg.eigh(coverage + torch.diag_embed(last * ~self.is_shown))
        found = _apply(self.directions, vectors[..., 0] * self.is_shown / self.sizes)
        found = found * torch.where((found * draw).sum(-1, keepdim=True) < 0, -1.0, 1.0)
        anything = self.is_shown.any(-1)
        return torch.where(anything.unsqueeze(-1), found, draw), torch.where(
            anything, values[..., 0].clamp_min(0.0), 0.0
        )


@dataclass(frozen=True)
class Restored:
    """Fresh vectors.

    Attributes:
        vectors: [*lead, n, d], float64.
        saturated: bool [*lead, n], whether the vectors before it left nothing that the data show.
    """

    vectors: Tensor
    saturated: Tensor


def restoring_vectors(
    moment: Tensor,
    kept: Tensor,
    draws: Tensor,
    ridge: float,
    energy: Energy | None = None,
    orthonormalise: bool = True,
) -> Restored:
    """Fresh incoming vectors for the replaced units of a layer, one after the other.

    Whether one has a residual is asked of the device for each vector; factorisations wait for it anyway.

    Args:
        moment: M [*lead, d, d], of the layer's inputs.
        kept: vectors of the units [*lead, N, d]; rows of 0 are no units.
        draws: standard normal [*lead, n, d]; an input whose entry is 0 in all of them, in M and in `kept` gets 0.
        ridge: added to the diagonal of M; 2e-6 tr(M), which rounding may amount to, where that is more.
        energy: rule of <w, w>; None = 1.
        orthonormalise: each also to the fresh ones before it.

    Raises:
        RunError: a factorisation fails though all numbers are finite.
    """
    draws = draws.double()
    is_finite = moment.isfinite().all(-1).all(-1) & kept.isfinite().all(-1).all(-1)
    moment = torch.where(is_finite[..., None, None], moment.double(), 0.0)
    kept = torch.where(is_finite[..., None, None], kept.double(), 0.0)
    try:
        return _restore(_Geometry(moment, kept, ridge), draws, energy, orthonormalise)
    except torch.linalg.LinAlgError as error:
        raise RunError(
            f"no fresh weights could be made: the second moment of a layer's inputs has no factors ({error}). Raise "
            "learner.ridge, or scale the inputs"
        ) from error


def _restore(geometry: _Geometry, draws: Tensor, energy: Energy | None, orthonormalise: bool) -> Restored:
    budget = None if energy is None else _Budget(geometry, energy, draws.shape[-2])
    spectrum: _Spectrum | None = None
    vectors, flags = [], []
    for draw in draws.unbind(-2):
        start = geometry.whitened(draw)
        direction = geometry.residual(start)
        length = torch.linalg.vector_norm(direction, dim=-1)
        is_left = length > RESIDUAL * torch.linalg.vector_norm(start, dim=-1)
        is_saturated = ~(is_left & geometry.is_shown(geometry.unwhitened(direction)))
        direction = _unit(direction)
        least, coverage, unit = geometry.ridge, torch.zeros_like(length), direction
        if bool(is_saturated.any()):
            spectrum = spectrum or _Spectrum(geometry)
            found, coverage = spectrum.least_covered(draw)
            unit = torch.where(is_saturated.unsqueeze(-1), _unit(geometry.whitened(found)), direction)
            least = spectrum.least
        size = 1.0 if budget is None else budget.next(is_saturated, least, coverage).sqrt().unsqueeze(-1)
        vector = geometry.unwhitened(unit * size)
        if orthonormalise:
            # Of a saturated one nothing is new.
            geometry.add(vector, direction * ~is_saturated.unsqueeze(-1))
        vectors.append(vector)
        flags.append(is_saturated)
    return Restored(torch.stack(vectors, -2), torch.stack(flags, -1))


class _Budget:
    """What of the layer's energy is left for the fresh vectors."""

    def __init__(self, geometry: _Geometry, energy: Energy, number: int) -> None:
        self.energy, self.number, self.floor = energy, number, energy.saturated_share * geometry.ridge
        self.target = (geometry.variance + geometry.ridge) / energy.activation_energy
        used = (geometry.vectors @ geometry.root).square().sum((-2, -1))
        self.left = (energy.units * self.target - used).clamp_min(0.0)

    def next(self, is_saturated: Tensor, least: Tensor, coverage: Tensor) -> Tensor:
        """<w, w> of the next vector, [*lead]."""
        share = torch.maximum(self.left / self.number, self.floor)
        alone = self.energy.saturated_share * least
        if self.energy.by_coverage:
            alone = torch.maximum(alone, (2.0 * coverage).clamp_max(1.0))
        given = torch.minimum(self.target, torch.where(is_saturated, alone, share))
        self.left = (self.left - torch.where(is_saturated, 0.0, given)).clamp_min(0.0)
        self.number -= 1
        return given


def _apply(matrix: Tensor, vector: Tensor) -> Tensor:
    return (matrix @ vector.unsqueeze(-1)).squeeze(-1)


def _unit(vector: Tensor) -> Tensor:
    return vector / torch.linalg.vector_norm(vector, dim=-1, keepdim=True).clamp_min(torch.finfo(vector.dtype).tiny)


def activation_energy(activation: Callable[[Tensor], Tensor]) -> float:
    """E phi(z)^2 of a standard normal z, by the trapezoidal rule on [-12, 12]."""
    z = torch.linspace(-12.0, 12.0, 24_001, dtype=torch.float64)
    density = torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)
    return torch.trapezoid(activation(z).square() * density, z).item()
