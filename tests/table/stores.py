"""Stores of per-sample values made by hand."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from plastiscope.run.sample_store import SampleLabels, SampleStore


def labels_of(
    ids: Sequence[int],
    labels: Sequence[int] | None = None,
    trained: Sequence[int] | None = None,
    split: Sequence[int] | None = None,
    entry_task: Sequence[int] | None = None,
) -> SampleLabels:
    """Who some samples are; unless it is said: class = id modulo 3, clean, training samples of task 0."""
    clean = np.array(ids) % 3 if labels is None else np.array(labels)
    return SampleLabels(
        ids=np.array(ids, np.int64),
        labels=clean.astype(np.int64),
        labels_trained=clean.astype(np.int64) if trained is None else np.array(trained, np.int64),
        split=np.zeros(len(ids), np.uint8) if split is None else np.array(split, np.uint8),
        entry_task=np.zeros(len(ids), np.int16) if entry_task is None else np.array(entry_task, np.int16),
    )


def write_block(
    folder: Path, task: int, about: SampleLabels, epochs: Sequence[int], metrics: Mapping[str, npt.ArrayLike]
) -> SampleStore:
    """The store <folder>/samples with one more block; metrics are matrices [epochs, samples]."""
    store = SampleStore(folder / "samples")
    block = store.open(task, about, epochs)
    for metric, rows in metrics.items():
        for epoch, row in zip(epochs, np.asarray(rows, np.float32), strict=True):
            block.write(metric, epoch, row)
    store.close()
    return store
