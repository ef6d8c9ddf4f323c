"""Smoothness along the gradient against closed forms and the definition evaluated by hand."""

import pytest
import torch

from measure.gradient_cases import PACKAGED
from measure.landscape.landscape_cases import DOUBLE, fixture_f, loss_of_weights, net_case
from plastiscope.measure.smoothness import (
    effective_beta,
    gradient_changes,
    gradient_predictiveness,
    loss_range,
    losses_along_step,
    movable,
    step_sizes,
)

ETAS = [1e-4, 1e-3, 1e-2]
HESSIAN = torch.diag(torch.tensor([5.0, 3.0], dtype=DOUBLE))


def quadratic(theta):
    """0.5 (5 x^2 + 3 y^2)."""
    return 0.5 * (theta * (HESSIAN @ theta)).sum()


def cubic(theta):
    """x^3 / 3 + y^2 / 2: the gradient changes by more uphill than downhill."""
    return theta[0] ** 3 / 3 + theta[1] ** 2 / 2


def at(function, *theta):
    return movable(loss_of_weights(function, torch.tensor(theta, dtype=DOUBLE)))


@pytest.mark.parametrize(("point", "beta"), [((1.0, 0.0), 5.0), ((0.0, 1.0), 3.0), ((1.0, 1.0), (706 / 34) ** 0.5)])
def test_beta_of_a_quadratic(point, beta):
    """||H g|| / ||g||; at (1, 1) 4.556831, which is not the largest eigenvalue."""
    with at(quadratic, *point) as (theta, _, gradient_at):
        found = effective_beta(gradient_at, theta, gradient_at(theta), ETAS)
    assert found == pytest.approx(beta, rel=1e-10)
    if point == (1.0, 1.0):
        assert found == pytest.approx(4.556831, abs=1e-6)


def test_beta_is_uphill_and_predictiveness_downhill():
    """At (1, 0): g = (1, 0), and the first coordinate of the gradient at 1 + s is (1 + s)^2."""
    with at(cubic, 1.0, 0.0) as (theta, loss_at, gradient_at):
        g = gradient_at(theta)
        assert effective_beta(gradient_at, theta, g, ETAS) == pytest.approx(2 + 1e-2, rel=1e-9)
        changes = gradient_predictiveness(gradient_at, theta, g, ETAS)
        losses = losses_along_step(loss_at, theta, g, ETAS)
    assert changes == pytest.approx([2 * eta - eta**2 for eta in ETAS], rel=1e-9)
    assert losses == pytest.approx([(1 - eta) ** 3 / 3 for eta in ETAS], rel=1e-12)
    assert loss_range([1 / 3, *losses]) == pytest.approx((1 - 0.99**3) / 3, rel=1e-9)


def test_the_range_counts_both_ways():
    assert loss_range([1.0, 0.5, 2.5]) == 2.0
    assert loss_range([1.0, float("inf")]) != loss_range([1.0, float("inf")])


def test_a_zero_gradient_has_beta_zero():
    with at(quadratic, 0.0, 0.0) as (theta, _, gradient_at):
        g = gradient_at(theta)
        assert effective_beta(gradient_at, theta, g, ETAS) == 0.0
        assert gradient_predictiveness(gradient_at, theta, g, ETAS) == [0.0] * 3


def test_a_loss_that_is_not_finite_has_beta_nan():
    with at(lambda theta: (theta**0.5).sum(), 1e-6, 1e-6) as (theta, _, gradient_at):
        found = effective_beta(gradient_at, theta, -gradient_at(theta), ETAS)
    assert found != found


def test_step_sizes_are_even_in_their_logarithm():
    assert step_sizes(1e-4, 1e-2, 3) == pytest.approx(ETAS, rel=1e-12)
    assert step_sizes(1e-3, 1e-3, 1) == pytest.approx([1e-3])


def test_small_steps_give_the_product_with_the_hessian():
    """Brute force: the Hessian of fixture F by autograd times its gradient."""
    frozen = fixture_f(micro_batch=20)

    def loss(theta):
        parameters = frozen.space.named(theta)
        return frozen.sum_of(frozen.inputs, frozen.targets, parameters) / len(frozen)

    with movable(frozen) as (theta, loss_at, gradient_at):
        g = gradient_at(theta)
        assert loss_at(theta) == pytest.approx(loss(theta).item(), rel=1e-12)
        torch.testing.assert_close(g, torch.func.grad(loss)(theta), rtol=1e-10, atol=1e-12)
        product = torch.autograd.functional.hvp(loss, theta, g)[1]
        (change,) = gradient_changes(gradient_at, theta, g, [1e-6])
        torch.testing.assert_close(change / 1e-6, product, rtol=1e-5, atol=1e-8)
        beta = effective_beta(gradient_at, theta, g, [1e-6])
    assert beta == pytest.approx((product.norm() / g.norm()).item(), rel=1e-5)


@pytest.mark.parametrize("name", ["mlp_batch", "convnet"])
def test_the_weights_are_bit_equal_afterwards(name):
    frozen = net_case(PACKAGED[name])
    before = {key: value.clone() for key, value in frozen.net.state_dict().items()}
    with pytest.raises(KeyboardInterrupt), movable(frozen) as (theta, loss_at, gradient_at):
        losses_along_step(loss_at, theta, gradient_at(theta), ETAS)
        assert not torch.equal(frozen.space.values(frozen.net), theta)
        raise KeyboardInterrupt
    assert all(torch.equal(value, before[key]) for key, value in frozen.net.state_dict().items())
    assert all(p.grad is None for p in frozen.net.parameters())
