"""Extreme eigenpairs and the Lanczos process against given spectra."""

import pytest
import torch
from landscape_cases import (
    BOTTOM,
    DOUBLE,
    TOP,
    DenseOperator,
    exact_hessian,
    fixture_f,
    quadratic_case,
    with_spectrum,
)

from plastiscope.error import ConfigError
from plastiscope.measure.landscape import krylov as krylov_module
from plastiscope.measure.landscape.eigenpairs import Order, extreme_eigenpairs
from plastiscope.measure.landscape.krylov import freed, krylov, orthogonalised, random_signs
from plastiscope.measure.landscape.operator import HessianOperator


def nearest(values: torch.Tensor, spectrum: torch.Tensor) -> torch.Tensor:
    return (values.unsqueeze(1) - spectrum).abs().min(1).values


def test_quadratic_with_negatives_zeros_and_a_repeated_top() -> None:
    """Both ends at m = D: the top three times, no more; nothing twice that is there once."""
    frozen, matrix, _ = quadratic_case()
    exact = torch.linalg.eigvalsh(matrix)
    found = extreme_eigenpairs(HessianOperator(frozen), 6, 5, seed=0, tol=1e-14, max_steps=len(exact))
    assert ((found.top - exact.flip(0)[:6]).abs() <= found.residuals[:6].clamp_min(1e-10)).all()
    assert ((found.bottom - exact[:5]).abs() <= found.residuals[6:].flip(0).clamp_min(1e-10)).all()
    assert found.orthogonality_error <= 1e-12
    assert (found.vectors @ found.vectors.T - torch.eye(11, dtype=DOUBLE)).abs().max() <= 1e-10
    assert (found.vectors.gather(1, found.vectors.abs().argmax(1, keepdim=True)) > 0).all()


def test_no_ghosts_after_many_steps() -> None:
    """Without re-orthogonalisation a well separated top comes back again and again."""
    values = torch.cat([torch.tensor([100.0, 60.0, -40.0]), torch.linspace(-1, 1, 197)]).to(DOUBLE)
    run = krylov(DenseOperator(with_spectrum(values)), torch.ones(200, dtype=DOUBLE), 120)
    theta, _ = run.ritz()
    assert [(theta - value).abs().lt(1e-6).sum().item() for value in (100, 60, -40)] == [1, 1, 1]
    assert run.orthogonality_error() <= 1e-12
    single = krylov(DenseOperator(with_spectrum(values).float()), torch.ones(200), 120)
    assert single.orthogonality_error() <= 2e-6
    assert (single.ritz()[0] > 99).sum() == 1


def test_fixture_f() -> None:
    found = extreme_eigenpairs(HessianOperator(fixture_f(micro_batch=60)), 5, 2, seed=0, tol=1e-9, max_steps=115)
    assert found.top.tolist() == pytest.approx(TOP, abs=1e-8)
    assert found.bottom.tolist() == pytest.approx(BOTTOM, abs=1e-8)
    assert found.converged.all()
    assert found.is_plane_unique
    assert found.products == found.steps + 7 <= 122


def test_fixture_f_by_default_and_in_float32() -> None:
    exact = torch.linalg.eigvalsh(exact_hessian(fixture_f()))
    for dtype, rounding in ((DOUBLE, 1e-14), (torch.float32, 1e-6)):
        found = extreme_eigenpairs(HessianOperator(fixture_f(dtype)), 5, 2, seed=0)
        assert found.converged.all()
        assert found.steps <= 90
        assert (nearest(found.values, exact) <= found.residuals + rounding).all()
        assert found.top.tolist() == pytest.approx(TOP, abs=1e-5)
        assert found.values.dtype == found.residuals.dtype == DOUBLE


def test_residuals_are_what_they_say() -> None:
    hessian = exact_hessian(fixture_f())
    operator = HessianOperator(fixture_f())
    for steps in (7, 12, 20, 90):
        found = extreme_eigenpairs(operator, 5, 2, seed=1, max_steps=steps)
        again = (found.vectors @ hessian - found.values.unsqueeze(1) * found.vectors).norm(dim=1)
        assert ((found.residuals - again).abs() <= 1e-10 * again + 1e-15).all()
        assert (nearest(found.values, torch.linalg.eigvalsh(hessian)) <= found.residuals + 1e-14).all()
        assert (found.images - found.vectors @ hessian).abs().max() <= 1e-14
        assert found.converged.tolist() == (found.residuals <= 1e-3 * found.values.abs().max()).tolist()
    assert not extreme_eigenpairs(operator, 5, 2, seed=1, max_steps=7).converged.all()


def test_full_memory_restarts_from_the_best_vectors() -> None:
    operator = HessianOperator(fixture_f())
    found = extreme_eigenpairs(operator, 5, 2, seed=0, tol=1e-8, max_steps=1000, max_vectors=20)
    assert found.steps > 20
    assert found.converged.all()
    assert found.top.tolist() == pytest.approx(TOP, abs=1e-8)
    assert found.bottom.tolist() == pytest.approx(BOTTOM, abs=1e-8)
    assert found.orthogonality_error <= 1e-12
    with pytest.raises(ConfigError, match="max_vectors=8"):
        extreme_eigenpairs(operator, 5, 2, seed=0, max_vectors=8)


def test_an_exhausted_space_gives_every_copy() -> None:
    """Four different eigenvalues in 60 dimensions: one start sees one vector of each."""
    values = torch.cat([torch.full((3,), 5.0), torch.full((54,), 1.0), torch.tensor([-2.0, -2.0, -1.0])]).to(DOUBLE)
    operator = DenseOperator(with_spectrum(values))
    found = extreme_eigenpairs(operator, 4, 3, seed=0)
    assert found.top.tolist() == pytest.approx([5, 5, 5, 1], abs=1e-10)
    assert found.bottom.tolist() == pytest.approx([-2, -2, -1], abs=1e-10)
    assert not found.is_plane_unique
    assert found.is_distinct.tolist() == [False] * 4 + [True, False, False]
    assert found.steps < 60
    one = extreme_eigenpairs(operator, 1, 1, seed=0)
    assert one.values.tolist() == pytest.approx([5, -2], abs=1e-10)


@pytest.mark.parametrize("gap, is_unique", [(0.0, False), (1e-14, False), (0.3, True)])
def test_a_plane_of_equal_eigenvalues_is_not_unique(gap: float, is_unique: bool) -> None:
    values = torch.cat([torch.tensor([3.0, 3.0 - gap], dtype=DOUBLE), torch.linspace(-1, 2, 10, dtype=DOUBLE)])
    found = extreme_eigenpairs(DenseOperator(with_spectrum(values)), 2, 1, seed=0, max_steps=12, tol=1e-14)
    assert found.is_plane_unique is is_unique
    assert found.gaps[0].item() == pytest.approx(gap, abs=1e-12)
    assert not extreme_eigenpairs(DenseOperator(with_spectrum(values)), 1, 1, seed=0).is_plane_unique


def test_a_gap_below_the_residual_tells_no_vectors_apart() -> None:
    """After few steps two Ritz values are apart by far more than rounding, but by less than they are wrong."""
    values = torch.cat([torch.tensor([3.0, 2.99], dtype=DOUBLE), torch.linspace(-1, 2.95, 200, dtype=DOUBLE)])
    operator = DenseOperator(with_spectrum(values))
    early, late = (extreme_eigenpairs(operator, 2, 1, seed=0, max_steps=m, tol=1e-14) for m in (30, 58))
    assert early.gaps[0] == pytest.approx(0.01, rel=0.1)
    assert (early.residuals[:2] > 0.02).all()
    assert early.is_distinct.tolist() == [False, False, True]
    assert late.is_distinct.tolist() == [True, True, True]


def test_order_of_magnitude() -> None:
    operator = DenseOperator(with_spectrum(torch.tensor([-4.0, -3.0, -0.5, 0.1, 1.0, 3.5], dtype=DOUBLE)))
    found = extreme_eigenpairs(operator, 3, 1, seed=0, tol=1e-12, order=Order.magnitude)
    assert found.values.tolist() == pytest.approx([-4, 3.5, -3, -0.5], abs=1e-12)


@pytest.mark.parametrize(
    "top, bottom, expected", [(9, 9, [2, 1, -1]), (1, 0, [2]), (0, 2, [1, -1]), (2, 5, [2, 1, -1])]
)
def test_fewer_dimensions_than_wanted(top: int, bottom: int, expected: list[float]) -> None:
    operator = DenseOperator(with_spectrum(torch.tensor([2.0, 1.0, -1.0], dtype=DOUBLE)))
    assert extreme_eigenpairs(operator, top, bottom, seed=0).values.tolist() == pytest.approx(expected, abs=1e-12)


def test_one_weight_no_curvature_and_nothing_wanted() -> None:
    one = extreme_eigenpairs(DenseOperator(torch.tensor([[3.0]], dtype=DOUBLE)), 5, 2, seed=0)
    assert one.values.tolist() == [3] and one.gaps.tolist() == [float("inf")]
    flat = extreme_eigenpairs(DenseOperator(torch.zeros(9, 9, dtype=DOUBLE)), 2, 1, seed=0)
    assert flat.values.tolist() == [0, 0, 0] and flat.converged.all() and not flat.is_plane_unique
    with pytest.raises(ConfigError, match="top=0 and bottom=0"):
        extreme_eigenpairs(DenseOperator(torch.eye(3)), 0, 0, seed=0)


def test_scaling_the_operator_scales_everything() -> None:
    matrix = with_spectrum(torch.linspace(-1, 3, 40, dtype=DOUBLE))
    whole, small = (extreme_eigenpairs(DenseOperator(m), 3, 2, seed=0) for m in (matrix, matrix * 2.0**-60))
    assert small.values.equal(whole.values * 2.0**-60)
    assert small.steps == whole.steps


def test_the_seed_is_the_start_and_names_are_the_key() -> None:
    operator = HessianOperator(fixture_f())
    first, again, other = (extreme_eigenpairs(operator, 2, 1, seed=seed, max_steps=6) for seed in (0, 0, 1))
    assert first.values.equal(again.values) and first.vectors.equal(again.vectors)
    assert not first.values.equal(other.values)
    whole = operator.space.named(random_signs(0, "a", 1, operator))
    part = HessianOperator(fixture_f(space=type(operator.space)(("2.weight",), (torch.Size([3, 8]),))))
    assert whole["2.weight"].flatten().equal(random_signs(0, "a", 1, part))
    assert not random_signs(0, "b", 1, part).equal(random_signs(0, "a", 1, part))


def test_two_passes_leave_nothing_along_the_basis() -> None:
    basis = torch.linalg.qr(torch.randn(30, 5, dtype=DOUBLE, generator=torch.Generator().manual_seed(0)))[0].T
    vector = basis.sum(0) + 1e-9 * torch.ones(30, dtype=DOUBLE)
    left = orthogonalised(vector, basis)
    assert (basis @ left).abs().max() <= 1e-15 * left.norm()


@pytest.mark.parametrize("entries", [1, 700, 10**6])
def test_a_basis_is_worked_on_in_chunks(entries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Components, what is left and the Gram matrix are those of the whole, in float64 though the rows are float32."""
    monkeypatch.setattr(krylov_module, "ENTRIES", entries)
    draw = torch.Generator().manual_seed(0)
    rows = torch.linalg.qr(torch.randn(150, 7, dtype=DOUBLE, generator=draw))[0].T.float()
    vector = torch.randn(150, generator=draw)
    exact = rows.double() @ vector.double()
    found, left = freed(vector, rows)
    assert (found - exact).abs().max() <= 1e-14
    assert (left.double() - (vector.double() - exact @ rows.double())).abs().max() <= 1e-6
    assert (rows.double() @ left.double()).abs().max() <= torch.finfo(torch.float32).eps * left.norm()
    process = krylov(DenseOperator(with_spectrum(torch.linspace(-1, 1, 150))), vector, 20)
    gram = process.basis.double() @ process.basis.double().T
    assert process.orthogonality_error() == pytest.approx((gram - torch.eye(20)).abs().max().item(), abs=1e-14)
    bent = krylov(process.operator, vector, 20)
    bent._vectors[3] += 0.5 * bent._vectors[11]
    assert bent.orthogonality_error() == pytest.approx(0.5, abs=1e-6)


def test_rounding_of_one_pass_is_taken_away_by_the_next() -> None:
    """Of a vector nearly in the space of the basis, two passes leave what is mostly the rounding of the first."""
    draw = torch.Generator().manual_seed(0)
    rows = torch.linalg.qr(torch.randn(200, 40, dtype=DOUBLE, generator=draw))[0].T.float()
    vector = rows.sum(0) + 1e-6 * torch.randn(200, generator=draw)
    left = orthogonalised(vector, rows)
    assert (rows.double() @ left.double()).abs().max() <= 1e-6 * left.norm()


def test_every_step_is_told() -> None:
    steps: list[int] = []
    found = extreme_eigenpairs(
        DenseOperator(torch.diag(torch.arange(30, dtype=DOUBLE))), 2, 1, seed=0, told=steps.append
    )
    assert steps == list(range(1, found.steps + 1))
