"""A metric over all tasks of a run, [epoch, sample]: assembled when read, never stored."""

from collections.abc import Iterator
from functools import cached_property

import numpy as np
import numpy.typing as npt

from plastiscope.error import RunError
from plastiscope.run.sample_store import Ids, SampleBlock, SampleStore, Values

SAMPLES_AT_ONCE = 65_536
"""Columns that a pass over the samples holds."""


class SampleView:
    """Values of one metric by epochs completed and sample id; NaN where a task does not have the sample.

    Attributes:
        metric: its name.
        ids: int64 [n], ascending: all samples of any block, or those asked for.
        epochs_completed: int32 [e], ascending: all whole rows.
        tasks: int32 [e], the task of each row.
    """

    def __init__(self, store: SampleStore, metric: str, ids: Ids | None = None) -> None:
        """See `metric` of `store`.

        Raises:
            RunError: no block has the metric; says which there are.
        """
        self.metric = metric
        self._blocks = {k: store.block(k) for k in store.tasks() if metric in store.block(k).metrics()}
        if not self._blocks:
            there = ", ".join(store.metrics()) or "none"
            raise RunError(f"{store.folder} has no metric {metric}; there are: {there}")
        self.ids = np.unique(np.concatenate([b.ids for b in self._blocks.values()])) if ids is None else ids
        at = sorted((e, k) for k, block in self._blocks.items() for e in _done_epochs(block, metric))
        self.epochs_completed = np.array([e for e, _ in at], np.int32)
        self.tasks = np.array([k for _, k in at], np.int32)

    @property
    def shape(self) -> tuple[int, int]:
        """(epochs, samples)."""
        return len(self.epochs_completed), len(self.ids)

    @cached_property
    def values(self) -> Values:
        """All of it, float32 [e, n]; large runs are read with `rows` and `slices` instead."""
        rows = [row for _, _, row in self.rows(slice(None))]
        return np.stack(rows) if rows else np.empty(self.shape, np.float32)

    def rows(self, samples: slice) -> Iterator[tuple[int, int, Values]]:
        """(epochs completed, task, values float32 of `ids[samples]`), row by row in order."""
        ids = self.ids[samples]
        places: dict[int, tuple[npt.NDArray[np.bool_], npt.NDArray[np.int64]]] = {}
        for epoch, task in zip(self.epochs_completed.tolist(), self.tasks.tolist(), strict=True):
            if task not in places:
                places = {task: _places(self._blocks[task].ids, ids)}
                matrix = self._blocks[task].matrix(self.metric)
                axis = self._blocks[task].epochs(self.metric).tolist()
            known, columns = places[task]
            row = np.full(len(ids), np.nan, np.float32)
            row[known] = matrix[axis.index(epoch), columns]
            yield epoch, task, row

    def slices(self, size: int = SAMPLES_AT_ONCE) -> Iterator[slice]:
        """The samples in order, `size` at a time, for passes that hold no more than so many columns."""
        for start in range(0, len(self.ids), size):
            yield slice(start, min(start + size, len(self.ids)))


def _done_epochs(block: SampleBlock, metric: str) -> list[int]:
    return block.epochs(metric)[block.done(metric)].tolist()


def _places(own: Ids, wanted: Ids) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.int64]]:
    """Which of `wanted` a block has, bool [n], and their columns there."""
    if len(own) == 0 or len(wanted) == 0:
        return np.zeros(len(wanted), np.bool_), np.empty(0, np.int64)
    order = np.argsort(own, kind="stable")
    place = np.minimum(np.searchsorted(own, wanted, sorter=order), len(own) - 1)
    columns = order[place]
    known = own[columns] == wanted
    return known, columns[known]
