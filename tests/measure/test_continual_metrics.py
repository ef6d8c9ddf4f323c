"""Continual-learning metrics against numbers worked out by hand and brute force over cells."""

import math

import pytest
import torch
from torch import Tensor

from plastiscope.measure.continual import (
    CellMean,
    average_accuracy,
    average_incremental_accuracy,
    backward_transfer,
    epochs_to_threshold,
    forgetting,
    forward_transfer,
    learning_accuracy,
    learning_curve_auc,
)

A = torch.tensor([[0.9, 0.2, 0.1], [0.7, 0.8, 0.3], [0.6, 0.85, 0.95]], dtype=torch.float64)
B = torch.full((3,), 0.1, dtype=torch.float64)


def all_metrics(a: Tensor, b: Tensor) -> dict[str, CellMean]:
    return {
        "average_accuracy": average_accuracy(a),
        "forgetting": forgetting(a),
        "backward_transfer": backward_transfer(a),
        "forward_transfer": forward_transfer(a, b),
        "learning_accuracy": learning_accuracy(a),
        "average_incremental_accuracy": average_incremental_accuracy(a),
    }


def brute_force(a: Tensor, b: Tensor) -> dict[str, CellMean]:
    tasks = range(len(a))
    last = len(a) - 1
    cell = a.tolist()

    def mean(values: list[float]) -> CellMean:
        finite = [v for v in values if math.isfinite(v)]
        return CellMean(sum(finite) / len(finite) if finite else math.nan, len(finite))

    def best_before(j: int) -> float:
        return max([row[j] for row in cell[:last] if math.isfinite(row[j])], default=math.nan)

    averages = [mean([cell[i][j] for j in tasks if j <= i]) for i in tasks]
    return {
        "average_accuracy": averages[last],
        "forgetting": mean([best_before(j) - cell[last][j] for j in tasks if j < last]),
        "backward_transfer": mean([cell[last][j] - cell[j][j] for j in tasks if j < last]),
        "forward_transfer": mean([cell[j - 1][j] - b[j].item() for j in tasks if j >= 1]),
        "learning_accuracy": mean([cell[j][j] for j in tasks]),
        "average_incremental_accuracy": mean([average.value for average in averages]),
    }


def assert_equal(found: dict[str, CellMean], expected: dict[str, CellMean]) -> None:
    for name, (value, cells) in expected.items():
        assert found[name].value == pytest.approx(value, rel=1e-12, abs=1e-15, nan_ok=True), name
        assert found[name].cells == cells, name


EXAMPLE = {
    "average_accuracy": CellMean(0.8, 3),
    "forgetting": CellMean(0.125, 2),
    "backward_transfer": CellMean(-0.125, 2),
    "forward_transfer": CellMean(0.15, 2),
    "learning_accuracy": CellMean(2.65 / 3, 3),
    "average_incremental_accuracy": CellMean(2.45 / 3, 3),
}


def test_example() -> None:
    assert_equal(all_metrics(A, B), EXAMPLE)
    assert average_accuracy(A, 1).value == pytest.approx(0.75)


def test_the_best_may_lie_off_the_diagonal() -> None:
    a = A.clone()
    a[1, 0] = 0.95
    assert forgetting(a).value == pytest.approx(0.15)
    assert backward_transfer(a).value == pytest.approx(-0.125)


def test_cells_above_the_diagonal_serve_forward_transfer_alone() -> None:
    a = A.masked_fill(torch.ones(3, 3).triu(1).bool(), math.nan)
    assert_equal(all_metrics(a, B), EXAMPLE | {"forward_transfer": CellMean(math.nan, 0)})


def test_one_task() -> None:
    none = CellMean(math.nan, 0)
    expected = {"forgetting": none, "backward_transfer": none, "forward_transfer": none}
    assert_equal(
        all_metrics(A[:1, :1], B[:1]),
        dict.fromkeys(EXAMPLE, CellMean(0.9, 1)) | expected,
    )


def test_forgetting_along_the_run() -> None:
    assert forgetting(A, 1) == CellMean(pytest.approx(0.2), 1)
    assert forgetting(A, 1).value == pytest.approx(forgetting(A[:2, :2]).value)
    assert forgetting(A, 0).cells == 0


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("missing", [0.0, 0.3, 0.7, 1.0])
def test_equals_brute_force_over_the_finite_cells(seed: int, missing: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    a, b, gone_a = (torch.rand(shape, dtype=torch.float64, generator=generator) for shape in ((5, 5), (5,), (5, 5)))
    gone_b = torch.rand(5, generator=generator) < missing
    a, b = a.masked_fill(gone_a < missing, math.nan), b.masked_fill(gone_b, math.nan)
    assert_equal(all_metrics(a, b), brute_force(a, b))


def test_a_diverged_loss_is_no_cell() -> None:
    a = -A
    a[0, 0] = -math.inf
    assert_equal(all_metrics(a, -B), brute_force(a, -B))


def test_learning_curve() -> None:
    curve = torch.tensor([0.2, 0.6, 0.8], dtype=torch.float64)
    assert learning_curve_auc(curve) == pytest.approx(0.55, rel=1e-15)
    assert epochs_to_threshold(curve, 0.5) == (2, True)
    assert epochs_to_threshold(curve, 0.2) == (1, True)
    epoch, reached = epochs_to_threshold(curve, 0.9)
    assert math.isnan(epoch)
    assert not reached


def test_short_and_broken_curves() -> None:
    assert learning_curve_auc(torch.tensor([0.5])) == 0.5
    assert math.isnan(learning_curve_auc(torch.tensor([])))
    assert math.isnan(learning_curve_auc(torch.tensor([0.1, math.nan, 0.3])))
    assert epochs_to_threshold(torch.tensor([math.nan, 0.1, 0.7, 0.2]), 0.5) == (3, True)
