"""Planes of losses and robust surfaces against closed forms."""

import math

import pytest
import torch
from landscape_cases import DOUBLE, NETS, fixture_f, loss_of_weights, net_case, quadratic, quadratic_case

from plastiscope.error import ConfigError
from plastiscope.measure.landscape.eigenpairs import extreme_eigenpairs
from plastiscope.measure.landscape.operator import HessianOperator
from plastiscope.measure.landscape.plane import (
    Ascent,
    Plane,
    _from_random_point,
    laid_out_as,
    offsets,
    robust_loss,
    robust_surface,
    shape_of,
    strided,
)


def plane_of(frozen, span: float = 0.5, n: int = 7, columns: int | None = None) -> Plane:
    first, second = (frozen.space.normals(0, "plane", k).to(frozen.inputs.dtype) for k in (0, 1))
    return Plane(frozen, first, second, offsets(span, n), offsets(2 * span, columns or n))


def test_offsets() -> None:
    found = offsets(0.3, 41)
    assert found[20] == 0 and found.equal(-found.flip(0))
    assert found[0].item() == pytest.approx(-0.3, rel=1e-15)
    for span, n in ((0.1, 4), (0.1, 1), (0.0, 5), (-0.1, 5), (math.nan, 5)):
        with pytest.raises(ConfigError):
            offsets(span, n)


def test_a_linear_loss_is_an_affine_array() -> None:
    slope = torch.randn(12, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    theta = torch.linspace(-1, 1, 12, dtype=DOUBLE)
    plane = plane_of(loss_of_weights(lambda t: torch.dot(slope, t), theta), n=5, columns=7)
    a, b = plane.a.unsqueeze(1) * slope.dot(plane.first), plane.b * slope.dot(plane.second)
    assert (plane.losses() - (slope.dot(theta) + a + b)).abs().max() <= 1e-12


def test_quadratic_surface() -> None:
    frozen, matrix, slope = quadratic_case()
    theta, plane = frozen.space.values(frozen.net), plane_of(frozen)
    points = theta + plane.a.view(-1, 1, 1) * plane.first + plane.b.view(-1, 1) * plane.second
    expected = 0.5 * ((points @ matrix) * points).sum(-1) + points @ slope
    assert (plane.losses() - expected).abs().max() <= 1e-12 * expected.abs().max()


def test_hessian_plane_bends_by_its_eigenvalues() -> None:
    frozen, _, _ = quadratic_case()
    pairs = extreme_eigenpairs(HessianOperator(frozen), 1, 1, seed=0, tol=1e-13, max_steps=40)
    for span in (0.5, 1e-2):
        plane = Plane(frozen, *pairs.vectors, offsets(span, 5), offsets(span, 5))
        shape = shape_of(plane.losses(), plane.a, plane.b)
        assert shape.curvatures == pytest.approx((5, -3), rel=1e-10 / span**2)
        assert shape.r2 == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("dtype", [DOUBLE, torch.float32])
def test_rows_are_the_same_bits_whoever_computes_them(dtype: torch.dtype) -> None:
    frozen = fixture_f(dtype, micro_batch=60)
    plane = plane_of(frozen)
    whole = plane.losses()
    assert whole[3, 3] == frozen.value()
    assert whole.equal(plane_of(fixture_f(dtype, micro_batch=60)).losses())
    for i in (5, 0, 2):
        assert plane.row(i).equal(whole[i])
    assert plane.row(4, columns=[6, 1]).equal(whole[4, [6, 1]])
    swapped = Plane(frozen, plane.second, plane.first, plane.b, plane.a).losses()
    assert (swapped.T - whole).abs().max() <= (1e-12 if dtype is DOUBLE else 1e-5)
    assert whole.dtype == DOUBLE


def test_a_point_off_the_grid() -> None:
    frozen, matrix, slope = quadratic_case()
    theta, plane = frozen.space.values(frozen.net), plane_of(frozen)
    here = theta + 0.123 * plane.first - 0.7 * plane.second
    expected = (0.5 * here @ matrix @ here + slope @ here).item()
    assert plane.point(0.123, -0.7).item() == pytest.approx(expected, rel=1e-12)
    assert plane.point(0, 0) == frozen.value() == plane.losses()[3, 3]
    assert plane.point(0.1, 0.2, lambda: frozen.space.values(frozen.net)[0]) == pytest.approx(
        (theta + 0.1 * plane.first + 0.2 * plane.second)[0].item(), rel=1e-12
    )


def test_an_order_in_memory_changes_nothing() -> None:
    """Channels last: the directions follow the weights, and the losses are those of the contiguous net."""
    found = []
    for form in (torch.contiguous_format, torch.channels_last):
        frozen = net_case(NETS["convnet"], n=4)
        frozen.net.to(memory_format=form)
        strides = [p.stride() for p in frozen.parameters]
        found.append(plane_of(frozen, n=3).losses())
        assert [p.stride() for p in frozen.parameters] == strides
        laid_out = laid_out_as(frozen.parameters, frozen.space.parts(frozen.space.normals(0, "x", 0)))
        assert [part.stride() for part in laid_out] == strides
    assert ((found[0] - found[1]).abs() <= 1e-12 * found[0]).all()


def test_memory_that_ends_halves_the_batches_and_says_so() -> None:
    def greedy(outputs: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        if len(outputs) > 16:
            raise torch.OutOfMemoryError("out of memory")
        return outputs[:, 0]

    def plane(micro_batch: int) -> Plane:
        return plane_of(fixture_f(loss=greedy, micro_batch=micro_batch), n=3)

    found, expected = plane(64), plane(16)
    assert found.losses().equal(expected.losses())
    assert robust_loss(found.frozen, 0.1).equal(robust_loss(expected.frozen, 0.1))
    assert found.frozen.adaptation.notes == [
        "out of memory: micro-batches of 64 became 32", "out of memory: micro-batches of 32 became 16"
    ]  # fmt: skip


def test_what_is_not_finite_stays() -> None:
    frozen = loss_of_weights(lambda t: torch.where(t[0] > 1, torch.nan, t.square().sum()), torch.zeros(2, dtype=DOUBLE))
    axes = torch.eye(2, dtype=DOUBLE)
    plane = Plane(frozen, *axes, offsets(2, 5), offsets(2, 5))
    found = plane.losses()
    assert found[4].isnan().all() and found[:4].isfinite().all()
    shape = shape_of(found, plane.a, plane.b)
    assert (shape.centre, shape.minimum, shape.cell, shape.centre_is_minimum) == (0, 0, (2, 2), True)
    assert shape.nonfinite == pytest.approx(0.2)
    assert shape.curvatures == pytest.approx((2, 2), rel=1e-12)


def test_shape_of_a_tilted_grid_and_of_nothing() -> None:
    a, b = offsets(1, 5), offsets(2, 7)
    tilted = 3 * a.unsqueeze(1) + b**2
    shape = shape_of(tilted, a, b)
    assert shape.cell == (0, 3) and not shape.centre_is_minimum and shape.minimum == -3
    assert shape.curvatures == pytest.approx((0, 2), abs=1e-12)
    nothing = shape_of(torch.full((5, 7), math.nan, dtype=DOUBLE), a, b)
    assert nothing.nonfinite == 1 and not nothing.centre_is_minimum and all(map(math.isnan, nothing.curvatures))


def test_a_loss_of_minus_one_is_a_loss() -> None:
    frozen = loss_of_weights(lambda t: -1 + 0 * t.sum(), torch.zeros(2, dtype=DOUBLE))
    assert plane_of(frozen).losses().eq(-1).all()


def test_robust_loss_of_a_quadratic() -> None:
    frozen, matrix, slope = quadratic_case()
    theta = frozen.space.values(frozen.net)
    g = matrix @ theta + slope
    for rho in (0.05, 1.0):
        expected = frozen.value() + rho * g.norm() + rho**2 / 2 * (g @ matrix @ g) / g.square().sum()
        worst, plain, norm = robust_loss(frozen, rho)
        assert worst.item() == pytest.approx(expected.item(), rel=1e-11)
        assert (plain - frozen.value()).item() == 0
        known = robust_loss(frozen, rho, here=plain + 1)  # is taken as it is
        assert known[0] == worst and known[1] == plain + 1
        assert norm.item() == pytest.approx(g.norm().item(), rel=1e-13)
        scale = theta.abs()
        moved = theta + rho * scale**2 * g / (scale * g).norm()
        expected = 0.5 * moved @ matrix @ moved + slope @ moved
        assert robust_loss(frozen, rho, Ascent.adaptive)[0].item() == pytest.approx(expected.item(), rel=1e-11)
        half = theta + rho / 2 * g / g.norm()
        again = matrix @ half + slope
        moved = half + rho / 2 * again / again.norm()
        expected = 0.5 * moved @ matrix @ moved + slope @ moved
        assert robust_loss(frozen, rho, steps=2)[0].item() == pytest.approx(expected.item(), rel=1e-11)


@pytest.mark.parametrize("kind", Ascent)
def test_the_worst_of_several_ascents_of_a_quadratic(kind: Ascent) -> None:
    """By hand; the ends lie in the ball, and the largest counts, whichever it is."""
    frozen, matrix, slope = quadratic_case()
    theta, rho = frozen.space.values(frozen.net), 0.3
    scale = theta.abs() if kind is Ascent.adaptive else torch.ones_like(theta)

    def loss(point):
        return (0.5 * point @ matrix @ point + slope @ point).item()

    found = [robust_loss(frozen, rho, kind)[0].item()]
    for k in (1, 2, 3):
        noise = frozen.space.normals(5, "robust", k).double()
        z = rho * noise / noise.norm()
        g = scale * (matrix @ (theta + scale * z) + slope)
        z = z + rho * g / g.norm()
        z = z * min(1.0, rho / z.norm().item())
        assert z.norm() <= rho * (1 + 1e-12)
        found.append(loss(theta + scale * z))
        value = robust_loss(frozen, rho, kind, starts=k + 1, seed=5)[0].item()
        assert value == pytest.approx(max(found), rel=1e-11)
    assert len({round(value, 6) for value in found}) == 4
    assert frozen.space.values(frozen.net).equal(theta)


def test_a_random_start_ascends_along_the_scaled_slope() -> None:
    """L = b^T theta with weights of very different sizes: in the adaptive ball z goes along |theta| b, not along b.

    Each random start is looked at by itself: the first ascent of a linear loss is the maximum, which hides them.
    """
    theta, slope = torch.tensor([3.0, 0.1, -1.0], dtype=DOUBLE), torch.tensor([1.0, -5.0, 2.0], dtype=DOUBLE)
    frozen = quadratic(torch.zeros(3, 3, dtype=DOUBLE), slope, theta)
    rho = 0.2
    for k in (1, 2, 3):
        noise = frozen.space.normals(5, "robust", k).double()
        z = rho * noise / noise.norm()
        z = z + rho * theta.abs() * slope / (theta.abs() * slope).norm()
        z = z * min(1.0, rho / z.norm().item())
        expected = torch.dot(slope, theta + theta.abs() * z).item()
        found = _from_random_point(frozen, rho, Ascent.adaptive, 5, k).item()
        assert found == pytest.approx(expected, rel=1e-11)


def test_a_second_start_leaves_a_stationary_point() -> None:
    frozen = quadratic(torch.eye(2, dtype=DOUBLE), torch.zeros(2, dtype=DOUBLE), torch.zeros(2, dtype=DOUBLE))
    assert robust_loss(frozen, 0.1)[0] == 0
    worst, plain, norm = robust_loss(frozen, 0.1, starts=2)
    assert worst.item() == pytest.approx(0.1**2 / 2, rel=1e-11)
    assert plain == norm == 0


def test_robust_surface_keeps_the_centre() -> None:
    frozen = fixture_f()
    plane = plane_of(frozen, n=5)
    whole = plane.losses()
    plain = robust_surface(plane, 0.0)
    assert plain.worst.equal(whole) and plain.plain.equal(whole) and plain.gap.count_nonzero() == 0
    found = robust_surface(plane, 0.05, stride=2)
    assert found.rows == found.columns == (0, 2, 4)
    assert found.plain.equal(whole[::2, ::2]) and (found.gap > 0).all()
    assert found.worst[1, 1] == robust_loss(frozen, 0.05)[0]
    assert found.gradient_norms[1, 1].item() == pytest.approx(0.24386741, abs=1e-8)
    assert strided(21, 2) == list(range(0, 21, 2)) and strided(21, 3) == [1, 4, 7, 10, 13, 16, 19]
    for rho, steps, starts in ((-1, 1, 1), (math.inf, 1, 1), (0.1, 0, 1), (0.1, 1, 0)):
        with pytest.raises(ConfigError, match="rho"):
            robust_loss(frozen, rho, steps=steps, starts=starts)
    with pytest.raises(ConfigError, match="stride"):
        strided(21, 0)


def test_robust_loss_of_a_convex_loss_and_of_a_stationary_point() -> None:
    frozen = loss_of_weights(lambda t: t.square().sum(), torch.zeros(2, dtype=DOUBLE))
    found = robust_surface(Plane(frozen, *torch.eye(2, dtype=DOUBLE), offsets(1, 5), offsets(1, 5)), 0.1)
    assert found.stationary.nonzero().tolist() == [[2, 2]]
    assert found.gap[2, 2] == 0 and (found.gap >= 0).all()
