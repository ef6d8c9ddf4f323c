"""Spectral density by stochastic Lanczos quadrature, and the scalars made of its nodes.

n_v runs of m Lanczos steps from Rademacher starts v / sqrt(D): nodes are the eigenvalues of the tridiagonal matrix,
weights the squared first components of its eigenvectors (Golub & Meurant 1994; Ubaru, Chen & Saad 2017). The first
product of a run is H v / sqrt(D), so the trace uses it as one of its probes. Smoothing is a choice of the picture and
never changes the nodes.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from plastiscope.measure.landscape.krylov import Lanczos


@dataclass(frozen=True)
class Quadrature:
    """Nodes ascending and weights (that sum to 1) of one run, float64 [m]."""

    nodes: Tensor
    weights: Tensor

    @classmethod
    def of(cls, run: Lanczos) -> "Quadrature":
        """Of a Lanczos run that began with the random vector, and went on from it alone."""
        nodes, vectors = run.ritz()
        return cls(nodes, vectors[0].square())

    def moment(self, k: int) -> float:
        """sum_j w_j nodes_j^k = v^T H^k v / D for k < 2m."""
        return (self.weights * self.nodes**k).sum().item()


def mean_and_error(runs: list[Quadrature], quantity: Callable[[Quadrature], float]) -> tuple[float, float]:
    """Mean of a quantity over runs, and its standard error (NaN of one run)."""
    values = torch.tensor([quantity(run) for run in runs], dtype=torch.float64)
    error = values.std(correction=1).item() / math.sqrt(len(runs)) if len(runs) > 1 else math.nan
    return values.mean().item(), error


@dataclass(frozen=True)
class Density:
    """A smoothed density on a grid.

    Attributes:
        grid: float64 [bins].
        values: mean over runs of the Gaussian-smoothed density, not renormalised.
        cumulative: mean over runs of the weight at or below each grid point.
        band: standard deviation of that over runs; NaN of one run.
        sigma: width of the Gaussian.
        mass: integral over the grid; near 1 unless the grid is too narrow.
    """

    grid: Tensor
    values: Tensor
    cumulative: Tensor
    band: Tensor
    sigma: float
    mass: float


def smoothed(runs: list[Quadrature], bins: int = 200) -> Density:
    """Density with Gaussian width max(range / m, range / 1000) on [min - 3 sigma, max + 3 sigma]."""
    nodes = torch.cat([run.nodes for run in runs])
    low, high = nodes.min().item(), nodes.max().item()
    width = high - low if high > low else max(abs(high), 1.0)
    sigma = max(width / max(len(run.nodes) for run in runs), 1e-3 * width)
    grid = torch.linspace(low - 3 * sigma, high + 3 * sigma, bins, dtype=torch.float64)

    def kernel(run: Quadrature) -> Tensor:
        z = (grid.unsqueeze(1) - run.nodes) / sigma
        return (run.weights * torch.exp(-0.5 * z**2)).sum(1) / (sigma * math.sqrt(2 * math.pi))

    values = torch.stack([kernel(run) for run in runs]).mean(0)
    steps = torch.stack([(run.weights * (run.nodes <= grid.unsqueeze(1))).sum(1) for run in runs])
    band = steps.std(0, correction=1) if len(runs) > 1 else torch.full_like(grid, math.nan)
    return Density(grid, values, steps.mean(0), band, sigma, torch.trapezoid(values, grid).item())


def scalars(runs: list[Quadrature], density: Density, zero_tol: float = 1e-5, power: float = 0.5) -> dict[str, float]:
    """The published scalars of a density, each averaged over runs.

    Args:
        runs: of one operator.
        density: of these runs.
        zero_tol: nodes within zero_tol * max |node| of zero count as zero.
        power: n of K_hn = sum over negative |node w|^n / sum over positive (node w)^n.
    """
    largest = max(run.nodes.abs().max().item() for run in runs)
    eps = zero_tol * largest

    def mean(quantity: Callable[[Quadrature], float]) -> float:
        return mean_and_error(runs, quantity)[0]

    def mass(which: Callable[[Tensor], Tensor]) -> float:
        return mean(lambda run: run.weights[which(run.nodes)].sum().item())

    def count(which: Callable[[Tensor], Tensor]) -> float:
        return mean(lambda run: float(which(run.nodes).sum().item()))

    signs: dict[str, Callable[[Tensor], Tensor]] = {
        "negative": lambda p: p < -eps,
        "positive": lambda p: p > eps,
        "zero": lambda p: p.abs() <= eps,
    }
    masses = {name: mass(which) for name, which in signs.items()}
    negative, positive = masses["negative"], masses["positive"]
    found = {f"hessian_{name}_mass": value for name, value in masses.items()}
    found |= {f"hessian_{name}_count": count(which) for name, which in signs.items()}
    found["hesd_re"] = mean(lambda run: _ratio(abs(run.nodes[0].item()), abs(run.nodes[-1].item())))
    found["hesd_khn"] = mean(lambda run: _khn(run, power))
    found["hessian_negative_fraction"] = _ratio(negative, negative + positive)
    found["hessian_negative_mass_ratio_total"] = negative / sum(masses.values())
    found["hessian_signed_mass_balance"] = positive - negative
    found["hessian_min_eigenvalue"] = min(run.nodes[0].item() for run in runs)
    found["hessian_max_eigenvalue"] = max(run.nodes[-1].item() for run in runs)
    for name, inside in (("negative", density.grid < -eps), ("positive", density.grid > eps)):
        values = torch.where(inside, density.values, 0.0)
        found[f"hessian_{name}_density_integral"] = torch.trapezoid(values, density.grid).item()
        found[f"hessian_{name}_density_peak"] = values.max().item()
    return found


def _khn(run: Quadrature, power: float) -> float:
    size = (run.nodes.abs() * run.weights) ** power
    return _ratio(size[run.nodes < 0].sum().item(), size[run.nodes > 0].sum().item())


def _ratio(a: float, b: float) -> float:
    return a / b if b else math.nan
