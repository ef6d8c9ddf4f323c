"""What the per-sample blocks of a run say of each sample: who it is, and its values over the epochs, summed up."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from plastiscope.error import DataError
from plastiscope.run.sample_store import Ids, SampleStore
from plastiscope.run.sample_view import SAMPLES_AT_ONCE, SampleView
from plastiscope.table.source import ID, Column, Rows, Source

AGGREGATED = ("loss", "loss_all", "correct", "margin", "online_loss", "online_correct", "online_margin")
"""Metrics of which CSL, learning time and the like are made; of the others the mean and the last value are kept."""


class Identities(NamedTuple):
    """The samples of some stores.

    Attributes:
        ids: int64 [n], ascending.
        labels, labels_trained: int64 [n]; -1 where there are no classes.
        split: uint8 [n].
        entry_task: int16 [n], the first task that any block names.
    """

    ids: Ids
    labels: Ids
    labels_trained: Ids
    split: npt.NDArray[np.uint8]
    entry_task: npt.NDArray[np.int16]


def identities(stores: Sequence[SampleStore]) -> Identities:
    """Who the samples of all blocks are.

    Raises:
        DataError: two blocks give one sample different labels, or another split; names the first one.
    """
    found: Identities | None = None
    for store in stores:
        for task in store.tasks():
            about = store.block(task).about
            new = Identities(about.ids, about.labels, about.labels_trained, about.split, about.entry_task)
            found = _joined(found, new, f"{store.folder}/task_{task:04d}")
    empty = np.empty(0, np.int64)
    return found or Identities(empty, empty, empty, empty.astype(np.uint8), empty.astype(np.int16))


def _joined(known: Identities | None, new: Identities, where: str) -> Identities:
    new = _by_id(new)
    if known is None:
        return new
    _, ours, theirs = np.intersect1d(known.ids, new.ids, assume_unique=True, return_indices=True)
    for name in ("labels", "labels_trained", "split"):
        _check_equal(name, getattr(known, name)[ours], getattr(new, name)[theirs], known.ids[ours], where)
    entry_task = known.entry_task.copy()
    entry_task[ours] = np.minimum(entry_task[ours], new.entry_task[theirs])
    only = ~np.isin(new.ids, known.ids, assume_unique=True)
    known = known._replace(entry_task=entry_task)
    both = {name: np.concatenate([getattr(known, name), getattr(new, name)[only]]) for name in Identities._fields}
    return _by_id(Identities(**both))


def _by_id(samples: Identities) -> Identities:
    order = np.argsort(samples.ids, kind="stable")
    return Identities(**{name: getattr(samples, name)[order] for name in Identities._fields})


def _check_equal(name: str, ours: npt.NDArray, theirs: npt.NDArray, ids: Ids, where: str) -> None:
    differ = np.flatnonzero(ours != theirs)
    if len(differ):
        i = differ[0]
        raise DataError(
            f"{where} gives {len(differ)} of {len(ids)} samples other {name}, first sample {ids[i]} {theirs[i]} for "
            f"{ours[i]}: these are not the same data"
        )


def metric_sources(store: SampleStore, name: str) -> list[Source]:
    """Mean and last value of each metric that is not aggregated otherwise.

    Args:
        store: of a run or of an analysis beside it.
        name: of the store, for messages.
    """
    return [_metric_source(store, metric, name) for metric in store.metrics() if metric not in AGGREGATED]


def _metric_source(store: SampleStore, metric: str, name: str) -> Source:
    view = SampleView(store, metric)
    unit = "share of units" if metric.startswith(DORMANCY) else UNITS.get(metric.partition(".")[0], "1")
    what = metric.replace(".", " of layer ", 1)
    what += OF_PIXELS if metric in CURVATURES else ""
    return Source(
        name=f"{name}/{metric}",
        ids=view.ids,
        columns={
            f"{metric}_mean": Column(f"mean of {what} over the epochs in which the sample was measured", unit),
            f"{metric}_final": Column(f"{what} at the last epoch in which the sample was measured", unit),
        },
        slices=lambda: _summaries(view),
    )


UNITS = {
    "grad_input_l2": "loss per unit of the normalised input",
    "grad_param_l2": "loss per unit of the parameters",
    "input_curv_norm": "loss per squared unit of the normalised input",
    "input_curv_fro2": "squared: loss per squared unit of the normalised input",
    "input_trace": "loss per squared unit of the normalised input",
    "input_rayleigh_mean": "loss per squared unit of the normalised input",
    "input_curv_noise": "loss per squared unit of the normalised input",
    "legacy_curv": "loss per unit of the normalised input",
    "legacy_directional_eig": "loss",
}
"""Units of metrics, without their layer; 1 for the others."""
DORMANCY = "persample_"
"""How metrics of dormancy begin."""
CURVATURES = tuple(name for name in UNITS if name.startswith(("input_", "legacy_")))
OF_PIXELS = " (where curvature.pixel_std was given: by units of the pixels, not of the normalised input)"


def _summaries(view: SampleView) -> Iterator[Rows]:
    for samples in view.slices(SAMPLES_AT_ONCE):
        ids = view.ids[samples]
        total, count = np.zeros(len(ids)), np.zeros(len(ids), np.int64)
        final = np.full(len(ids), np.nan, np.float32)
        for _, _, row in view.rows(samples):
            finite = np.isfinite(row)
            total[finite] += row[finite]
            final[finite] = row[finite]
            count += finite
        mean = np.divide(total, count, out=np.full(len(ids), np.nan), where=count > 0)
        yield {ID: ids, f"{view.metric}_mean": mean.astype(np.float32), f"{view.metric}_final": final}
