"""Curves over seeds: mean, standard error, and a bootstrap interval of the mean."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

RESAMPLES = 2000
LEVEL = 0.95
POINTS_AT_ONCE = 2000
"""Points of a curve that are resampled at a time; 32 MB for 2,000 resamples."""


@dataclass(frozen=True, eq=False)
class Band:
    """What seeds say of each point of a curve; all [p], in the unit of the values.

    Attributes:
        n: seeds that have a value there, int64.
        mean: over them; NaN without one.
        error: standard error, std (n - 1) / sqrt(n); NaN with fewer than two.
        low, high: ends of the bootstrap interval of the mean; NaN with fewer than two.
    """

    n: npt.NDArray[np.int64]
    mean: Array
    error: Array
    low: Array
    high: Array


def over_seeds(values: Array, level: float = LEVEL, resamples: int = RESAMPLES, seed: int = 0) -> Band:
    """Mean, standard error and percentile bootstrap interval at each point of a curve.

    The seeds (rows) are drawn with replacement, whole curves at a time, so all points have the same draws; the interval
    reaches from the (1 - level)/2 to the (1 + level)/2 quantile of the means. Equal values and seed give equal bits.
    With fewer than about ten seeds such an interval is too narrow (by sqrt((n - 1)/n) and more): it is no test.

    Args:
        values: float64 [n, p], a row a seed; NaN = no value there.
        level: of the interval.
        resamples: draws of n seeds.
        seed: of the draws.

    Source:
        Efron and Tibshirani, An Introduction to the Bootstrap (1993), 13.3.
    """
    finite = np.isfinite(values)
    n = finite.sum(0)
    zeroed = np.where(finite, values, 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(n > 0, zeroed.sum(0) / n, np.nan)
        squares = np.where(finite, values - mean, 0.0) ** 2
        error = np.where(n > 1, np.sqrt(squares.sum(0) / (n - 1) / n), np.nan)
    low, high = np.full(values.shape[1], np.nan), np.full(values.shape[1], np.nan)
    if len(values) > 1:
        draws = np.random.default_rng(seed).multinomial(len(values), np.full(len(values), 1 / len(values)), resamples)
        weights = draws.astype(np.float64)
        for start in range(0, values.shape[1], POINTS_AT_ONCE):
            some = slice(start, start + POINTS_AT_ONCE)
            low[some], high[some] = _interval(zeroed[:, some], finite[:, some], weights, level)
    low, high = np.where(n > 1, low, np.nan), np.where(n > 1, high, np.nan)
    return Band(n, mean, error, low, high)


def _interval(zeroed: Array, finite: npt.NDArray[np.bool_], weights: Array, level: float) -> tuple[Array, Array]:
    """Quantiles over the resamples of the means [resamples, p]; a resample without a value at a point is left out."""
    counts = weights @ finite
    with np.errstate(invalid="ignore", divide="ignore"):
        means = np.where(counts > 0, weights @ zeroed / counts, np.nan)
    ends = [(1 - level) / 2, (1 + level) / 2]
    if np.isfinite(means).all():
        low, high = np.quantile(means, ends, axis=0)
        return low, high
    low, high = np.full(means.shape[1], np.nan), np.full(means.shape[1], np.nan)
    known = finite.any(0)
    if known.any():
        low[known], high[known] = np.nanquantile(means[:, known], ends, axis=0)
    return low, high


def smoothed(values: Array, window: int) -> Array:
    """Centred moving mean over `window` points along the last axis, over those that are there; NaN stays NaN.

    Towards the ends the window shrinks on both sides alike, so that a straight line stays one. An even window has one
    point more before than after.
    """
    if window <= 1:
        return values
    finite = np.isfinite(values)
    sums = _padded_cumsum(np.where(finite, values, 0.0))
    counts = _padded_cumsum(finite.astype(np.float64))
    n = values.shape[-1]
    place = np.arange(n)
    before, after = window // 2, (window - 1) // 2
    room = np.minimum(place, n - 1 - place)
    start, stop = place - np.minimum(before, room), place + np.minimum(after, room) + 1
    total, number = sums[..., stop] - sums[..., start], counts[..., stop] - counts[..., start]
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(finite, total / number, np.nan)


def _padded_cumsum(values: Array) -> Array:
    zeros = np.zeros((*values.shape[:-1], 1))
    return np.concatenate([zeros, np.cumsum(values, -1)], -1)
