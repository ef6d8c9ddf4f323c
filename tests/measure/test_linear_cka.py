"""Linear CKA against hand-made numbers, brute force and its invariances."""

import math

import pytest
import torch
from torch import Tensor

from measure.rank_cases import orthogonal
from plastiscope.measure.cka import linear_cka

X = torch.tensor([[1.0], [-1.0], [1.0], [-1.0]])
Y = torch.tensor([[1.0], [1.0], [-1.0], [-1.0]])


def normal(n: int, d: int, seed: int) -> Tensor:
    return torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def brute_force(x: Tensor, y: Tensor) -> float:
    """Alignment of centred Gram matrices H K H, by the centring matrix H."""
    centre = torch.eye(len(x), dtype=torch.float64) - 1 / len(x)
    k, m = (centre @ features @ features.T @ centre for features in (x, y))
    return ((k * m).sum() / (k.norm() * m.norm())).item()


@pytest.mark.parametrize(
    ("x", "y", "expected"),
    [
        (X, Y, 0.0),
        (X, torch.cat([X, Y], 1), 1 / math.sqrt(2)),
        (X, torch.cat([X, 2 * Y], 1), 16 / (4 * math.sqrt(16**2 / 16 + 256))),
        (torch.tensor([[1.0], [0.0], [-1.0]]), torch.tensor([[1.0], [0.0], [0.0]]), 0.75),
    ],
)
def test_examples(x: Tensor, y: Tensor, expected: float) -> None:
    assert linear_cka(x, y) == pytest.approx(expected, abs=1e-12)


def test_published_digits() -> None:
    assert linear_cka(X, torch.cat([X, Y], 1)) == pytest.approx(0.707107, abs=5e-7)
    assert linear_cka(X, torch.cat([X, 2 * Y], 1)) == pytest.approx(0.242536, abs=5e-7)


@pytest.mark.parametrize(("n", "d1", "d2"), [(50, 4, 7), (6, 20, 30), (10, 3, 40), (40, 40, 1), (2, 5, 5)])
def test_equals_brute_force_and_is_symmetric(n: int, d1: int, d2: int) -> None:
    x, y = normal(n, d1, 0), normal(n, d2, 1) + 5
    assert linear_cka(x, y) == pytest.approx(brute_force(x, y), rel=1e-11)
    assert linear_cka(x, y) == pytest.approx(linear_cka(y, x), rel=1e-12)


@pytest.mark.parametrize(("n", "d"), [(50, 6), (6, 50)])
def test_equal_up_to_rotation_shift_and_scale_is_one(n: int, d: int) -> None:
    x = normal(n, d, 0)
    for y in (x, -x, 1e-8 * x, 1e8 * x @ orthogonal(d), x @ orthogonal(d) + normal(1, d, 3)):
        assert linear_cka(x, y) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("d", [2, 20])
@pytest.mark.parametrize("bad", [0.1, math.nan, math.inf])
def test_constant_or_not_finite_layers_have_none(bad: float, d: int) -> None:
    x, y = normal(9, d, 0), normal(9, d, 1)
    y = torch.full_like(y, bad) if math.isfinite(bad) else y.index_fill(0, torch.tensor([4]), bad)
    assert math.isnan(linear_cka(x, y))
    assert math.isnan(linear_cka(y, x))


def test_other_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="3 and 4 samples"):
        linear_cka(torch.ones(3, 1), torch.ones(4, 1))
