"""How well a network can still be trained: its curve on a held-out task, beside those of fresh networks.

Source: this project's definition (docs/analyses.md); losses above those of fresh networks are lost plasticity.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Curve:
    """Loss and accuracy on the held-out task in the course of a training.

    A loss that is not finite ends a curve: from there on both are NaN.

    Attributes:
        steps: int64 [p], steps after which it was measured; begins with 0 and ends with n >= 1.
        loss: float64 [p].
        accuracy: float64 [p] in [0, 1]; None where there are no classes.
    """

    steps: Tensor
    loss: Tensor
    accuracy: Tensor | None

    @classmethod
    def measured(cls, steps: Tensor, loss: Tensor, accuracy: Tensor | None) -> "Curve":
        """A curve that ends where its loss is not finite for the first time."""
        is_over = (~loss.isfinite()).cumsum(0) > 0
        nan = float("nan")
        return cls(
            steps, loss.masked_fill(is_over, nan), None if accuracy is None else accuracy.masked_fill(is_over, nan)
        )

    @property
    def is_finite(self) -> bool:
        """Whether it reaches the last step."""
        return bool(self.loss.isfinite().all())


def area(values: Tensor, steps: Tensor) -> float:
    """Trapezoid mean (1/n) sum over points of (s' - s) (v(s) + v(s')) / 2; NaN if any value is.

    Args:
        values: [p].
        steps: int64 [p], from 0 to n.
    """
    v, s = values.double(), steps.double()
    return (((s[1:] - s[:-1]) * (v[1:] + v[:-1]) / 2).sum() / s[-1]).item()


def trainability(aged: Curve, fresh: Sequence[Curve]) -> dict[str, float]:
    """What the probe says of a network.

    Args:
        aged: curve of a copy of the network.
        fresh: curves of m >= 1 fresh networks on the same task; those that ended early do not count.

    Returns:
        probe_auc and probe_auc_fresh (mean over fresh networks), areas of the losses; probe_auc_fresh_std (n - 1; NaN
        of one); probe_ratio = probe_auc / probe_auc_fresh, above 1 = less trainable than a fresh network; probe_final
        and probe_final_fresh, the last losses; with classes probe_acc_auc, probe_acc_auc_fresh and probe_acc_ratio,
        below 1 = less trainable; probe_not_finite, how many of all curves ended early.
    """
    kept = [curve for curve in fresh if curve.is_finite]
    areas = torch.tensor([area(curve.loss, curve.steps) for curve in kept], dtype=torch.float64)
    numbers = {
        "probe_auc": area(aged.loss, aged.steps),
        "probe_auc_fresh": areas.mean().item(),
        "probe_auc_fresh_std": areas.std().item() if len(areas) > 1 else float("nan"),
        "probe_final": aged.loss[-1].item(),
        "probe_final_fresh": _mean([curve.loss[-1].item() for curve in kept]),
        "probe_not_finite": float(sum(not curve.is_finite for curve in (aged, *fresh))),
    }
    numbers["probe_ratio"] = _ratio(numbers["probe_auc"], numbers["probe_auc_fresh"])
    if aged.accuracy is not None:
        numbers["probe_acc_auc"] = area(aged.accuracy, aged.steps)
        numbers["probe_acc_auc_fresh"] = _mean([area(c.accuracy, c.steps) for c in kept if c.accuracy is not None])
        numbers["probe_acc_ratio"] = _ratio(numbers["probe_acc_auc"], numbers["probe_acc_auc_fresh"])
    return numbers


def _mean(values: Sequence[float]) -> float:
    return torch.tensor(values, dtype=torch.float64).mean().item()


def _ratio(one: float, other: float) -> float:
    return one / other if other else float("nan")
