"""How rank changes over the layers of a network, from the ranks r_0 .. r_(L-1) of any one definition.

Definitions of the public code of DorDorHome/architectural_and_learning_on_loss_landscape, but for undefined cases,
which are NaN here and not 0 or 1. A rank that is NaN makes every number NaN.
"""

from collections.abc import Sequence
from enum import Enum

import torch
from torch import Tensor


class RankDrop(Enum):
    """What the fall of rank from a layer to the next is measured in."""

    ratio = "ratio"
    """(r_l - r_(l+1)) / r_l; a layer of rank 0 has nothing to lose: 0."""
    difference = "difference"
    """r_l - r_(l+1)."""


def _vector(values: Sequence[float] | Tensor) -> Tensor:
    return torch.as_tensor(values, dtype=torch.float64, device="cpu")


def rank_drops(ranks: Sequence[float] | Tensor, kind: RankDrop = RankDrop.ratio) -> Tensor:
    """Fall of rank from each layer to the next, float64 [L - 1]; negative where rank rises."""
    r = _vector(ranks)
    drops = r[:-1] - r[1:]
    return drops if kind is RankDrop.difference else torch.where(r[:-1] == 0, 0.0 * drops, drops / r[:-1])


def gini(values: Sequence[float] | Tensor) -> float:
    """Gini coefficient sum((2i - n - 1) x_i) / (n sum(x)) of n values >= 0, ascending, i = 1..n; 0 if their sum is 0.

    0 when all are equal; at most (n - 1) / n, not 1.
    """
    x = _vector(values).sort().values
    n, total = len(x), x.sum()
    if total == 0:
        return 0.0
    weights = 2.0 * torch.arange(1, n + 1, dtype=torch.float64) - n - 1
    return ((weights * x).sum() / (n * total)).item()


def rank_drop_gini(
    ranks: Sequence[float] | Tensor, kind: RankDrop = RankDrop.ratio, first: float | None = None
) -> float:
    """Inequality of the drops over the layers: Gini coefficient of max(0, drop).

    Args:
        ranks: by layer, from the input; convolutional maps flattened.
        kind: of drop.
        first: put before the ranks, such as the largest possible rank min(batch, flattened dimension).
    """
    r = _vector(ranks)
    return gini(rank_drops(r if first is None else torch.cat([r.new_tensor([first]), r]), kind).clamp(min=0))


def rank_decay_centroid(ranks: Sequence[float] | Tensor) -> float:
    """Layer at the centre of the rank, sum(l r_l) / sum(r_l), l = 0..L-1: weights ranks, not drops. NaN if all 0."""
    r = _vector(ranks)
    return ((torch.arange(len(r)) * r).sum() / r.sum()).item()


def rank_drop_centroid(ranks: Sequence[float] | Tensor, kind: RankDrop = RankDrop.difference) -> float:
    """Layer at the centre of the drops d_l = max(0, r_(l-1) - r_l), sum(l d_l) / sum(d_l), l = 1..L-1.

    NaN when rank falls nowhere.
    """
    drops = rank_drops(ranks, kind).clamp(min=0)
    return ((torch.arange(1, len(drops) + 1) * drops).sum() / drops.sum()).item()


def normalized_aurc(ranks: Sequence[float] | Tensor) -> float:
    """Area under the rank curve, trapezoid(r) / (r_0 (L - 1)); above 1 when ranks rise. NaN if r_0 = 0 or L = 1."""
    r = _vector(ranks)
    constant = r[0] * (len(r) - 1)
    return torch.nan if constant == 0 else (torch.trapezoid(r) / constant).item()


def weight_sv_gini(singular_values: Tensor) -> float:
    """Gini coefficient of a weight's singular values, ascending: (n + 1 - 2 sum(cumsum s) / sum s) / n is the same."""
    return gini(singular_values)
