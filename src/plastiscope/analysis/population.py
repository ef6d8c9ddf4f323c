"""The samples that per-sample analyses score at a task: who they are, and how they are dealt out in chunks."""

from collections.abc import Iterator
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
import torch

from plastiscope.data.samples import Batch, Samples
from plastiscope.error import ConfigError
from plastiscope.event import Context
from plastiscope.run.sample_store import SPLITS, Population, SampleLabels
from plastiscope.task_shift_mode.task import Task, TaskShift


@dataclass(frozen=True, eq=False)
class ScoredSamples:
    """Samples of one block, in the order of its columns.

    Attributes:
        parts: views; the current task's training samples, then those for validation, then those of later tasks.
        about: ids, labels, split and entry task.
    """

    parts: tuple[Samples, ...]
    about: SampleLabels

    def __len__(self) -> int:
        return len(self.about.ids)

    def chunks(self, size: int) -> list[Samples]:
        """Views of at most `size` samples that follow each other; the same ones whoever scores them."""
        cut = ((part, torch.arange(len(part), device=part.rows.device).split(size)) for part in self.parts)
        return [part.select(positions) for part, pieces in cut for positions in pieces]

    def batches(self, size: int) -> Iterator[Batch]:
        """Clean inputs of all samples, a chunk at a time."""
        for chunk in self.chunks(size):
            yield from chunk.batches(size)


def population(context: Context, name: str) -> ScoredSamples:
    """The samples that are scored at the current task, by the run's `samples.*` settings.

    Args:
        context: at a task.
        name: of the analysis that asks, for the error.

    Raises:
        ConfigError: the task's samples are a stream.
    """
    task, settings = context.current_task, context.sample_settings
    parts = [(context.task_idx, task.train)]
    if settings.validation and task.validation is not None:
        parts.append((context.task_idx, task.validation))
    if settings.population is Population.run:
        parts += _later(context, task)
    if any(getattr(samples.source, "is_stream", False) for _, samples in parts):
        raise ConfigError(f"{name}: needs a finite set of samples, and these data are a stream; leave {name} out")
    return ScoredSamples(tuple(samples for _, samples in parts), _about(context.shift, parts))


def _later(context: Context, task: Task) -> list[tuple[int, Samples]]:
    """Samples that enter with later tasks, as their first task has them."""
    seen, parts = set(task.train.ids.tolist()), []
    for k in range(task.index + 1, context.num_tasks):
        new = context.shift.task(k).new_train
        fresh = torch.tensor([i not in seen for i in new.ids.tolist()], device=new.rows.device)
        if fresh.any():
            parts.append((k, new.select(fresh)))
            seen.update(parts[-1][1].ids.tolist())
    return parts


class EntryTasks:
    """The first task that brought each training sample, found once for each task of a shift."""

    def __init__(self, shift: TaskShift) -> None:
        """Nothing is known yet."""
        self.shift, self.known = shift, 0
        self.ids, self.tasks = np.empty(0, np.int64), np.empty(0, np.int16)

    def of(self, k: int, ids: np.ndarray) -> np.ndarray:
        """Entry tasks int16 [n] of training samples `ids` of task k."""
        while self.known <= k:
            new = np.setdiff1d(self.shift.task(self.known).new_train.ids.cpu().numpy(), self.ids)
            joined = np.concatenate([self.ids, new])
            order = np.argsort(joined, kind="stable")
            tasks = np.concatenate([self.tasks, np.full(len(new), self.known, np.int16)])
            self.ids, self.tasks, self.known = joined[order], tasks[order], self.known + 1
        return self.tasks[np.searchsorted(self.ids, ids)]


_entry_tasks: WeakKeyDictionary[TaskShift, EntryTasks] = WeakKeyDictionary()


def _entry(shift: TaskShift, k: int, samples: Samples, entry_of_class: dict[int, int]) -> np.ndarray:
    """Entry task of each of `samples` of task k; a validation sample enters with the first of its class."""
    if samples.split == "train":
        return _entry_tasks.setdefault(shift, EntryTasks(shift)).of(k, samples.ids.cpu().numpy())
    labels = samples.labels.tolist() if samples.labels.ndim == 1 else [-1] * len(samples)
    return np.array([entry_of_class.get(label, k) for label in labels], np.int16)


def _about(shift: TaskShift, parts: list[tuple[int, Samples]]) -> SampleLabels:
    columns: dict[str, list[np.ndarray]] = {
        "ids": [],
        "labels": [],
        "labels_trained": [],
        "split": [],
        "entry_task": [],
    }
    entry_of_class: dict[int, int] = {}
    for k, samples in parts:
        has_classes, n = samples.labels.ndim == 1, len(samples)
        clean, told = (
            labels.cpu().numpy() if has_classes else np.full(n, -1, np.int64)
            for labels in (samples.clean_labels, samples.labels)
        )
        entry = _entry(shift, k, samples, entry_of_class)
        for label in np.unique(told):
            entry_of_class.setdefault(int(label), int(entry[told == label].min()))
        split = np.full(n, SPLITS.index(samples.split), np.uint8)
        found = (samples.ids.cpu().numpy(), clean, told, split, entry)
        for column, values in zip(columns.values(), found, strict=True):
            column.append(values)
    return SampleLabels(**{name: np.concatenate(some) for name, some in columns.items()})
