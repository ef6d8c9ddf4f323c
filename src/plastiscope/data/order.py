"""In which order, and with which weight in the loss, training samples are presented.

A random order, new in every epoch, is the default and the recommendation. The fixed orders by a score, and weights by a
score, are here to test published claims about them (experiments/presentation_order), not to train with.

Published: memorization-ordered incremental CIFAR training; there a sample without a score counts as 0.5 in the order
(here it comes last), and a score must exceed the threshold of the weights (here it may equal it).
"""

import hashlib
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

from plastiscope.error import ConfigError, DataError, require
from plastiscope.formats.memorization import Memorization


class Order(Enum):
    """The order of presentation within an epoch; all but random are the same in every epoch.

    Let a_0 .. a_{n-1} be the samples by score, lowest first, ties by id. Samples without a score follow all others, by
    id.
    """

    random = "random"
    """A new permutation in every epoch, drawn from (seed, task, epoch)."""
    low_to_high = "low_to_high"
    """a_0, a_1, ... a_{n-1}."""
    high_to_low = "high_to_low"
    """Highest score first; ties by id, so not quite the reverse of low_to_high."""
    alternating_hardest_easiest = "alternating_hardest_easiest"
    """a_{n-1}, a_0, a_{n-2}, a_1, ..."""
    middle_out = "middle_out"
    """From the median outwards: a_m, a_{m+1}, a_{m-1}, a_{m+2}, ... with m = (n - 1) // 2."""
    middle_out_published = "middle_out_published"
    """As the published code of that name does: the sample whose score is nearest to 0.5 (ties: the lower one), then of
    the others the lowest, the highest, the second lowest, ..., which works inwards."""


class WeightedBy(Enum):
    """What the weight w_i of a sample's loss is; the gradient is that of sum_i w_i loss_i / batch size.

    A sample without a score weighs 1. Losses that are logged and stored are never weighted.
    """

    nothing = "nothing"
    """w = 1."""
    threshold = "threshold"
    """w = high_memo_weight where score >= memo_threshold, else 1."""
    score = "score"
    """w = 1 + weight_dramaticity * score."""


@dataclass(kw_only=True)
class LossWeighting:
    """Weights of the samples in the loss, `data.loss_weighting.*`; the names are the published ones."""

    by: WeightedBy = WeightedBy.nothing
    """nothing, threshold or score."""
    memo_threshold: float = 0.25
    """by=threshold: the least score that is high."""
    high_memo_weight: float = 3.0
    """by=threshold: weight of samples with a high score."""
    weight_dramaticity: float = 1.0
    """by=score: what a score of 1 adds to the weight."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        finite = 0 <= self.high_memo_weight < float("inf")
        require(finite, "high_memo_weight", self.high_memo_weight, "must be 0 or more, and finite")
        finite = abs(self.weight_dramaticity) < float("inf")
        require(finite, "weight_dramaticity", self.weight_dramaticity, "must be finite")

    def weights(self, scores: Tensor) -> Tensor:
        """Weights float32 [n] of samples with `scores` float64 [n] (NaN = unknown).

        Raises:
            ConfigError: a weight would be negative.
        """
        if self.by is WeightedBy.threshold:
            weights = torch.where(scores >= self.memo_threshold, self.high_memo_weight, 1.0)
        else:
            weights = 1.0 + self.weight_dramaticity * scores.nan_to_num(nan=0.0)
        if (weights < 0).any():
            raise ConfigError(
                f"data.loss_weighting.weight_dramaticity={self.weight_dramaticity} gives a sample with score "
                f"{float(scores[weights.argmin()]):g} a negative weight; lower it"
            )
        return weights.to(torch.float32)


@dataclass(frozen=True, eq=False)
class Presentation:
    """How the samples of a source are presented; belongs to them as augmentation does.

    Attributes:
        order: within an epoch.
        scores: float64 [rows of the source], NaN = unknown.
        weights: float32 [rows of the source] of the losses, or None: all alike.
    """

    order: Order
    scores: Tensor
    weights: Tensor | None

    @property
    def name(self) -> str:
        """Of the order, for records."""
        return self.order.name

    def positions(self, rows: Tensor, ids: Tensor) -> Tensor | None:
        """The fixed order of some samples, as positions among them, int64 [n]; None where it is random.

        Args:
            rows: int64 [n] in the source.
            ids: int64 [n].
        """
        return None if self.order is Order.random else score_order(self.order, self.scores[rows], ids)

    def weights_of(self, rows: Tensor) -> Tensor | None:
        """Weights of the samples at `rows`, or None."""
        return None if self.weights is None else self.weights[rows]

    def description(self) -> dict[str, object]:
        """What tells these scores from others, for run.json."""
        known = int((~self.scores.isnan()).sum())
        digest = hashlib.sha256(self.scores.cpu().numpy().tobytes()).hexdigest()
        return {"scores_known": known, "scores_unknown": len(self.scores) - known, "scores_hash": digest}


def score_order(order: Order, scores: Tensor, ids: Tensor) -> Tensor:
    """Positions int64 [n] of samples in the order of their scores (see Order).

    Args:
        order: any but random.
        scores: float64 [n], NaN = unknown.
        ids: int64 [n], unique.
    """
    by_id = ids.argsort()
    known = ~scores[by_id].isnan()
    unknown, by_id = by_id[~known], by_id[known]
    low = by_id[scores[by_id].argsort(stable=True)]
    if order is Order.low_to_high:
        arranged = low
    elif order is Order.high_to_low:
        arranged = by_id[scores[by_id].argsort(stable=True, descending=True)]
    elif order is Order.alternating_hardest_easiest:
        arranged = _from_both_ends(low.flip(0))
    elif order is Order.middle_out:
        middle = max(len(low) - 1, 0) // 2
        arranged = torch.cat([low[middle : middle + 1], _interleaved(low[middle + 1 :], low[:middle].flip(0))])
    else:
        nearest = (scores[low] - 0.5).abs().argsort(stable=True)[:1]
        rest = torch.ones(len(low), dtype=torch.bool, device=low.device).index_fill_(0, nearest, False)
        arranged = torch.cat([low[nearest], _from_both_ends(low[rest])])
    return torch.cat([arranged, unknown])


def _from_both_ends(positions: Tensor) -> Tensor:
    """The first, the last, the second, the last but one, ..."""
    n = len(positions)
    return _interleaved(positions[: (n + 1) // 2], positions.flip(0)[: n // 2])


def _interleaved(odd: Tensor, even: Tensor) -> Tensor:
    """odd_0, even_0, odd_1, even_1, ...; `odd` may be one longer."""
    merged = odd.new_empty(len(odd) + len(even))
    merged[0::2], merged[1::2] = odd, even
    return merged


def make_presentation(
    order: Order, weighting: LossWeighting, memorization: Memorization, ids: Tensor, labels: Tensor | None
) -> Presentation:
    """The presentation that the settings ask for.

    Args:
        order: within an epoch.
        weighting: of the losses.
        memorization: scores by id.
        ids: int64 [n], of all rows of the source.
        labels: int64 [n], their classes, for the check against those of the scores; None = no check.

    Raises:
        ConfigError: a weight would be negative.
        DataError: no sample has a score, or labels differ.
    """
    joined = memorization.join(ids.cpu().numpy(), None if labels is None else labels.cpu().numpy())
    scores = torch.from_numpy(joined.scores).to(ids.device)
    if scores.isnan().all():
        raise DataError(f"data.scores_file={memorization.source} has no score of any training sample of these data.")
    weights = None if weighting.by is WeightedBy.nothing else weighting.weights(scores)
    return Presentation(order, scores, weights)
