"""When each sample was presented, and what its place in the epoch does, from the orders of analysis=tracking."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from plastiscope.run.presentation_log import PresentedTask, presented_tasks
from plastiscope.run.sample_store import Ids, SampleStore
from plastiscope.table.definitions import definition
from plastiscope.table.source import ID, Source, source_of

COLUMNS = ("n_presentations", "first_epoch", "last_epoch", "position_mean")
PLACES = 10
"""Parts of an epoch that are told apart."""


def tracking_sources(folder: Path, samples: Ids | None = None) -> list[Source]:
    """How often, when first and last, and where in the epochs each sample was presented; none without a record.

    Args:
        folder: of the run.
        samples: ids of samples that are told of besides: those that were never presented, such as for validation,
            0 times, after epochs -1, at no place.
    """
    tasks = _tasks(folder)
    if not tasks:
        return []
    ids = np.unique(np.concatenate([task.ids for task in tasks] + ([] if samples is None else [samples])))
    n, total = np.zeros(len(ids), np.int32), np.zeros(len(ids))
    first, last = np.full(len(ids), -1, np.int32), np.full(len(ids), -1, np.int32)
    for task in tasks:
        where = np.searchsorted(ids, task.ids)
        for epoch in range(task.epochs):
            completed = _completed(task, epoch)
            total[where] += places(task.order(epoch))
            n[where] += 1
            first[where] = np.where(first[where] < 0, completed, first[where])
            last[where] = completed
    place = np.divide(total, n, out=np.full(len(ids), np.nan), where=n > 0)
    rows = dict(zip(COLUMNS, (n, first, last, place.astype(np.float32)), strict=True))
    columns = {name: definition(name) for name in COLUMNS}
    return [source_of(f"{folder.name}/tracking", {ID: ids, **rows}, columns)]


def places(order: npt.NDArray[np.uint32]) -> npt.NDArray[np.float64]:
    """Place of each sample in an epoch, 0 = first, 1 = last, [n], from the samples in order of presentation [n]."""
    found = np.empty(len(order))
    found[order] = np.arange(len(order)) / max(len(order) - 1, 1)
    return found


class OrderEffect(NamedTuple):
    """Change of the loss over an epoch by place in it; the places are PLACES equal parts of [0, 1].

    Attributes:
        n: (sample, epoch) pairs in each part, int64 [PLACES].
        mean: mean over them of the change, less the mean change of all samples of the task in that epoch.
        error: its standard error, std (n - 1) / sqrt(n).
    """

    n: npt.NDArray[np.int64]
    mean: npt.NDArray[np.float64]
    error: npt.NDArray[np.float64]


def order_effect(folder: Path, store: SampleStore) -> OrderEffect | None:
    """How the loss of a sample changed from the end of the epoch before to the end of the epoch, by its place.

    Only epochs whose loss was measured after the epoch and after the one before it, in the same task; None if there
    is none, or no record of the order.
    """
    n, total, squares = np.zeros(PLACES, np.int64), np.zeros(PLACES), np.zeros(PLACES)
    for task in _tasks(folder):
        for place, change in _changes(store, task):
            part = np.minimum((place * PLACES).astype(np.int64), PLACES - 1)
            n += np.bincount(part, minlength=PLACES)
            total += np.bincount(part, change, PLACES)
            squares += np.bincount(part, change**2, PLACES)
    if not n.any():
        return None
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = total / n
        variance = np.where(n > 1, np.maximum(squares - n * mean**2, 0) / (n - 1), np.nan)
        return OrderEffect(n, mean, np.sqrt(variance / n))


def _changes(
    store: SampleStore, task: PresentedTask
) -> Iterator[tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]]:
    """Place and change of the loss less its mean, of the samples that have one, epoch by epoch."""
    if task.task not in store.tasks() or "loss" not in store.block(task.task).metrics():
        return
    block = store.block(task.task)
    rows, by_id = block.rows("loss"), np.argsort(block.ids, kind="stable")
    columns = by_id[np.searchsorted(block.ids, task.ids, sorter=by_id)]
    for epoch in range(1, task.epochs):
        completed = _completed(task, epoch)
        if completed in rows and completed - 1 in rows:
            change = rows[completed][columns].astype(np.float64) - rows[completed - 1][columns]
            known = np.isfinite(change)
            yield places(task.order(epoch))[known], change[known] - change[known].mean()


def _completed(task: PresentedTask, epoch: int) -> int:
    """Epochs completed by the run after an epoch of the task."""
    return int(task.about["first_epoch"]) + epoch + 1


def _tasks(folder: Path) -> list[PresentedTask]:
    return presented_tasks(folder) if any(folder.glob("task_*/tracking/summary.json")) else []
