"""CSL, learning time and the other dynamics of the losses in a store, as columns of the table."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from plastiscope.analysis.aggregation import Aggregation
from plastiscope.error import RunError
from plastiscope.run.sample_store import SPLITS, SampleStore
from plastiscope.run.sample_view import SampleView
from plastiscope.table.definitions import LABEL_QUALITY, ONLINE, ONLINE_LABEL_QUALITY, definition
from plastiscope.table.source import ID, Rows, Source

IDENTITY = ("label", "label_trained", "split", "entry_task")
"""Columns of an aggregation that say who a sample is; the table has them from elsewhere."""
PRESENTED = ("n_presentations", "first_epoch", "last_epoch")
"""Columns that a record of the presentations knows better."""
OF_PASSES = ("loss_all", "grad_input_l2")
"""Metrics of the dynamics that only a pass after the epoch has."""


def dynamics_sources(
    store: SampleStore,
    name: str,
    first_epochs: int | None = None,
    *,
    with_presentations: bool = False,
    unfinished: bool = False,
) -> list[Source]:
    """What was measured after the epochs, and, with `online_` before its columns, in the training steps.

    Args:
        store: of a run or of an analysis beside it.
        name: of the store, for messages.
        first_epochs: H of the column csl_first_<H>.
        with_presentations: also how often and when each sample was trained on, as far as the blocks say.
        unfinished: take the epochs of which all rows are there.

    Raises:
        RunError: a row is missing, and the store is not `unfinished`.
    """
    found: list[Source] = []
    for prefix, metrics in (("", ("loss", "correct", "margin")), (ONLINE, ("online_loss", "online_correct"))):
        epochs = _whole_epochs(store, prefix, unfinished) if set(metrics) & set(store.metrics()) else []
        if epochs is None or epochs:
            aggregation = _aggregation(store, prefix == ONLINE, first_epochs, epochs)
            left_out = IDENTITY if with_presentations and not found else (*IDENTITY, *PRESENTED)
            has_quality = any("label_quality" in source.columns for source in found)
            found.append(_source(aggregation, f"{name}/{prefix}loss", prefix, left_out, not has_quality))
    return found


def _whole_epochs(store: SampleStore, prefix: str, unfinished: bool) -> list[int] | None:
    """Epochs of which every row is there; None = no row is missing."""
    wanted = [f"{prefix}{metric}" for metric in ("loss", "correct", "margin", *([] if prefix else OF_PASSES))]
    views = [SampleView(store, metric) for metric in wanted if metric in store.metrics()]
    views = [view for view in views if len(view.epochs_completed)]
    if not views:
        return []
    missing = {epoch for view in views for _, epoch in view.missing}
    if missing and not unfinished:
        raise RunError(
            f"{store.folder} lacks rows of {len(missing)} epochs, the first of epoch {min(missing)}: resume what wrote "
            "it, or take what there is with --unfinished"
        )
    there = {int(epoch) for view in views for epoch in view.epochs_completed}
    return sorted(there - missing) if missing else None


def _aggregation(
    store: SampleStore, online: bool, first_epochs: int | None, epochs: Sequence[int] | None
) -> Aggregation:
    """Of all samples; the thresholds of learning time are those of the training samples, whoever else was scored."""
    train = Aggregation(store, online=online, first_epochs=first_epochs, epochs=epochs)
    everyone = replace(train, splits=SPLITS)
    if len(everyone.ids) == len(train.ids) or online or train.norms not in store.metrics():
        return everyone
    return replace(everyone, tau=train.tau_of(squared=False), tau_norm2=train.tau_of(squared=True))


def _source(aggregation: Aggregation, name: str, prefix: str, left_out: Sequence[str], with_quality: bool) -> Source:
    """The columns are those of the first slice, which is made for that and thrown away."""

    def slices() -> Iterator[Rows]:
        for part in aggregation.parts():
            yield _named(part, prefix, left_out, with_quality)

    first = next(slices())
    columns = {column: definition(column) for column in first if column != ID}
    if "label_quality" in columns:
        columns["label_quality"] = ONLINE_LABEL_QUALITY if prefix else LABEL_QUALITY
    return Source(name=name, ids=aggregation.ids, columns=columns, slices=slices)


def _named(part: Rows, prefix: str, left_out: Sequence[str], with_quality: bool) -> Rows:
    """Prefix of the columns, and the quality of the label, which is the confidence within [0, 1]."""
    rows = {name: part[name] for name in (ID, *PRESENTED) if name not in left_out}
    if with_quality and "confidence" in part:
        rows["label_quality"] = np.clip(part["confidence"], 0, 1)
    others = [name for name in part if name not in (ID, *PRESENTED, *left_out)]
    return rows | {f"{prefix}{name}": part[name] for name in others}
