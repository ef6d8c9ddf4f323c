"""Rank-restoring vectors: orthogonality, lengths, what happens where nothing is left, against plain float64 algebra."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from plastiscope.error import RunError
from plastiscope.measure.restoring_vectors import (
    Energy,
    Restored,
    _Budget,
    _Geometry,
    activation_energy,
    restoring_vectors,
)

RIDGE = 1e-4


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def moment_of(inputs: Tensor) -> Tensor:
    """E h h^T of inputs [rows, d]."""
    return inputs.mT @ inputs / inputs.shape[-2]


def metric(moment: Tensor) -> Tensor:
    return moment + max(RIDGE, 2e-6 * moment.trace().item()) * torch.eye(moment.shape[-1], dtype=moment.dtype)


def lengths(found: Restored, moment: Tensor) -> Tensor:
    return ((found.vectors @ metric(moment)) * found.vectors).sum(-1)


CASES = {
    "few kept": (moment_of(normal(200, 12) @ normal(12, 12, seed=1)), normal(5, 12, seed=2)),
    "ill-conditioned": (moment_of(normal(200, 12) * torch.logspace(0, -3, 12)), normal(8, 12, seed=2)),
    "parallel kept": (moment_of(normal(200, 12)), normal(3, 12, seed=2).repeat(3, 1)),
    "rows of zeros": (moment_of(normal(200, 12)), torch.cat([normal(4, 12), torch.zeros(3, 12)])),
    "none kept": (moment_of(normal(200, 12)), torch.zeros(4, 12)),
}


@pytest.mark.parametrize(("moment", "kept"), CASES.values(), ids=CASES)
def test_fresh_vectors_are_orthogonal_to_the_kept_and_to_each_other_and_of_length_1(moment, kept):
    kept, draws = kept.double(), normal(3, 12, seed=3)
    found = restoring_vectors(moment, kept, draws, RIDGE)
    assert not found.saturated.any()
    assert (kept @ metric(moment) @ found.vectors.mT).abs().max() < 1e-6
    gram = found.vectors @ metric(moment) @ found.vectors.mT
    torch.testing.assert_close(gram, torch.eye(3, dtype=torch.float64), rtol=0, atol=1e-8)


def test_a_fresh_vector_is_the_draw_without_its_projection():
    """(I - P) z, P = V (V^T S V)^-1 V^T S, and then its length 1."""
    moment, kept = CASES["few kept"]
    draw, s = normal(1, 12, seed=3), metric(moment)
    projector = kept.mT @ torch.linalg.inv(kept @ s @ kept.mT) @ kept @ s
    residual = draw[0] - projector @ draw[0]
    expected = residual / (residual @ s @ residual).sqrt()
    found = restoring_vectors(moment, kept, draw, RIDGE).vectors[0]
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


def test_without_orthonormalisation_each_is_as_alone():
    moment, kept = CASES["few kept"]
    draws = normal(3, 12, seed=3)
    found = restoring_vectors(moment, kept, draws, RIDGE, orthonormalise=False)
    for i in range(3):
        alone = restoring_vectors(moment, kept, draws[i : i + 1], RIDGE)
        torch.testing.assert_close(found.vectors[i], alone.vectors[0], rtol=1e-12, atol=1e-14)


def test_where_the_kept_cover_all_it_is_the_direction_that_they_cover_least():
    moment, kept, draws = moment_of(normal(300, 6)), normal(9, 6, seed=2), normal(1, 6, seed=3)
    found = restoring_vectors(moment, kept, draws, RIDGE)
    assert found.saturated.tolist() == [True]
    s = metric(moment)
    values, vectors = torch.linalg.eigh(s)
    root = vectors @ torch.diag(values.sqrt()) @ vectors.mT
    least = torch.linalg.eigh(root @ kept.mT @ kept @ root).eigenvectors[:, 0]
    expected = torch.linalg.solve(root, least)
    if expected @ draws[0] < 0:
        expected = -expected
    torch.testing.assert_close(found.vectors[0], expected, rtol=1e-8, atol=1e-10)
    assert abs(lengths(found, moment)[0] - 1) < 1e-8
    again = restoring_vectors(moment, kept, draws, RIDGE)
    assert torch.equal(again.vectors, found.vectors)


def test_of_the_two_signs_it_has_that_of_the_draw():
    moment, kept, draw = moment_of(normal(300, 6)), normal(9, 6, seed=2), normal(1, 6, seed=3)
    one, other = (restoring_vectors(moment, kept, z, RIDGE).vectors for z in (draw, -draw))
    assert (one * draw).sum() > 0
    torch.testing.assert_close(one, -other)


def test_the_second_of_two_without_a_residual_counts_the_first():
    moment, kept = moment_of(normal(300, 4)), normal(6, 4, seed=2)
    found = restoring_vectors(moment, kept, normal(2, 4, seed=3), RIDGE)
    assert found.saturated.tolist() == [True, True]
    alone = restoring_vectors(moment, torch.cat([kept, found.vectors[:1]]), normal(2, 4, seed=3)[1:], RIDGE)
    torch.testing.assert_close(found.vectors[1], alone.vectors[0], rtol=1e-8, atol=1e-10)
    s = metric(moment)
    cosine = found.vectors[0] @ s @ found.vectors[1]
    assert abs(cosine) < 0.9


@pytest.mark.parametrize("rounded", [False, True], ids=["float64", "float32"])
def test_directions_that_the_data_do_not_show_count_for_nothing(rounded):
    """Inputs of rank 3 in 8 dimensions, all of it covered by 5 kept vectors: the ridge alone would leave 3 directions.

    The vector is what of the 3 directions is covered least: its pre-activations vary, and it is not long.
    """
    inputs = normal(100, 3) @ normal(3, 8, seed=1)
    moment, kept = moment_of(inputs), normal(5, 8, seed=2)
    given = moment.float() if rounded else moment
    found = restoring_vectors(given, kept, normal(1, 8, seed=3), RIDGE)
    assert found.saturated.tolist() == [True]
    assert torch.isfinite(found.vectors).all()
    z = inputs @ found.vectors[0]
    assert z.square().mean().item() == pytest.approx(1.0, rel=1e-3)
    assert torch.linalg.vector_norm(found.vectors[0]) < 10
    nothing = torch.linalg.eigh(moment).eigenvectors[:, :5]
    assert (nothing.mT @ found.vectors[0]).abs().max() < 1e-5


def test_two_kept_leave_one_of_three_directions_in_a_plane_of_eight():
    """One residual that the data show, and then none."""
    inputs = normal(100, 3) @ normal(3, 8, seed=1)
    found = restoring_vectors(moment_of(inputs), normal(2, 8, seed=2), normal(2, 8, seed=3), RIDGE)
    assert found.saturated.tolist() == [False, True]
    assert torch.isfinite(found.vectors).all()


@pytest.mark.parametrize("energy", [None, Energy(units=4, activation_energy=0.5)])
def test_no_inputs_no_kept_or_no_draw_are_finite(energy):
    for moment, draws in ((torch.zeros(5, 5), normal(2, 5)), (moment_of(normal(50, 5)), torch.zeros(2, 5))):
        found = restoring_vectors(moment, torch.zeros(4, 5), draws, RIDGE, energy)
        assert torch.isfinite(found.vectors).all()
    assert restoring_vectors(torch.zeros(5, 5), torch.zeros(4, 5), normal(1, 5), RIDGE).saturated.all()


def test_silent_inputs_get_exactly_no_weight():
    heard = torch.tensor([1.0, 1.0, 0.0, 1.0, 1.0, 1.0], dtype=torch.float64)
    moment = moment_of(normal(200, 6) * heard)
    for number in (2, 8):
        found = restoring_vectors(moment, normal(number, 6, seed=2) * heard, normal(2, 6, seed=3) * heard, RIDGE)
        assert bool(found.saturated.all()) == (number == 8)
        assert found.vectors[:, 2].abs().max() < 1e-14


@pytest.mark.parametrize("kept", [3, 5, 9, 14])
@pytest.mark.parametrize("rank", [2, 5, 9])
def test_a_replacement_never_lowers_the_rank_of_the_pre_activations(kept, rank):
    """Numerical rank of W S W^T over the data, at 1e-6 of the largest eigenvalue, one unit of all exchanged."""
    inputs = normal(200, rank) @ normal(rank, 9, seed=1)
    moment, weights = moment_of(inputs), normal(kept, 9, seed=2)
    weights[1] = weights[0]

    def numerical_rank(rows: Tensor) -> int:
        values = torch.linalg.eigvalsh(rows @ moment @ rows.mT)
        return int((values > 1e-6 * values[-1]).sum())

    staying = weights.clone()
    staying[1] = 0.0
    replaced = weights.clone()
    replaced[1] = restoring_vectors(moment, staying, normal(1, 9, seed=3), RIDGE).vectors[0]
    before, after = numerical_rank(weights), numerical_rank(replaced)
    assert after == min(kept, rank) >= before


# Energy.


def by_formula(moment: Tensor, kept: Tensor, rule: Energy, flags: list[bool], coverage: list[float]) -> list[float]:
    s = metric(moment)
    target = (s.trace() / len(s)).item() / rule.activation_energy
    left = max(0.0, rule.units * target - ((kept @ s) * kept).sum().item())
    least, given = torch.linalg.eigvalsh(s)[0].item(), []
    for i, (saturated, covered) in enumerate(zip(flags, coverage, strict=True)):
        if saturated:
            star = min(1.0, 2 * covered) if rule.by_coverage else 0.0
            given.append(min(target, max(rule.saturated_share * least, star)))
        else:
            given.append(
                min(
                    target,
                    max(left / (len(flags) - i), rule.saturated_share * max(RIDGE, 2e-6 * moment.trace().item())),
                )
            )
            left -= given[-1]
    return given


@pytest.mark.parametrize("size", [0.1, 1.0, 3.0])
def test_energies_are_shares_of_what_the_kept_do_not_have(size):
    moment, kept = moment_of(normal(200, 12) * 2), normal(5, 12, seed=2) * size
    rule = Energy(units=8, activation_energy=0.5)
    found = restoring_vectors(moment, kept, normal(3, 12, seed=3), RIDGE, rule)
    expected = by_formula(moment, kept, rule, [False] * 3, [0.0] * 3)
    assert lengths(found, moment).tolist() == pytest.approx(expected, rel=1e-10)
    assert lengths(found, moment).min() > 0


@pytest.mark.parametrize("by_coverage", [False, True])
@pytest.mark.parametrize("size", [0.1, 1.0])
def test_energies_without_a_residual(by_coverage, size):
    moment, kept = moment_of(normal(300, 4)), normal(6, 4, seed=2) * size
    rule = Energy(units=7, activation_energy=0.5, by_coverage=by_coverage)
    found = restoring_vectors(moment, kept, normal(1, 4, seed=3), RIDGE, rule)
    root = torch.linalg.cholesky(metric(moment))
    covered = torch.linalg.eigvalsh(root.mT @ kept.mT @ kept @ root)[0].item()
    expected = by_formula(moment, kept, rule, [True], [covered])
    assert lengths(found, moment).tolist() == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("flags", [[False, True, False], [True, False, False]])
def test_what_one_without_a_residual_does_not_take_is_left_to_the_others(flags):
    moment, kept = moment_of(normal(200, 12) * 2), normal(5, 12, seed=2)
    rule, s = Energy(units=6, activation_energy=1.2), metric(moment)
    kept = kept * (5 * s.trace() / 12 / 1.2 / ((kept @ s) * kept).sum()).sqrt()
    budget = _Budget(_Geometry(moment, kept, RIDGE), rule, 3)
    least = torch.linalg.eigvalsh(metric(moment))[0]
    found = [budget.next(torch.tensor(flag), least, torch.tensor(0.0)).item() for flag in flags]
    assert found == pytest.approx(by_formula(moment, kept, rule, flags, [0.0] * 3), rel=1e-10)
    assert len({round(value, 9) for value in found}) == (3 if flags[1] else 2)


def test_second_moments_of_activations():
    assert activation_energy(F.relu) == pytest.approx(0.5, abs=1e-9)
    assert activation_energy(lambda z: F.leaky_relu(z, 0.1)) == pytest.approx((1 + 0.1**2) / 2, abs=1e-9)
    assert activation_energy(lambda z: z) == pytest.approx(1.0, abs=1e-12)
    assert activation_energy(torch.exp) == pytest.approx(math.exp(2), rel=1e-9)
    assert activation_energy(F.selu) == pytest.approx(1.0, abs=1e-6)


# Batches of runs, precision, errors.


@pytest.mark.parametrize("energy", [None, Energy(units=9, activation_energy=0.5, by_coverage=True)])
def test_each_run_of_a_batch_is_as_alone_with_and_without_residual(energy):
    moments = torch.stack(
        [moment_of(normal(100, 6)), moment_of(normal(100, 2, seed=5) @ normal(2, 6)), moment_of(normal(90, 6, seed=4))]
    )
    kept = torch.stack([normal(7, 6, seed=i) for i in range(3)])
    kept[2, 3:] = 0.0
    draws = torch.stack([normal(2, 6, seed=10 + i) for i in range(3)])
    together = restoring_vectors(moments, kept, draws, RIDGE, energy)
    assert together.saturated.tolist() == [[True, True], [True, True], [False, False]]
    for r in range(3):
        alone = restoring_vectors(moments[r], kept[r], draws[r], RIDGE, energy)
        torch.testing.assert_close(together.vectors[r], alone.vectors, rtol=1e-8, atol=1e-10)


def test_a_run_that_is_not_finite_does_not_stop_the_others():
    moments = torch.stack([moment_of(normal(100, 6)), torch.full((6, 6), float("nan"))])
    kept, draws = normal(2, 3, 6), normal(2, 1, 6, seed=1)
    found = restoring_vectors(moments, kept, draws, RIDGE)
    alone = restoring_vectors(moments[0], kept[0], draws[0], RIDGE)
    torch.testing.assert_close(found.vectors[0], alone.vectors)


@pytest.mark.parametrize("kept", [20, 100])
def test_moments_in_single_precision_give_the_same_vectors(kept):
    moment = moment_of(normal(500, 64) @ normal(64, 64, seed=1) / 8)
    weights, draws = normal(kept, 64, seed=2) / 8, normal(2, 64, seed=3)
    one = restoring_vectors(moment, weights, draws, RIDGE).vectors
    two = restoring_vectors(moment.float(), weights.float(), draws.float(), RIDGE).vectors
    assert (one - two).abs().max() < 1e-3 * one.abs().max()


def test_the_mean_of_many_steps_on_equal_inputs_in_single_precision_has_factors():
    """Positive inputs, fewer than dimensions: rounding adds up to more than the ridge."""
    rows, moment = torch.rand(50, 300, generator=torch.Generator().manual_seed(0)) * 2, torch.zeros(300, 300)
    for _ in range(1500):
        moment.mul_(0.99).addmm_(rows.mT, rows, alpha=0.01 / 50)
    assert torch.linalg.eigvalsh(moment.double())[0] < -RIDGE / 2
    found = restoring_vectors(moment, torch.zeros(4, 300), normal(2, 300), RIDGE)
    assert torch.isfinite(found.vectors).all() and not found.saturated.any()


def test_large_inputs_in_single_precision_have_factors():
    """Pixels up to 255, fewer samples than dimensions: rounding is larger than the ridge."""
    pixels = (normal(30, 60).abs() * 255).float()
    moment = pixels.mT @ pixels / 30
    found = restoring_vectors(moment, torch.zeros(4, 60), normal(2, 60), RIDGE)
    assert torch.isfinite(found.vectors).all()


def test_a_factorisation_that_fails_is_an_error_in_a_sentence():
    indefinite = torch.diag(torch.tensor([1.0, -5.0, 1.0]))
    with pytest.raises(RunError, match=r"no fresh weights could be made.*Raise learner\.ridge"):
        restoring_vectors(indefinite, torch.zeros(2, 3), normal(1, 3), RIDGE)
