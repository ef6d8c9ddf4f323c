"""Learning time: when the running mean of a sample's gradient norm has come down to the mean of all.

g[e, i] is the gradient norm of sample i at epoch e, or its square. R[e, i] is the mean of g[k, i] over the active
(not NaN) epochs k <= e, so that e counts the age of the sample since it entered; tau is the mean of R over all active
epochs and samples. A sample counts as learned at an epoch when R <= tau (1 + tolerance): a tie is learned, and float
rounding cannot make a fraction out of gradients that are all equal. R at initialisation may be small, so samples may
begin learned: `lt_first` and `lt_frac` differ.

With `window` only the first so many active epochs count, the same number for all; samples with fewer have NaN and are
not part of tau. Losses in the place of missing gradients would mix units and move tau for everyone: nothing here does.
"""

import math

import numpy as np
import numpy.typing as npt

from plastiscope.error import DataError
from plastiscope.measure.dynamics import EVERYONE, Counts, Flags, Floats, Where, ratio

TOLERANCE = 1e-6
"""Relative; some float32 roundings."""


class RunningMean:
    """R of some samples, whose rows come in pieces, and what tau needs of it."""

    def __init__(self, samples: int, squared: bool = False, window: int | None = None) -> None:
        """Nothing is added yet; `squared` takes g = norm^2, `window` the first so many active rows only."""
        if window is not None and window < 1:
            raise DataError(f"a window of {window} epochs holds no gradient; give 1 or more, or none")
        self.squared, self.window = squared, window
        self._sum, self._count = np.zeros(samples), np.zeros(samples, np.int32)
        self._sum_of_means = np.zeros(samples)

    def add(self, norms: npt.NDArray, where: Where = EVERYONE) -> tuple[Floats, Flags, Counts]:
        """Take rows [e, m]; R, which rows count, and the age of each from 1, all [e, m]."""
        counts = ~np.isnan(norms)
        g = np.where(counts, norms, 0).astype(np.float64)
        age = self._count[where] + counts.cumsum(0, dtype=np.int32)
        if self.window is not None:
            counts &= age <= self.window
            g[~counts] = 0
        if self.squared:
            np.square(g, out=g)
        means = np.cumsum(g, 0, out=g)
        means += self._sum[where]
        self._sum[where], self._count[where] = means[-1], age[-1]
        means /= np.maximum(age, 1)
        self._sum_of_means[where] += np.where(counts, means, 0).sum(0)
        return means, counts, age

    @property
    def n_counted(self) -> Counts:
        """Number of rows that count, int32 [n]; with a window, 0 for samples that have fewer."""
        return self._count if self.window is None else np.where(self._count >= self.window, self.window, 0)

    def total(self) -> tuple[float, int]:
        """Sum of R over all rows that count, and their number: tau is their ratio, over all pieces of the samples."""
        n_counted = self.n_counted
        return math.fsum(self._sum_of_means[n_counted > 0]), int(n_counted.sum(dtype=np.int64))


class LearningTime(RunningMean):
    """Learning time of some samples for a given tau, the rows in pieces."""

    def __init__(
        self,
        samples: int,
        tau: float,
        squared: bool = False,
        window: int | None = None,
        tolerance: float = TOLERANCE,
    ) -> None:
        """Nothing is added yet."""
        super().__init__(samples, squared, window)
        self.tau, self._limit = tau, tau + tolerance * abs(tau)
        self._learned, self._first = np.zeros(samples, np.int32), np.zeros(samples, np.int32)

    def add(self, norms: npt.NDArray, where: Where = EVERYONE) -> tuple[Floats, Flags, Counts]:
        """Take rows [e, m]."""
        means, counts, age = super().add(norms, where)
        learned = counts & (means <= self._limit)
        self._learned[where] += learned.sum(0, dtype=np.int32)
        found = np.where(learned.any(0), np.take_along_axis(age, learned.argmax(0)[None], 0)[0], 0)
        known = self._first[where]
        self._first[where] = np.where(known > 0, known, found)
        return means, counts, age

    @property
    def fraction(self) -> Floats:
        """lt_frac, [n]."""
        return ratio(self.n_counted - self._learned, self.n_counted)

    @property
    def first(self) -> Floats:
        """lt_first, [n]."""
        return np.where((self._first > 0) & (self.n_counted > 0), self._first, np.nan)

    @property
    def censored(self) -> Flags:
        """lt_censored, bool [n]."""
        return (self._first == 0) & (self.n_counted > 0)


def mean_threshold(norms: npt.ArrayLike, squared: bool = False, window: int | None = None) -> float:
    """tau: mean of R over all active epochs and samples, from norms [E, N]; NaN when there is none."""
    rows = _norms(norms)
    means = RunningMean(rows.shape[1], squared, window)
    means.add(rows)
    return threshold([means.total()])


def threshold(totals: list[tuple[float, int]]) -> float:
    """The mean of R from the `RunningMean.total` of all pieces of the samples; NaN when there is no row."""
    count = sum(n for _, n in totals)
    return math.fsum(total for total, _ in totals) / count if count else math.nan


def running_mean(norms: npt.ArrayLike, squared: bool = False) -> Floats:
    """R, float64 [E, N]; NaN where the row is not active."""
    rows = _norms(norms)
    means, counts, _ = RunningMean(rows.shape[1], squared).add(rows)
    return np.where(counts, means, np.nan)


def learning_time(
    norms: npt.ArrayLike,
    tau: float | None = None,
    squared: bool = False,
    window: int | None = None,
    tolerance: float = TOLERANCE,
) -> LearningTime:
    """All forms of learning time of a whole matrix of norms [E, N]; tau None = the mean of R."""
    rows = _norms(norms)
    tau = mean_threshold(rows, squared, window) if tau is None else tau
    found = LearningTime(rows.shape[1], tau, squared, window, tolerance)
    found.add(rows)
    return found


def lt_frac(
    norms: npt.ArrayLike,
    tau: float | None = None,
    squared: bool = False,
    window: int | None = None,
    tolerance: float = TOLERANCE,
) -> Floats:
    """1 - mean over the active epochs of (R <= tau), [N]: the fraction of the kept epochs in which it is not learned.

    Args:
        norms: gradient norms [E, N], NaN = not active.
        tau: of R; None = its mean. In the unit of g, so of the squared norm if `squared`.
        squared: take g = norm^2.
        window: the first so many active epochs only.
        tolerance: relative, of the comparison with tau.

    Raises:
        DataError: a norm is negative, or the shape is not [E, N].
    """
    return learning_time(norms, tau, squared, window, tolerance).fraction


def lt_first(
    norms: npt.ArrayLike,
    tau: float | None = None,
    squared: bool = True,
    window: int | None = None,
    tolerance: float = TOLERANCE,
) -> Floats:
    """Smallest number T of active epochs, from 1, with R <= tau, [N]; never: NaN (see `lt_censored`).

    Ravikumar et al. 2025, eq. 6-7, which take the squared norm. Arguments as for `lt_frac`.
    """
    return learning_time(norms, tau, squared, window, tolerance).first


def lt_censored(
    norms: npt.ArrayLike,
    tau: float | None = None,
    squared: bool = True,
    window: int | None = None,
    tolerance: float = TOLERANCE,
) -> Flags:
    """Whether R stays above tau in all active epochs, bool [N]; the horizon is their number. Arguments as `lt_frac`."""
    return learning_time(norms, tau, squared, window, tolerance).censored


def lt_task(norms: npt.ArrayLike, tasks: npt.ArrayLike, squared: bool = False) -> dict[int, Floats]:
    """lt_frac over the epochs of each task alone, R and tau starting anew, by task, [N] each; `tasks` [E]."""
    rows, of_row = _norms(norms), np.asarray(tasks)
    return {int(t): lt_frac(rows[of_row == t], squared=squared) for t in np.unique(of_row)}


def _norms(norms: npt.ArrayLike) -> npt.NDArray:
    """The matrix as floats.

    Raises:
        DataError: it is no matrix, has no row, or holds a negative number.
    """
    rows = np.asarray(norms, order="C")
    if rows.ndim != 2 or len(rows) == 0:
        raise DataError(f"norms of shape {rows.shape} are not [epochs, samples] with one epoch or more")
    if (rows < 0).any():
        raise DataError("a gradient norm is negative; are these losses or margins?")
    return rows if rows.dtype.kind == "f" else rows.astype(np.float64)
