"""Agreement of two scores of the same samples: Pearson, Spearman, cosine, AUROC.

All take two arrays [n] of the same samples in the same order, use the pairs in which both are finite, compute in
float64, and say how many pairs that were. A value without meaning (no pairs, a constant score) is NaN.

The cosine is not centred: of two scores that are positive everywhere it is high whatever the order of the samples.
`shuffled` gives that floor; judge by Pearson and Spearman.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Scores = npt.NDArray[np.floating] | npt.NDArray[np.integer] | npt.NDArray[np.bool_]
Float64 = npt.NDArray[np.float64]

NAN = float("nan")


class Agreement(NamedTuple):
    """A coefficient, and the number of pairs it rests on."""

    value: float
    n: int


class Separation(NamedTuple):
    """An AUROC, and the numbers of positives and negatives it rests on."""

    value: float
    positives: int
    negatives: int


def pearson(x: Scores, y: Scores) -> Agreement:
    """Return sum (x - mean x)(y - mean y) / sqrt(sum (x - mean x)^2 sum (y - mean y)^2), in [-1, 1]."""
    x, y = finite_pairs(x, y)
    return Agreement(_correlation(x, y), len(x))


def spearman(x: Scores, y: Scores) -> Agreement:
    """Pearson of the ranks; equal values share the mean of their ranks."""
    x, y = finite_pairs(x, y)
    return Agreement(_correlation(ranks(x), ranks(y)), len(x))


def cosine(x: Scores, y: Scores) -> Agreement:
    """Return sum x y / sqrt(sum x^2 sum y^2), in [-1, 1]; not centred."""
    x, y = finite_pairs(x, y)
    return Agreement(_cosine(x, y), len(x))


def auroc(scores: Scores, is_positive: npt.NDArray[np.bool_]) -> Separation:
    """Probability that a positive scores higher than a negative, equal scores counted half (Mann-Whitney U / n+ n-).

    Args:
        scores: [n]; those that are not finite are left out.
        is_positive: bool [n].
    """
    keep = np.isfinite(np.asarray(scores, np.float64))
    values, positive = np.asarray(scores, np.float64)[keep], np.asarray(is_positive, np.bool_)[keep]
    above, below = int(positive.sum()), int((~positive).sum())
    if above == 0 or below == 0:
        return Separation(NAN, above, below)
    u = ranks(values)[positive].sum() - above * (above + 1) / 2
    return Separation(float(u / (above * below)), above, below)


def shuffled(measure: Callable[[Scores, Scores], Agreement], x: Scores, y: Scores, seed: int = 0) -> Agreement:
    """The same measure after the finite pairs were torn apart by RandomState(seed): what chance alone gives."""
    x, y = finite_pairs(x, y)
    return measure(np.random.RandomState(seed).permutation(x), y)


def finite_pairs(x: Scores, y: Scores) -> tuple[Float64, Float64]:
    """Both scores in float64 where both are finite.

    Raises:
        ValueError: they are not two arrays [n] of one length.
    """
    if x.ndim != 1 or x.shape != y.shape:
        raise ValueError(f"scores of shapes {x.shape} and {y.shape} are not pairs")
    first, second = np.asarray(x, np.float64), np.asarray(y, np.float64)
    keep = np.isfinite(first) & np.isfinite(second)
    return first[keep], second[keep]


def ranks(values: Scores) -> Float64:
    """Ranks from 1 of values [n] without NaN; equal values get the mean of their ranks."""
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[group]


def _correlation(x: Float64, y: Float64) -> float:
    """Pearson; NaN if one is constant, which rounding of the mean must not hide."""
    if len(x) == 0 or x.min() == x.max() or y.min() == y.max():
        return NAN
    return _cosine(x - x.mean(), y - y.mean())


def _cosine(x: Float64, y: Float64) -> float:
    """NaN if one is zero everywhere; scaled first, so that no square overflows or vanishes."""
    largest_x, largest_y = np.abs(x).max(initial=0), np.abs(y).max(initial=0)
    if largest_x == 0 or largest_y == 0:
        return NAN
    x, y = x / largest_x, y / largest_y
    return float(np.clip((x * y).sum() / np.sqrt((x * x).sum() * (y * y).sum()), -1, 1))
