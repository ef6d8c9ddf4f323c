"""Continual-learning metrics, from accuracies on all tasks after training on each.

a[i, j] is the test accuracy on task j after training on task i, [T, T]; b[j] the same before any training, [T]. A cell
is NaN where it does not exist or means something else; sums run over the finite cells, whose number goes with the
value, and a metric without cells is NaN, never 0. For regression give minus the loss. At the end of task t give
`a[:t + 1, :t + 1]`.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class CellMean(NamedTuple):
    """A mean over finite cells, and how many there were; NaN when none."""

    value: float
    cells: int


def _cell_mean(values: Tensor) -> CellMean:
    finite = values[values.isfinite()].double()
    return CellMean(finite.mean().item(), len(finite))


def accuracy_by_class(correct: Tensor, targets: Tensor, classes: int) -> Tensor:
    """Share of the samples of each class that are classified rightly, float64 [classes]; NaN of a class without any.

    Args:
        correct: bool [n].
        targets: class indices, int64 [n].
        classes: how many there are.
    """
    hits = torch.zeros(classes, dtype=torch.float64, device=targets.device).index_add_(0, targets, correct.double())
    return hits / targets.bincount(minlength=classes)


def average_accuracy(a: Tensor, i: int = -1) -> CellMean:
    """A_i = mean of a[i, j] over j <= i; by default at the end (Lopez-Paz & Ranzato 2017)."""
    i %= len(a)
    return _cell_mean(a[i, : i + 1])


def forgetting(a: Tensor, i: int = -1) -> CellMean:
    """F_i = mean over j < i of max over l < i of a[l, j], less a[i, j]; may be negative (Chaudhry et al. 2018).

    Not minus the backward transfer: the maximum may lie off the diagonal.
    """
    i %= len(a)
    if i == 0:
        return CellMean(torch.nan, 0)
    best = torch.where(a.isfinite(), a, -torch.inf)[:i, :i].amax(0)
    return _cell_mean(best - a[i, :i])


def backward_transfer(a: Tensor) -> CellMean:
    """Mean over j < T-1 of a[T-1, j] - a[j, j] (Lopez-Paz & Ranzato 2017)."""
    return _cell_mean((a[-1] - a.diagonal())[:-1])


def forward_transfer(a: Tensor, b: Tensor) -> CellMean:
    """Mean over j >= 1 of a[j-1, j] - b[j] (Lopez-Paz & Ranzato 2017)."""
    return _cell_mean(a.diagonal(1) - b[1:])


def learning_accuracy(a: Tensor) -> CellMean:
    """Mean of a[j, j]: what loss of plasticity lowers, whatever is forgotten."""
    return _cell_mean(a.diagonal())


def average_incremental_accuracy(a: Tensor) -> CellMean:
    """Mean over i of A_i; its cells are the rows that have one."""
    return _cell_mean(torch.tensor([average_accuracy(a, i).value for i in range(len(a))], dtype=torch.float64))


def learning_curve_auc(curve: Tensor) -> float:
    """Trapezoid mean of a task's test accuracy by epoch [E]; of one epoch: its accuracy. NaN if any is."""
    curve = curve.double()
    return ((curve[:-1] + curve[1:]) / 2 if len(curve) > 1 else curve).mean().item()


def epochs_to_threshold(curve: Tensor, threshold: float) -> tuple[float, bool]:
    """First epoch, from 1, whose accuracy is at least the threshold, and True; never: NaN and False."""
    reached = (curve >= threshold).nonzero()
    return (reached[0].item() + 1.0, True) if len(reached) else (torch.nan, False)
