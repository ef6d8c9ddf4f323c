"""A metric over all tasks of a run, [epoch, sample]: assembled when read, never stored."""

import os
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from plastiscope.error import RunError
from plastiscope.run.sample_store import Ids, Place, SampleBlock, SampleStore, Values

SAMPLES_AT_ONCE = 131_072
"""Columns that a pass over the samples holds."""
VALUES_AT_ONCE = 1 << 19
"""Numbers in a piece, unless one row of it has more."""


class Piece(NamedTuple):
    """Rows of one task that follow each other, for those of some samples that the task has.

    Attributes:
        task: whose block they are from.
        epochs: epochs completed of the rows, int32 [e].
        where: places of the m samples among those asked for, ascending.
        values: float32 [e, m].
    """

    task: int
    epochs: npt.NDArray[np.int32]
    where: Place
    values: Values


class SampleView:
    """Values of one metric by epochs completed and sample id; NaN where a task does not have the sample.

    Attributes:
        metric: its name.
        ids: int64 [n], ascending: all samples of any block, or those asked for.
        epochs_completed: int32 [e], ascending: all whole rows.
        tasks: int32 [e], the task of each row.
        missing: (task, epochs completed) of the rows that were to be written and are not: the run goes on, or was
            stopped; of a metric whose marks are not there, while its matrix or its row axis is, all rows.
    """

    def __init__(
        self, store: SampleStore, metric: str, ids: Ids | None = None, tasks: Sequence[int] | None = None
    ) -> None:
        """See `metric` of `store`, for `ids` (None = all) and `tasks` (None = all).

        Raises:
            RunError: no block has the metric (says which there are), or `ids` do not ascend.
        """
        self.metric, self._store = metric, store
        blocks = {k: store.block(k) for k in store.tasks() if tasks is None or k in tasks}
        self._done = {k: _done(b, metric) for k, b in blocks.items() if is_begun(b, metric)}
        if not self._done:
            there = ", ".join(store.metrics()) or "none"
            raise RunError(f"{store.folder} has no metric {metric}; there are: {there}")
        if ids is not None and (ids[1:] <= ids[:-1]).any():
            raise RunError(f"the ids asked of {store.folder} do not ascend; sort them and ask for each once")
        self.ids = union(store.block(k).ids for k in self._done) if ids is None else ids
        self._axes = axes = {k: blocks[k].epochs(metric) for k in self._done}
        at = sorted((e, k) for k, done in self._done.items() for e in axes[k][done].tolist())
        self.epochs_completed = np.array([e for e, _ in at], np.int32)
        self.tasks = np.array([k for _, k in at], np.int32)
        self.missing = [(k, e) for k, done in self._done.items() for e in axes[k][~done].tolist()]

    @property
    def shape(self) -> tuple[int, int]:
        """(epochs, samples)."""
        return len(self.epochs_completed), len(self.ids)

    @cached_property
    def values(self) -> Values:
        """All of it, float32 [e, n]; large runs are read with `pieces` and `slices` instead.

        Raises:
            RunError: it is larger than the memory of this machine.
        """
        size, memory = 4 * self.shape[0] * self.shape[1], os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        if size > memory:
            raise RunError(
                f"{self.metric} of {self.shape[0]} epochs and {self.shape[1]} samples takes {size / 2**30:.0f} GiB, "
                "more than the memory here; read it in parts with .slices() and .pieces()"
            )
        values = np.full(self.shape, np.nan, np.float32)
        row_of = {at: i for i, at in enumerate(zip(self.tasks.tolist(), self.epochs_completed.tolist(), strict=True))}
        for task, epochs, where, piece in self.pieces(slice(None)):
            for epoch, row in zip(epochs.tolist(), piece, strict=True):
                values[row_of[task, epoch], where] = row
        return values

    def rows(self, samples: slice) -> Iterator[tuple[int, int, Values]]:
        """(epochs completed, task, values float32 of `ids[samples]`), row by row, task by task."""
        count = len(self.ids[samples])
        for task, epochs, where, values in self.pieces(samples):
            for epoch, measured in zip(epochs.tolist(), values, strict=True):
                row = np.full(count, np.nan, np.float32)
                row[where] = measured
                yield epoch, task, row

    def pieces(
        self, samples: slice, epochs: npt.NDArray[np.int32] | None = None, task: int | None = None
    ) -> Iterator[Piece]:
        """What there is of `ids[samples]`, task by task, the rows of each in order.

        Args:
            samples: which.
            epochs: rows to keep, by epochs completed; None = all whole rows. Never one that is not whole.
            task: only its rows; None = all.
        """
        ids = self.ids[samples]
        for k, done in self._done.items():
            if task in (None, k) and self._store.block(k).has(self.metric):
                axis = self._axes[k]
                rows = np.flatnonzero(done if epochs is None else done & np.isin(axis, epochs))
                yield from self._cut(k, axis, rows, ids)

    def _cut(self, task: int, axis: npt.NDArray[np.int32], rows: npt.NDArray[np.int64], ids: Ids) -> Iterator[Piece]:
        """Some rows of a block for those of `ids` that it has, so many rows at once that a piece stays small."""
        block = self._store.block(task)
        where, columns = block.find(ids)
        count = columns.stop - columns.start if isinstance(columns, slice) else len(columns)
        size = max(1, VALUES_AT_ONCE // max(count, 1))
        matrix = block.matrix(self.metric)
        for start in range(0, len(rows), size):
            some = rows[start : start + size]
            values = matrix[:, columns][some] if isinstance(columns, slice) else matrix[np.ix_(some, columns)]
            yield Piece(task, axis[some], where, np.asarray(values, order="C"))

    def slices(self, size: int = SAMPLES_AT_ONCE) -> Iterator[slice]:
        """The samples in order, `size` at a time, for passes that hold no more than so many columns."""
        for start in range(0, len(self.ids), size):
            yield slice(start, min(start + size, len(self.ids)))


def is_begun(block: SampleBlock, metric: str) -> bool:
    """Whether a block has marks, matrix or row axis of a metric."""
    files = (f"{metric}.npy", f"{metric}.epochs.npy")
    return block.has(metric) or any((block.folder / file).exists() for file in files)


def _done(block: SampleBlock, metric: str) -> npt.NDArray[np.bool_]:
    """Which rows are whole; without marks none is."""
    return block.done(metric) if block.has(metric) else np.zeros(len(block.epochs(metric)), np.bool_)


def union(some: Iterable[Ids], at_once: int = 1 << 21) -> Ids:
    """All ids, ascending, each once; holds no more than `at_once` beside the result and the largest of `some`."""
    waiting: list[Ids] = []
    for ids in some:
        waiting.append(ids)
        if len(waiting) > 2 and sum(map(len, waiting[1:])) > at_once:
            waiting = [_ascending(np.concatenate(waiting))]
    if len(waiting) == 1 and (waiting[0][1:] > waiting[0][:-1]).all():
        return waiting[0]
    return _ascending(np.concatenate(waiting)) if waiting else np.empty(0, np.int64)


def _ascending(ids: Ids) -> Ids:
    """Each once, ascending; sorts in place."""
    ids.sort()
    is_first = np.ones(len(ids), np.bool_)
    is_first[1:] = ids[1:] != ids[:-1]
    return ids[is_first]
