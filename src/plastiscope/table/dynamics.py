"""CSL, learning time and the other dynamics of the losses in a store, as columns of the table."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from plastiscope.analysis.aggregation import Aggregation
from plastiscope.run.sample_store import SPLITS, SampleStore
from plastiscope.table.definitions import LABEL_QUALITY, ONLINE, definition
from plastiscope.table.source import ID, Rows, Source

IDENTITY = ("label", "label_trained", "split", "entry_task")
"""Columns of an aggregation that say who a sample is; the table has them from elsewhere."""
PRESENTED = ("n_presentations", "first_epoch", "last_epoch")
"""Columns that a record of the presentations knows better."""


def dynamics_sources(
    store: SampleStore, name: str, first_epochs: int | None = None, *, with_presentations: bool = False
) -> list[Source]:
    """What was measured after the epochs, and, with `online_` before its columns, in the training steps.

    Args:
        store: of a run or of an analysis beside it.
        name: of the store, for messages.
        first_epochs: H of the column csl_first_<H>.
        with_presentations: also how often and when each sample was trained on, as far as the blocks say.
    """
    found: list[Source] = []
    for prefix, metrics in (("", ("loss", "correct", "margin")), (ONLINE, ("online_loss", "online_correct"))):
        if set(metrics) & set(store.metrics()):
            aggregation = _aggregation(store, prefix == ONLINE, first_epochs)
            left_out = IDENTITY if with_presentations and not found else (*IDENTITY, *PRESENTED)
            found.append(_source(aggregation, f"{name}/{prefix}loss", prefix, left_out))
    return found


def _aggregation(store: SampleStore, online: bool, first_epochs: int | None) -> Aggregation:
    """Of all samples; the thresholds of learning time are those of the training samples, whoever else was scored."""
    train = Aggregation(store, online=online, first_epochs=first_epochs)
    everyone = replace(train, splits=SPLITS)
    if len(everyone.ids) == len(train.ids) or online or train.norms not in store.metrics():
        return everyone
    return replace(everyone, tau=train.tau_of(squared=False), tau_norm2=train.tau_of(squared=True))


def _source(aggregation: Aggregation, name: str, prefix: str, left_out: Sequence[str]) -> Source:
    """The columns are those of the first slice, which is made for that and thrown away."""

    def slices() -> Iterator[Rows]:
        for part in aggregation.parts():
            yield _named(part, prefix, left_out)

    first = next(slices())
    columns = {column: definition(column) for column in first if column != ID}
    if "label_quality" in columns:
        columns["label_quality"] = LABEL_QUALITY
    return Source(name=name, ids=aggregation.ids, columns=columns, slices=slices)


def _named(part: Rows, prefix: str, left_out: Sequence[str]) -> Rows:
    """Prefix of the columns, and the quality of the label, which is the confidence within [0, 1]."""
    rows = {name: part[name] for name in (ID, *PRESENTED) if name not in left_out}
    if not prefix and "confidence" in part:
        rows["label_quality"] = np.clip(part["confidence"], 0, 1)
    others = [name for name in part if name not in (ID, *PRESENTED, *left_out)]
    return rows | {f"{prefix}{name}": part[name] for name in others}
