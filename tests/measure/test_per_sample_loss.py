"""Losses and correctness against closed forms."""

import math

import pytest
import torch
from torch import Tensor

from plastiscope.measure.loss import Loss, correct, margin, per_sample_loss

OUTPUTS = torch.randn(9, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 3, 4, 0, 1, 2, 3])


def softmax_cross_entropy(outputs: list[float], target: list[float]) -> float:
    log_sum = math.log(sum(map(math.exp, outputs)))
    return sum(p * (log_sum - z) for p, z in zip(target, outputs, strict=True))


def logistic(outputs: list[float], target: list[float]) -> float:
    return sum(math.log(1 + math.exp(-z if y else z)) for y, z in zip(target, outputs, strict=True)) / len(outputs)


def squared(outputs: list[float], target: list[float]) -> float:
    return sum((y - z) ** 2 for y, z in zip(target, outputs, strict=True)) / len(outputs)


ONE_HOT = torch.eye(5, dtype=torch.float64)[LABELS]
SOFT = OUTPUTS.flip(0).softmax(1)
CLOSED_FORMS = [
    (Loss.cross_entropy, ONE_HOT, softmax_cross_entropy),
    (Loss.cross_entropy, SOFT, softmax_cross_entropy),
    (Loss.binary_cross_entropy, ONE_HOT, logistic),
    (Loss.mse, SOFT, squared),
]


@pytest.mark.parametrize(("loss", "targets", "closed_form"), CLOSED_FORMS)
def test_equals_the_closed_form(loss: Loss, targets: Tensor, closed_form) -> None:
    expected = [closed_form(*row) for row in zip(OUTPUTS.tolist(), targets.tolist(), strict=True)]
    assert per_sample_loss(loss, OUTPUTS, targets).tolist() == pytest.approx(expected, rel=1e-12)


def test_class_indices_are_one_hot_targets() -> None:
    of_indices = per_sample_loss(Loss.cross_entropy, OUTPUTS, LABELS)
    assert of_indices.tolist() == pytest.approx(per_sample_loss(Loss.cross_entropy, OUTPUTS, ONE_HOT).tolist())


def test_outputs_of_zero() -> None:
    zeros = torch.zeros(2, 10, dtype=torch.float64)
    ones = torch.ones(2, 10, dtype=torch.float64)
    assert per_sample_loss(Loss.cross_entropy, zeros, torch.tensor([0, 9])).tolist() == pytest.approx(
        [math.log(10)] * 2
    )
    assert per_sample_loss(Loss.binary_cross_entropy, zeros, ones).tolist() == pytest.approx([math.log(2)] * 2)
    assert per_sample_loss(Loss.mse, zeros, 3 * ones).tolist() == [9, 9]


def test_one_regression_output_takes_a_vector_of_targets() -> None:
    outputs, targets = torch.tensor([[1.0], [2.0]]), torch.tensor([4.0, 0.0])
    assert per_sample_loss(Loss.mse, outputs, targets).tolist() == [9, 4]


def test_large_outputs_do_not_overflow() -> None:
    outputs = torch.tensor([[1e4, 0.0], [0.0, 1e4]])
    assert per_sample_loss(Loss.cross_entropy, outputs, torch.tensor([0, 0])).tolist() == [0, 1e4]
    assert per_sample_loss(Loss.binary_cross_entropy, outputs, torch.zeros(2, 2)).tolist() == pytest.approx(
        [(1e4 + math.log(2)) / 2] * 2
    )


def test_correct() -> None:
    outputs = torch.tensor([[2.0, 0.3, -0.3], [-3.0, -2.0, -1.0], [0.5, 0.7, -0.2]])
    assert correct(Loss.cross_entropy, outputs, torch.tensor([0, 1, 1])).tolist() == [True, False, True]
    soft = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7], [0.6, 0.4, 0.0]])
    assert correct(Loss.cross_entropy, outputs, soft).tolist() == [True, True, False]
    multi_hot = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    assert correct(Loss.binary_cross_entropy, outputs, multi_hot).tolist() == [True, True, False]
    assert correct(Loss.mse, outputs, outputs) is None


def test_margin() -> None:
    """Also where all others are below zero, and where all are."""
    outputs = torch.tensor([[2.0, -0.5, -3.0], [-4.0, -2.0, -1.0], [0.5, 0.75, 0.25]])
    labels = torch.tensor([0, 2, 0])
    assert margin(outputs, labels).tolist() == [2.5, 1.0, -0.25]
    assert margin(outputs, torch.eye(3)[labels]).tolist() == [2.5, 1.0, -0.25]
    assert margin(outputs[:, :1], labels * 0).isnan().all()
