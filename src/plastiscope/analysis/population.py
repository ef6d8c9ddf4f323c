"""The samples that per-sample analyses score at a task: who they are, and how they are dealt out in chunks."""

from collections.abc import Iterator
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
import torch

from plastiscope.data.samples import Batch, Samples
from plastiscope.error import ConfigError
from plastiscope.event import Context
from plastiscope.run.sample_store import SPLITS, Ids, Population, SampleLabels
from plastiscope.task_shift_mode.task import TaskShift


@dataclass(frozen=True, eq=False)
class ScoredSamples:
    """Samples of one block, in the order of its columns.

    Attributes:
        parts: views; the current task's training samples, then those for validation, then those of later tasks.
        about: ids, labels, split and entry task.
        subsets: columns of each kind of samples: "train", "validation" and "later", those there are.
    """

    parts: tuple[Samples, ...]
    about: SampleLabels
    subsets: dict[str, slice]

    def __len__(self) -> int:
        return len(self.about.ids)

    @property
    def later_ids(self) -> Ids:
        """Ids int64 of the samples that enter with a later task."""
        return self.about.ids[self.subsets.get("later", slice(0, 0))]

    def chunks(self, size: int) -> list[Samples]:
        """Views of at most `size` samples that follow each other; the same ones whoever scores them."""
        cut = ((part, torch.arange(len(part), device=part.rows.device).split(size)) for part in self.parts)
        return [part.select(positions) for part, pieces in cut for positions in pieces if len(positions)]

    def batches(self, size: int) -> Iterator[Batch]:
        """Clean inputs of all samples; a batch is a chunk."""
        for part in self.parts:
            yield from part.batches(size)


def population(context: Context, name: str) -> ScoredSamples:
    """The samples that are scored at the current task, by the run's `samples.*` settings.

    Args:
        context: at a task.
        name: of the analysis that asks, for the error.

    Raises:
        ConfigError: the task's samples are a stream.
    """
    task, settings, shift = context.current_task, context.sample_settings, context.shift
    refuse_stream(context, name)
    parts = {"train": [task.train]}
    if settings.validation and task.validation is not None:
        parts["validation"] = [task.validation]
    if settings.population is Population.run:
        entries = _entries_of(shift)
        later = (entries.brought_by(shift, k) for k in range(task.index + 1, context.num_tasks))
        parts["later"] = [samples for samples in later if len(samples)]
    subsets, start = {}, 0
    for subset, views in parts.items():
        end = start + sum(map(len, views))
        if end > start:
            subsets[subset] = slice(start, end)
        start = end
    views = [view for some in parts.values() for view in some]
    return ScoredSamples(tuple(views), _about(shift, task.index, views), subsets)


def refuse_stream(context: Context, name: str) -> None:
    """Refuse an analysis of single samples where these are a stream.

    Args:
        context: at a task.
        name: of the analysis.

    Raises:
        ConfigError: the task's samples are a stream.
    """
    if getattr(context.current_task.train.source, "is_stream", False):
        raise ConfigError(f"{name}: needs a finite set of samples, and these data are a stream; leave {name} out")


class Entries:
    """Which samples each task of a shift brings for the first time, found once."""

    def __init__(self) -> None:
        """Nothing is known yet."""
        self.known = 0
        self.ids: Ids = np.empty(0, np.int64)
        self.tasks = np.empty(0, np.int16)
        self._brought: dict[int, Samples] = {}

    def of(self, shift: TaskShift, k: int, ids: Ids) -> npt.NDArray[np.int16]:
        """Entry tasks int16 [n] of training samples `ids` of task k."""
        while self.known <= k:
            ids_there = np.unique(shift.task(self.known).new_train.ids.cpu().numpy())
            new = ids_there[~self._knows(ids_there)]
            places = np.searchsorted(self.ids, new)
            self.ids = np.insert(self.ids, places, new)
            self.tasks = np.insert(self.tasks, places, np.int16(self.known))
            self.known += 1
        return self.tasks[np.searchsorted(self.ids, ids)]

    def brought_by(self, shift: TaskShift, k: int) -> Samples:
        """The samples that enter with task k, as it has them."""
        if k not in self._brought:
            new = shift.task(k).new_train
            is_first = self.of(shift, k, new.ids.cpu().numpy()) == k
            self._brought[k] = new.select(torch.from_numpy(is_first).to(new.rows.device))
        return self._brought[k]

    def _knows(self, ids: Ids) -> npt.NDArray[np.bool_]:
        if len(self.ids) == 0:
            return np.zeros(len(ids), np.bool_)
        return self.ids[np.minimum(np.searchsorted(self.ids, ids), len(self.ids) - 1)] == ids


_entries: WeakKeyDictionary[TaskShift, Entries] = WeakKeyDictionary()


def _entries_of(shift: TaskShift) -> Entries:
    return _entries.setdefault(shift, Entries())


def _entry(shift: TaskShift, k: int, samples: Samples, entry_of_class: dict[int, int]) -> npt.NDArray[np.int16]:
    """Entry task of each of `samples`; a validation sample enters with the first training sample of its class."""
    if samples.split == "train":
        return _entries_of(shift).of(shift, k, samples.ids.cpu().numpy())
    labels = samples.labels.tolist() if samples.labels.ndim == 1 else [-1] * len(samples)
    return np.array([entry_of_class.get(label, k) for label in labels], np.int16)


def _about(shift: TaskShift, k: int, views: list[Samples]) -> SampleLabels:
    """What is kept of the samples of `views`, which task k and later ones train on."""
    columns: dict[str, list[npt.NDArray]] = {name: [] for name in ("ids", "labels", "labels_trained", "split")}
    entry_tasks: list[npt.NDArray[np.int16]] = []
    entry_of_class: dict[int, int] = {}
    for samples in views:
        has_classes, n = samples.labels.ndim == 1, len(samples)
        clean, told = (
            labels.cpu().numpy() if has_classes else np.full(n, -1, np.int64)
            for labels in (samples.clean_labels, samples.labels)
        )
        entry = _entry(shift, k, samples, entry_of_class)
        for label in np.unique(told):
            entry_of_class.setdefault(int(label), int(entry[told == label].min()))
        split = np.full(n, SPLITS.index(samples.split), np.uint8)
        for column, values in zip(columns.values(), (samples.ids.cpu().numpy(), clean, told, split), strict=True):
            column.append(values)
        entry_tasks.append(entry)
    joined = {name: np.concatenate(some) for name, some in columns.items()}
    return SampleLabels(**joined, entry_task=np.concatenate(entry_tasks))
