"""The trace of a symmetric operator by deflated Hutchinson probes, with its uncertainty.

tr H = sum_q q^T H q + E[v^T P H P v] over the rows q of an orthonormal Q, P = I - Q^T Q, v Rademacher. One product
H v gives both the deflated sample and the plain one, since v^T P H P v = v^T H v - 2 c^T Q H v + c^T (Q H Q^T) c with
c = Q v, and Q H is known from the eigenpairs' own products (Hutchinson 1990; deflation as in Gambhir et al. 2017).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from plastiscope.measure.landscape.krylov import Lanczos, dots, random_signs
from plastiscope.measure.landscape.operator import SymmetricOperator

PURPOSE = "hutchinson"
STOP_FROM, STOP_LEVEL = 16, 0.99


@dataclass(frozen=True)
class Probe:
    """What one product H v leaves.

    Attributes:
        plain: v^T H v.
        deflated: v^T P H P v; equal to `plain` without a basis.
        norm2: ||H v||^2.
        blocks: v_b^T (H v)_b of each block of coordinates, float64 [blocks].
    """

    plain: float
    deflated: float
    norm2: float
    blocks: Tensor


@dataclass
class Deflation:
    """What is known of an operator beforehand: an orthonormal basis and its images.

    Attributes:
        basis: Q, rows [q, D], q of one or more.
        images: H q of each row [q, D].
        inner: Q H Q^T, float64 [q, q].
    """

    basis: Tensor
    images: Tensor
    inner: Tensor = field(init=False)

    def __post_init__(self) -> None:
        inner = torch.stack([dots(self.basis, image) for image in self.images])
        self.inner = (inner + inner.T) / 2

    @property
    def trace(self) -> float:
        """sum_q q^T H q."""
        return self.inner.trace().item()


def draw(operator: SymmetricOperator, seed: int, k: int, deflation: Deflation | None = None) -> Probe:
    """Probe k: one product with a vector of signs that belongs to (seed, parameter, element, k)."""
    vector = random_signs(seed, PURPOSE, k, operator)
    product = operator.products(vector.unsqueeze(0))[0]
    return probe(vector, product, deflation, [place for _, place in operator.space.blocks()])


def hutchinson(
    operator: SymmetricOperator,
    count: int,
    *,
    seed: int,
    deflation: Deflation | None = None,
    half_width: float | None = None,
) -> list[Probe]:
    """Exactly `count` probes; fewer only where a half-width is asked for.

    Args:
        operator: symmetric.
        count: number of probes.
        seed: key of the probes; one seed at two checkpoints gives common random numbers.
        deflation: known part.
        half_width: stop early where the interval of `STOP_LEVEL` reaches this many units of the trace to each side,
            after `STOP_FROM` probes. The level is above the reported 95 %, because looking again and again costs
            coverage.
    """
    found: list[Probe] = []
    while len(found) < count:
        found.append(draw(operator, seed, len(found), deflation))
        if half_width is not None and len(found) >= STOP_FROM:
            low, high = trace_of(found, deflation).trace.interval(STOP_LEVEL)
            if high - low <= 2 * half_width:
                break
    return found


def probe_of(run: Lanczos, start: Tensor, deflation: Deflation | None) -> Probe:
    """The probe v that a Lanczos run from v = `start` holds: its first product is H v / ||v||."""
    product = run.first_product * start.double().norm().to(start.dtype)
    return probe(start, product, deflation, [place for _, place in run.operator.space.blocks()])


def probe(vector: Tensor, product: Tensor, deflation: Deflation | None, blocks: Sequence[slice]) -> Probe:
    """One sample of the trace from v and H v, both [D]."""
    v, hv = vector.double(), product.double()
    plain = torch.dot(v, hv).item()
    deflated = plain
    if deflation is not None:
        c, qhv = dots(deflation.basis, v), dots(deflation.basis, hv)
        deflated = plain - 2 * torch.dot(c, qhv).item() + (c @ deflation.inner @ c).item()
    parts = torch.stack([torch.dot(v[b], hv[b]) for b in blocks]).cpu()
    return Probe(plain, deflated, torch.dot(hv, hv).item(), parts)


@dataclass(frozen=True)
class Estimate:
    """A mean with its standard error s / sqrt(n); NaN error of fewer than two samples."""

    value: float
    standard_error: float
    n: int

    @classmethod
    def of(cls, samples: Tensor, offset: float = 0.0) -> "Estimate":
        """Mean of float64 samples [n] plus a known part."""
        n = len(samples)
        error = samples.std(correction=1).item() / math.sqrt(n) if n > 1 else math.nan
        return cls(samples.mean().item() + offset, error, n)

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Student-t confidence interval."""
        half = student_t(level, self.n - 1) * self.standard_error
        return self.value - half, self.value + half


@dataclass(frozen=True)
class Trace:
    """Estimates from all probes.

    Attributes:
        trace: deflated; of the smaller variance.
        plain: of the same probes without deflation.
        layers: trace of each block.
        frobenius2: ||H||_F^2.
        effective_rank: tr^2 / ||H||_F^2.
    """

    trace: Estimate
    plain: Estimate
    layers: tuple[Estimate, ...]
    frobenius2: Estimate
    effective_rank: Estimate

    @property
    def is_known(self) -> bool:
        """Whether the trace is two standard errors from zero; never with an unknown error."""
        return abs(self.trace.value) >= 2 * self.trace.standard_error


def trace_of(probes: Sequence[Probe], deflation: Deflation | None) -> Trace:
    """The estimates of some probes."""
    plain, deflated, norm2 = torch.tensor([(p.plain, p.deflated, p.norm2) for p in probes], dtype=torch.float64).T
    trace, frobenius2 = Estimate.of(deflated, 0.0 if deflation is None else deflation.trace), Estimate.of(norm2)
    return Trace(
        trace=trace,
        plain=Estimate.of(plain),
        layers=tuple(Estimate.of(block) for block in torch.stack([p.blocks for p in probes]).T),
        frobenius2=frobenius2,
        effective_rank=_effective_rank(trace, frobenius2, deflated, norm2),
    )


def _effective_rank(trace: Estimate, frobenius2: Estimate, deflated: Tensor, norm2: Tensor) -> Estimate:
    """The rank r = t^2 / f from samples of t and f of the same probes, both [n]; NaN where f is 0.

    Its error by the delta method is that of the samples (2 t / f) t_i - (t / f)^2 f_i, so that what both share counts.
    """
    if not frobenius2.value:
        return Estimate(math.nan, math.nan, trace.n)
    slope = trace.value / frobenius2.value
    error = Estimate.of(2 * slope * deflated - slope**2 * norm2).standard_error
    return Estimate(trace.value * slope, error, trace.n)


def difference(after: Sequence[Probe], before: Sequence[Probe]) -> Estimate:
    """Change of the trace between two checkpoints, from the same probes of each, one by one (plain samples)."""
    return Estimate.of(
        torch.tensor([b.plain - a.plain for a, b in zip(before, after, strict=True)], dtype=torch.float64)
    )


def student_t(level: float, freedom: int) -> float:
    """Two-sided quantile of Student's t distribution, by bisection of its exact distribution function."""
    if freedom < 1:
        return math.nan
    low, high = 0.0, 1e3
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, freedom) < level else (low, middle)
    return (low + high) / 2


def _within(t: float, freedom: int) -> float:
    """P(|T| < t), the finite sums of Abramowitz & Stegun 26.7.3 and 26.7.4."""
    angle = math.atan(t / math.sqrt(freedom))
    cos2 = math.cos(angle) ** 2
    if freedom % 2 == 0:
        term, total = 1.0, 1.0
        for k in range(1, freedom // 2):
            term *= cos2 * (2 * k - 1) / (2 * k)
            total += term
        return math.sin(angle) * total
    if freedom == 1:
        return 2 * angle / math.pi
    term = math.cos(angle)
    total = term
    for k in range(1, (freedom - 1) // 2):
        term *= cos2 * 2 * k / (2 * k + 1)
        total += term
    return 2 / math.pi * (angle + math.sin(angle) * total)
