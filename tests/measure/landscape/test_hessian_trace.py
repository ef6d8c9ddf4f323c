"""Trace probes against exact traces, and their interval against its coverage."""

import math

import pytest
import scipy.stats
import torch
from landscape_cases import (
    DOUBLE,
    FROBENIUS2,
    PROBE_VARIANCE,
    TRACE,
    DenseOperator,
    exact_hessian,
    fixture_f,
    with_spectrum,
)

from plastiscope.measure.landscape.eigenpairs import extreme_eigenpairs
from plastiscope.measure.landscape.krylov import krylov, random_signs
from plastiscope.measure.landscape.operator import HessianOperator
from plastiscope.measure.landscape.trace import (
    Deflation,
    Estimate,
    Probe,
    difference,
    draw,
    hutchinson,
    probe_of,
    student_t,
    trace_of,
)


@pytest.fixture(scope="module")
def dense() -> DenseOperator:
    """The Hessian of fixture F as a matrix, with the names of its parameters."""
    frozen = fixture_f()
    operator = DenseOperator(exact_hessian(frozen))
    operator.space = frozen.space
    return operator


@pytest.fixture(scope="module")
def probes(dense: DenseOperator) -> list[Probe]:
    return hutchinson(dense, 4800, seed=0)


def test_a_diagonal_needs_one_probe() -> None:
    values = torch.linspace(-2, 5, 50, dtype=DOUBLE)
    found = trace_of(hutchinson(DenseOperator(torch.diag(values)), 1, seed=0), None)
    assert found.trace.value == pytest.approx(values.sum().item(), rel=1e-13)
    assert math.isnan(found.trace.standard_error)
    assert found.frobenius2.value == pytest.approx(values.square().sum().item(), rel=1e-13)


def test_mean_and_variance_on_fixture_f(dense: DenseOperator, probes: list[Probe]) -> None:
    probes = probes[:4000]
    plain = torch.tensor([p.plain for p in probes])
    assert plain.var().item() == pytest.approx(PROBE_VARIANCE, rel=0.1)
    by_seed = torch.tensor([draw(dense, seed, 0).plain for seed in range(400)])
    assert abs(by_seed.mean().item() - TRACE) <= 3 * by_seed.std().item() / 20
    found = trace_of(probes, None)
    assert found.frobenius2.value == pytest.approx(FROBENIUS2, rel=0.05)
    assert found.trace.standard_error == pytest.approx(plain.std().item() / math.sqrt(4000), rel=1e-6)
    assert found.effective_rank.value == pytest.approx(found.trace.value**2 / found.frobenius2.value)
    groups = [trace_of(probes[i : i + 100], None).effective_rank for i in range(0, 4000, 100)]
    spread = torch.tensor([group.value for group in groups]).std().item()
    told = [group.standard_error for group in groups]
    assert sum(told) / len(told) == pytest.approx(spread, rel=0.3)


def test_interval_covers_what_it_says(probes: list[Probe]) -> None:
    hits = 0
    for trial in range(400):
        low, high = trace_of(probes[12 * trial : 12 * trial + 12], None).trace.interval(0.95)
        hits += low <= TRACE <= high
    assert 0.92 <= hits / 400 <= 0.98


def test_products_of_the_network_give_the_same_probe(dense: DenseOperator) -> None:
    assert draw(HessianOperator(fixture_f(micro_batch=60)), 0, 3).plain == pytest.approx(
        draw(dense, 0, 3).plain, abs=1e-12
    )


def test_layers_add_up(dense: DenseOperator) -> None:
    hessian, blocks = dense.matrix, [place for _, place in dense.space.blocks()]
    probes = hutchinson(dense, 300, seed=2)
    for one in probes:
        assert one.blocks.sum().item() == pytest.approx(one.plain, abs=1e-12)
    for layer, place in zip(trace_of(probes, None).layers, blocks, strict=True):
        assert abs(layer.value - hessian.diagonal()[place].sum().item()) <= 4 * layer.standard_error


def test_deflation_is_exact_for_any_probe(dense: DenseOperator) -> None:
    """v^T P H P v formed outright; with the whole spectrum known nothing is left to chance."""
    pairs = extreme_eigenpairs(dense, 5, 2, seed=0)  # not converged to the last bit, so H q is not theta q
    deflation = Deflation(pairs.vectors, pairs.images)
    p = torch.eye(115, dtype=DOUBLE) - pairs.vectors.T @ pairs.vectors
    for k in range(5):
        v = random_signs(0, "hutchinson", k, dense)
        assert draw(dense, 0, k, deflation).deflated == pytest.approx((p @ v @ dense.matrix @ p @ v).item(), abs=1e-13)
    found = trace_of(hutchinson(dense, 400, seed=3, deflation=deflation), deflation)
    assert abs(found.trace.value - TRACE) <= 3 * found.trace.standard_error
    assert found.trace.standard_error < found.plain.standard_error
    every = extreme_eigenpairs(dense, 115, 0, seed=0, tol=1e-14, max_steps=115)
    whole = Deflation(every.vectors, every.images)
    assert trace_of(hutchinson(dense, 2, seed=0, deflation=whole), whole).trace.value == pytest.approx(TRACE, abs=1e-8)


def test_deflation_helps_where_there_are_spikes() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.cat([torch.tensor([40.0, 30.0, 25.0, 20.0, 18.0]), torch.rand(997, generator=generator)]).to(DOUBLE)
    operator = DenseOperator(with_spectrum(values))
    pairs = extreme_eigenpairs(operator, 5, 0, seed=0)
    deflation = Deflation(pairs.vectors, pairs.images)
    found = trace_of(hutchinson(operator, 100, seed=0, deflation=deflation), deflation)
    assert found.trace.standard_error < 0.75 * found.plain.standard_error
    assert abs(found.trace.value - values.sum().item()) <= 3 * found.trace.standard_error


@pytest.mark.parametrize("sign", [1, -1])
def test_as_many_probes_as_asked_for(dense: DenseOperator, sign: int) -> None:
    operator = DenseOperator(sign * dense.matrix)
    assert len(hutchinson(operator, 23, seed=0)) == operator.count == 23


@pytest.mark.parametrize("sign", [1, -1])
def test_stopping_at_a_half_width(dense: DenseOperator, sign: int) -> None:
    operator = DenseOperator(sign * dense.matrix)
    found = hutchinson(operator, 2000, seed=0, half_width=0.5)
    low, high = trace_of(found, None).trace.interval(0.99)
    assert 16 < len(found) < 2000 and high - low <= 1
    low, high = trace_of(found[:-1], None).trace.interval(0.99)
    assert high - low > 1
    assert len(hutchinson(operator, 100, seed=0, half_width=1e9)) == 16


def test_a_lanczos_run_holds_a_probe(dense: DenseOperator) -> None:
    start = random_signs(0, "hutchinson", 4, dense)
    run, expected = krylov(dense, start, 6), draw(dense, 0, 4)
    assert 115 * run.matrix[0, 0].item() == pytest.approx(expected.plain, rel=1e-12)
    found = probe_of(run, start, None)
    assert found.plain == pytest.approx(expected.plain, rel=1e-12)
    assert found.norm2 == pytest.approx(expected.norm2, rel=1e-12)
    assert found.blocks.tolist() == pytest.approx(expected.blocks.tolist(), rel=1e-11)


def test_paired_differences_cancel_what_is_common(dense: DenseOperator) -> None:
    """H + 0.01 I: each pair differs by exactly 0.01 D."""
    moved = DenseOperator(dense.matrix + 0.01 * torch.eye(115, dtype=DOUBLE))
    moved.space = dense.space
    found = difference(hutchinson(moved, 10, seed=0), hutchinson(dense, 10, seed=0))
    assert found.value == pytest.approx(1.15, rel=1e-12)
    assert found.standard_error < 1e-12


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 7, 15, 31, 100])
@pytest.mark.parametrize("level", [0.5, 0.95, 0.99])
def test_students_quantiles(freedom: int, level: float) -> None:
    assert student_t(level, freedom) == pytest.approx(scipy.stats.t.ppf(0.5 + level / 2, freedom), rel=1e-10)


def test_one_sample_has_no_interval() -> None:
    assert all(math.isnan(end) for end in Estimate.of(torch.ones(1)).interval())
