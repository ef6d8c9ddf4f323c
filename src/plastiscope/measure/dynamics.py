"""Training dynamics of each sample, from matrices [epoch, sample] of its loss, correctness, margin and gradient norm.

A row is a scored epoch, NaN = not measured or not applicable: the row is not active for that sample, such as before
its class has entered. Sums are float64. Every measure reads its rows once, in order: the classes take them in pieces,
`add(rows [e, m], where)` for the m samples at `where` (the others have no value in these rows), and the functions take
a whole matrix. "Epoch" below means a kept row, so with one row every five epochs it is five epochs. A value of 0 is a
value; a sample without an active row has NaN.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from plastiscope.error import DataError

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int32]
Flags = npt.NDArray[np.bool_]
Where = slice | npt.NDArray[np.int64]
"""The samples that a piece of rows is about, each at most once."""

EVERYONE = slice(None)


class ActiveSum:
    """Sum over the active rows, and how many they are; of margins, gradient norms, or any value.

    Attributes:
        total: sum over the rows that are not NaN, float64 [n].
        count: number of rows that are not NaN, int32 [n].
    """

    def __init__(self, samples: int, epochs: int) -> None:
        """Nothing is added yet; `epochs` rows are kept in all."""
        self.epochs = epochs
        self.total, self.count = np.zeros(samples), np.zeros(samples, np.int32)

    def add(self, values: npt.NDArray, where: Where = EVERYONE) -> None:
        """Add rows [e, m]."""
        active = ~np.isnan(values)
        self.total[where] += np.where(active, values, 0).sum(0, dtype=np.float64)
        self.count[where] += active.sum(0, dtype=np.int32)

    @property
    def sum_of_all(self) -> Floats:
        """Sum over all kept epochs, NaN if one of them is NaN."""
        return np.where(self.count == self.epochs, self.total, np.nan)

    @property
    def sum_of_active(self) -> Floats:
        """Sum over the active rows; NaN if there is none."""
        return np.where(self.count > 0, self.total, np.nan)

    @property
    def mean_of_active(self) -> Floats:
        """Mean over the active rows; NaN if there is none."""
        return ratio(self.total, self.count)


class LossDynamics(ActiveSum):
    """Cumulative sample loss (CSL) and its variants, final loss, and the statistics of exp(-loss)."""

    def __init__(self, samples: int, epochs: int, first: int | None = None) -> None:
        """Nothing is added yet; `epochs` rows are kept in all, `first` is the H of csl_first_H."""
        super().__init__(samples, epochs)
        self.first = first
        self._weighted, self._head = np.zeros(samples), np.zeros(samples)
        self._last = np.full(samples, np.nan)
        self._mean, self._squares = np.zeros(samples), np.zeros(samples)

    def add(self, values: npt.NDArray, where: Where = EVERYONE, weights: npt.NDArray | None = None) -> None:
        """Add rows [e, m] of losses, with their `trapezoid_weights` [e]."""
        active = ~np.isnan(values)
        before, losses = self.count[where], np.where(active, values, 0)
        if weights is not None:
            self._weighted[where] += np.einsum("e,em->m", weights, losses, dtype=np.float64, casting="safe")
        if self.first is not None:
            early = before + active.cumsum(0, dtype=np.int32) <= self.first
            self._head[where] += np.where(early, losses, 0).sum(0, dtype=np.float64)
        self._last[where] = np.where(active.any(0), _last_active(values, active), self._last[where])
        self._add_probabilities(losses, active, before, where)
        super().add(values, where)

    def _add_probabilities(self, losses: npt.NDArray, active: Flags, before: Counts, where: Where) -> None:
        """Mean and sum of squared deviations of exp(-loss), joined with those so far (Chan et al. 1983)."""
        p = np.exp(-losses.astype(np.float64))
        count = active.sum(0)
        mean = np.where(active, p, 0).sum(0) / np.maximum(count, 1)
        deviation, all_rows = mean - self._mean[where], np.maximum(before + count, 1)
        squares = np.square(np.where(active, p - mean, 0)).sum(0)
        self._squares[where] += squares + np.square(deviation) * before * count / all_rows
        self._mean[where] += deviation * count / all_rows

    @property
    def csl_trapz(self) -> Floats:
        """See the function of this name."""
        return np.where((self.count == self.epochs) & (self.epochs > 1), self._weighted, np.nan)

    @property
    def csl_first(self) -> Floats:
        """See the function of this name."""
        return np.where(self.count >= (self.first or 1), self._head, np.nan)

    @property
    def loss_final(self) -> Floats:
        """See the function of this name."""
        return self._last

    @property
    def confidence(self) -> Floats:
        """See the function of this name."""
        return np.where(self.count > 0, self._mean, np.nan)

    @property
    def variability(self) -> Floats:
        """See the function of this name."""
        return np.sqrt(ratio(self._squares, self.count))


class CorrectDynamics(ActiveSum):
    """What follows from being classified rightly (1) or wrongly (0) in each epoch."""

    def __init__(self, samples: int, epochs: int) -> None:
        """Nothing is added yet; `epochs` rows are kept in all."""
        super().__init__(samples, epochs)
        self._state = np.full(samples, -1, np.int8)
        """Newest active value; -1 = none yet."""
        self._first_right, self._last_wrong = np.zeros(samples, np.int32), np.zeros(samples, np.int32)
        """Rank, from 1, among the active rows; 0 = none yet."""
        self._events = np.zeros(samples, np.int32)

    def add(self, values: npt.NDArray, where: Where = EVERYONE) -> None:
        """Add rows [e, m] of 0, 1 and NaN."""
        active = ~np.isnan(values)
        right, wrong = active & (values > 0), active & (values <= 0)
        rank = self.count[where] + active.cumsum(0, dtype=np.int32)
        known = self._first_right[where]
        self._first_right[where] = np.where(known > 0, known, _first(rank, right))
        self._last_wrong[where] = np.maximum(self._last_wrong[where], np.where(wrong, rank, 0).max(0, initial=0))
        states = _carried(np.where(right, 1, 0).astype(np.int8), active, self._state[where])
        self._events[where] += ((states[:-1] == 1) & wrong).sum(0, dtype=np.int32)
        self._state[where] = states[-1]
        super().add(values, where)

    @property
    def never_learned(self) -> Flags:
        """Whether a sample with active rows is wrong in all of them."""
        return (self._first_right == 0) & (self.count > 0)

    @property
    def first_learn(self) -> Floats:
        """See the function of this name."""
        return self._known(np.where(self.never_learned, self.count, self._first_right - 1))

    @property
    def learn_forever(self) -> Floats:
        """See the function of this name."""
        return self._known(self._last_wrong)

    @property
    def forgetting_events(self) -> Floats:
        """See the function of this name."""
        return self._known(np.where(self.never_learned, self.count, self._events))

    @property
    def correctness(self) -> Floats:
        """See the function of this name."""
        return self.mean_of_active

    @property
    def cum_error(self) -> Floats:
        """See the function of this name."""
        return 1 - self.mean_of_active

    def _known(self, values: npt.NDArray) -> Floats:
        return np.where(self.count > 0, values, np.nan)


def csl_sum(losses: npt.ArrayLike) -> Floats:
    """Cumulative sample loss: sum of losses [E, N] over the kept epochs, [N]; NaN if one of them is NaN.

    Ravikumar et al. 2025, "Towards memorization estimation: fast, formal and free", sums over iterations; its
    published experiments sum losses after each epoch, as here.
    """
    return of_losses(losses).sum_of_all


def csl_mean(losses: npt.ArrayLike) -> Floats:
    """csl_sum / E, [N]; NaN if the loss of one kept epoch is NaN."""
    return of_losses(losses).sum_of_all / len(_rows(losses))


def csl_trapz(losses: npt.ArrayLike, epochs: Sequence[int] | npt.NDArray) -> Floats:
    """Integral of the loss from the first to the last kept epoch by trapezoids, [N], in loss times epochs.

    sum_k (epochs[k+1] - epochs[k]) (losses[k] + losses[k+1]) / 2: what unequal spacing calls for. NaN if one kept
    epoch is NaN, or if there is only one.
    """
    return of_losses(losses, epochs=epochs).csl_trapz


def csl_active_sum(losses: npt.ArrayLike) -> Floats:
    """Sum over the active epochs, [N]: those in which the class of the sample is in training."""
    return of_losses(losses).sum_of_active


def csl_active_mean(losses: npt.ArrayLike) -> Floats:
    """Mean over the active epochs, [N]."""
    return of_losses(losses).mean_of_active


def n_active(values: npt.ArrayLike) -> Counts:
    """Number of active epochs, int32 [N]."""
    return of_values(values).count


def csl_first(losses: npt.ArrayLike, first: int) -> Floats:
    """Sum over the first H = `first` active epochs, the same H for all, [N]; NaN where there are fewer."""
    if first < 1:
        raise DataError(f"the first {first} epochs hold no loss; ask for 1 or more")
    return of_losses(losses, first).csl_first


def csl_task(losses: npt.ArrayLike, tasks: npt.ArrayLike) -> dict[int, Floats]:
    """Sum over the epochs of each task, by task, [N] each; NaN if one of these epochs is NaN.

    Args:
        losses: [E, N].
        tasks: task of each row, [E].
    """
    rows, of_row = _rows(losses), np.asarray(tasks)
    return {int(t): csl_sum(rows[of_row == t]) for t in np.unique(of_row)}


def csl_all(losses: npt.ArrayLike) -> Floats:
    """csl_sum of the cross-entropy over all outputs of the network, over all epochs (metric loss_all), [N].

    In a class-incremental run it measures when a class enters, not how hard a sample is.
    """
    return csl_sum(losses)


def loss_final(losses: npt.ArrayLike) -> Floats:
    """Loss in the last active epoch, [N]."""
    return of_losses(losses).loss_final


def confidence(losses: npt.ArrayLike) -> Floats:
    """Mean over active epochs of the target probability exp(-loss), cross-entropy losses [E, N] -> [N].

    Swayamdipta et al. 2020, "Dataset cartography".
    """
    return of_losses(losses).confidence


def variability(losses: npt.ArrayLike) -> Floats:
    """Standard deviation (divisor: number of active epochs, ddof 0) of the target probability exp(-loss), [N]."""
    return of_losses(losses).variability


def correctness(correct: npt.ArrayLike) -> Floats:
    """Share of the active epochs with the right class, 0/1 [E, N] -> [N]."""
    return of_correct(correct).correctness


def cum_error(correct: npt.ArrayLike) -> Floats:
    """1 - correctness, [N]: the cumulative 0/1 loss, by epoch."""
    return of_correct(correct).cum_error


def first_learn(correct: npt.ArrayLike) -> Floats:
    """Number of active epochs before the first right one, [N]; never right: all of them (flag `never_learned`)."""
    return of_correct(correct).first_learn


def learn_forever(correct: npt.ArrayLike) -> Floats:
    """Number of active epochs before the right ones that last to the end, [N]; wrong at the end: all of them.

    Maini et al. 2022, "Characterizing datapoints via second-split forgetting".
    """
    return of_correct(correct).learn_forever


def never_learned(correct: npt.ArrayLike) -> Flags:
    """Whether a sample is wrong in all its active epochs, bool [N]; False where there is none."""
    return of_correct(correct).never_learned


def forgetting_events(correct: npt.ArrayLike) -> Floats:
    """Number of steps from right to wrong between active epochs, [N]; never right: the number of active epochs.

    Toneva et al. 2019 count at presentation (metric online_correct); after the epoch is a second definition.
    """
    return of_correct(correct).forgetting_events


def aum(margins: npt.ArrayLike) -> Floats:
    """Area under the margin: mean over active epochs of target logit minus largest other logit, [N].

    Pleiss et al. 2020. Low is suspicious: rank by -aum.
    """
    return of_values(margins).mean_of_active


def csg(norms: npt.ArrayLike) -> Floats:
    """Cumulative sample gradient: sum over the kept epochs of the squared gradient norm, [N]; NaN if one is NaN."""
    return of_values(np.square(_rows(norms).astype(np.float64))).sum_of_all


def trapezoid_weights(epochs: Sequence[int] | npt.NDArray) -> Floats:
    """Half the distance to the row before plus half that to the next, [E]; they sum to last - first.

    Raises:
        DataError: the epochs do not ascend.
    """
    gaps = np.diff(np.asarray(epochs, np.float64))
    if (gaps <= 0).any():
        raise DataError(f"the kept epochs {list(epochs)} do not ascend; sort the rows and keep each epoch once")
    return (np.append(0.0, gaps) + np.append(gaps, 0.0)) / 2 if len(gaps) else np.zeros(len(epochs))


def of_losses(
    losses: npt.ArrayLike, first: int | None = None, epochs: Sequence[int] | npt.NDArray | None = None
) -> LossDynamics:
    """All measures of a whole matrix of losses [E, N]; `epochs` [E] for csl_trapz."""
    rows = _rows(losses)
    found = LossDynamics(rows.shape[1], len(rows), first)
    found.add(rows, weights=None if epochs is None else trapezoid_weights(epochs))
    return found


def of_correct(correct: npt.ArrayLike) -> CorrectDynamics:
    """All measures of a whole matrix of 0, 1 and NaN [E, N]."""
    rows = _rows(correct)
    found = CorrectDynamics(rows.shape[1], len(rows))
    found.add(rows)
    return found


def of_values(values: npt.ArrayLike) -> ActiveSum:
    """Sums and counts of a whole matrix [E, N]."""
    rows = _rows(values)
    found = ActiveSum(rows.shape[1], len(rows))
    found.add(rows)
    return found


def ratio(total: npt.NDArray, count: npt.NDArray) -> Floats:
    """Quotient, NaN where the count is 0."""
    return np.divide(total, count, out=np.full(np.shape(total), np.nan), where=count > 0)


def _rows(values: npt.ArrayLike) -> npt.NDArray:
    """The matrix as floats, row by row in memory, so that sums add the rows in their order.

    Raises:
        DataError: it is no matrix, or has no row.
    """
    rows = np.asarray(values, order="C")
    if rows.ndim != 2 or len(rows) == 0:
        raise DataError(f"values of shape {rows.shape} are not [epochs, samples] with one epoch or more")
    return rows if rows.dtype.kind == "f" else rows.astype(np.float64)


def _first(rank: Counts, which: Flags) -> Counts:
    """Rank of the first row with `which`, [m]; 0 if there is none."""
    found = np.take_along_axis(rank, which.argmax(0)[None], 0)[0]
    return np.where(which.any(0), found, 0)


def _last_active(values: npt.NDArray, active: Flags) -> npt.NDArray:
    """Value of the last active row, [m]; anything where there is none."""
    last = len(values) - 1 - active[::-1].argmax(0)
    return np.take_along_axis(values, last[None], 0)[0]


def _carried(states: npt.NDArray[np.int8], active: Flags, before: npt.NDArray[np.int8]) -> npt.NDArray[np.int8]:
    """State before the first row and after each, [e + 1, m]: a row that is not active keeps what was."""
    newest = np.where(active, np.arange(1, len(states) + 1)[:, None], 0)
    newest = np.concatenate([np.zeros((1, newest.shape[1]), newest.dtype), np.maximum.accumulate(newest, 0)])
    return np.take_along_axis(np.concatenate([before[None], states]), newest, 0)
