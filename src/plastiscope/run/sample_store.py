"""Per-sample values of a run: a block of memory-mapped matrices per task, and the view over all of them.

    samples/task_0000/
        ids.npy                int64 [n]; labels.npy, labels_trained.npy int64; split.npy uint8; entry_task.npy int16
        epochs_completed.npy   int32 [e], the row axis
        <metric>.npy           float32 [e, n], a row an epoch; NaN = not measured, or not applicable (docs/analyses.md)
        <metric>.done          uint8 [e], 1 = the row is on the disk and whole
        <metric>.epochs.npy    the row axis of a metric that is measured more seldom than every epoch

A row is written at once but counts only when `sync` has marked it: the values are flushed to the disk first, the mark
after. The trainer does that before each checkpoint, so what is not marked is what a resumed run writes anew. A metric
exists once its marks do, which are made last; a block once its folder has its name.
"""

import os
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from plastiscope.error import RunError
from plastiscope.run.matrix_file import MatrixFile, find_rows, make_matrix, map_matrix, to_disk
from plastiscope.run.storage import write_by

Ids = npt.NDArray[np.int64]
Values = npt.NDArray[np.float32]
Place = slice | npt.NDArray[np.int64]
"""Which of some samples: a slice where they follow each other."""

LABELS = ("labels", "labels_trained", "split", "entry_task")
"""What is kept of each sample beside its id."""
SPLITS = ("train", "validation", "test")
"""Meaning of the values of split.npy."""
TYPES = {"ids": "<i8", "labels": "<i8", "labels_trained": "<i8", "split": "u1", "entry_task": "<i2"}
"""Of the small files, one value a sample."""


class Population(Enum):
    """Whose per-sample values are kept in the block of a task."""

    task = "task"
    """The samples that the task trains on."""
    run = "run"
    """Also those that enter with a later task of the run."""


@dataclass(kw_only=True)
class SampleSettings:
    """Which samples the per-sample analyses score, `samples.*`."""

    population: Population = Population.task
    """task: the task's training samples; run: also those that enter with a later task."""
    validation: bool = False
    """Also the validation samples, which are never trained on."""


@dataclass(frozen=True, eq=False, kw_only=True)
class SampleLabels:
    """The samples of a block.

    Attributes:
        ids: int64 [n], unique.
        labels: class in the data set before label noise, int64 [n]; -1 where there are no classes.
        labels_trained: class the network is told.
        split: uint8 [n], position in SPLITS.
        entry_task: int16 [n], the task with which the sample entered.
    """

    ids: Ids
    labels: Ids
    labels_trained: Ids
    split: npt.NDArray[np.uint8]
    entry_task: npt.NDArray[np.int16]


@dataclass(eq=False)
class _OpenMetric:
    """A matrix that is being written.

    Attributes:
        file: its file.
        rows: row by epochs completed.
        done: the marks as they are on the disk, bool [e].
        waiting: rows that are written and not marked yet.
        is_new: nothing has been marked since it was opened.
    """

    file: MatrixFile
    rows: dict[int, int]
    done: npt.NDArray[np.bool_]
    waiting: set[int] = field(default_factory=set)
    is_new: bool = True


class SampleBlock:
    """The folder samples/task_XXXX: values of one task's samples."""

    def __init__(self, folder: Path) -> None:
        """Open `folder`, which exists."""
        self.folder = folder
        self._open: dict[str, _OpenMetric] = {}

    @cached_property
    def ids(self) -> Ids:
        """Ids int64 [n], in the order of the columns.

        Raises:
            RunError: an id is there twice.
        """
        ids = self.array("ids")
        _refuse_repeated(ids, self.folder / "ids.npy")
        return ids

    @cached_property
    def about(self) -> SampleLabels:
        """Labels, split and entry task of the samples."""
        return SampleLabels(ids=self.ids, **{name: self.array(name) for name in LABELS})

    @cached_property
    def _order(self) -> tuple[Ids, npt.NDArray[np.int64] | None]:
        """The ids, ascending, and their columns; None = the columns are in this order."""
        if _ascend(self.ids):
            return self.ids, None
        order = np.argsort(self.ids)
        return self.ids[order], order

    def find(self, wanted: Ids) -> tuple[Place, Place]:
        """Which of the ids `wanted`, ascending, are here: their places there, and their columns."""
        own, order = self._order
        if len(wanted) == 0 or len(own) == 0:
            return slice(0, 0), slice(0, 0)
        low, high = np.searchsorted(own, wanted[0]), np.searchsorted(own, wanted[-1], side="right")
        own = own[low:high]
        places = np.minimum(np.searchsorted(wanted, own), len(wanted) - 1)
        known = wanted[places] == own
        columns = np.arange(low, high) if order is None else order[low:high]
        return _as_slice(places[known]), _as_slice(columns[known])

    def metrics(self) -> list[str]:
        """Names of the metrics there are."""
        return sorted(path.stem for path in self.folder.glob("*.done"))

    def has(self, metric: str) -> bool:
        """Whether there is such a metric."""
        return self._marks(metric).exists()

    def epochs(self, metric: str) -> npt.NDArray[np.int32]:
        """Epochs completed, the row axis of a metric, int32 [e]."""
        own = f"{metric}.epochs"
        return self.array(own if (self.folder / f"{own}.npy").exists() else "epochs_completed")

    def done(self, metric: str) -> npt.NDArray[np.bool_]:
        """Which rows of a metric are whole, bool [e].

        Raises:
            RunError: there is no such metric (says which there are), or its marks are damaged.
        """
        path = self._marks(metric)
        if not path.exists():
            there = ", ".join(self.metrics()) or "none"
            raise RunError(f"{self.folder} has no metric {metric}; there are: {there}")
        marks, epochs = np.fromfile(path, np.uint8), self.epochs(metric)
        if len(marks) != len(epochs):
            raise RunError(
                f"{path} is damaged: {len(marks)} marks for {len(epochs)} epochs. Put the file back, or delete "
                f"{metric}.* in this folder and lose its rows"
            )
        return marks == 1

    def matrix(self, metric: str) -> Values:
        """All rows, float32 [e, n], memory-mapped; those that are not done hold nothing to rely on.

        Raises:
            RunError: the file is missing, cut short or of another shape; names it and its first lost epoch.
        """
        epochs = self.epochs(metric).tolist()
        return map_matrix(self._path(metric), (len(epochs), len(self.ids)), epochs)

    def rows(self, metric: str) -> dict[int, Values]:
        """The whole rows of a metric by epochs completed, each float32 [n], memory-mapped."""
        matrix, epochs = self.matrix(metric), self.epochs(metric).tolist()
        return {epochs[i]: matrix[i] for i in np.flatnonzero(self.done(metric))}

    def is_written(self, metric: str, epochs_completed: int) -> bool:
        """Whether the row is there, marked or not yet."""
        opened = self._open.get(metric)
        if opened is not None:
            row = opened.rows.get(epochs_completed)
            return row is not None and (row in opened.waiting or bool(opened.done[row]))
        return self.has(metric) and bool(self.done(metric)[self.epochs(metric) == epochs_completed].any())

    def write(self, metric: str, epochs_completed: int, values: Values, epochs: Sequence[int] | None = None) -> None:
        """Write one row; it counts after the next `sync`.

        Args:
            metric: its name.
            epochs_completed: of the row.
            values: float32 [n].
            epochs: the metric's row axis, if it is not the block's; taken the first time only.

        Raises:
            RunError: the block has no such row, or the metric's file is damaged.
        """
        opened = self._open.get(metric) or self._begin(metric, epochs)
        row = opened.rows.get(epochs_completed)
        if row is None or values.shape != self.ids.shape:
            raise RunError(
                f"{self._path(metric)} has rows for the epochs {list(opened.rows)} of {len(self.ids)} samples; "
                f"epoch {epochs_completed} of {values.shape} does not fit. Use a folder of its own"
            )
        if opened.done[row]:
            opened.done[row] = False
            self._write_marks({metric: opened.done})
        opened.file.write(row, values)
        opened.waiting.add(row)

    def reserve(self, metric: str, epochs: Sequence[int]) -> None:
        """Give a metric its row axis before any row is written; one that is there already keeps its own."""
        if metric not in self._open:
            self._begin(metric, epochs)

    def sync(self) -> None:
        """Bring the rows written since the last time to the disk, then mark them."""
        waiting = {metric: opened for metric, opened in self._open.items() if opened.waiting}
        if not waiting:
            return
        for opened in waiting.values():
            opened.file.flush()
        new = any(opened.is_new for opened in waiting.values())
        to_disk([*map(self._path, waiting), *(self._small_files() if new else [])])
        for opened in waiting.values():
            opened.done[list(opened.waiting)] = True
        self._write_marks({metric: opened.done for metric, opened in waiting.items()})
        for opened in waiting.values():
            opened.waiting.clear()
            opened.is_new = False

    def close(self) -> None:
        """Mark what is written and close the files."""
        try:
            self.sync()
        finally:
            for opened in self._open.values():
                opened.file.close()
            self._open = {}

    def cut_back(self, epochs_completed: int) -> None:
        """Forget the rows after so many epochs, and what a kill left unfinished: a resumed run writes them anew."""
        for left in self.folder.glob(".*.tmp"):
            left.unlink()
        for metric in self.metrics():
            done = self.done(metric)
            kept = done & (self.epochs(metric) <= epochs_completed)
            if (kept != done).any():
                self._write_marks({metric: kept})

    def array(self, name: str, mapped: bool = False) -> npt.NDArray:
        """One of the small arrays: ids, labels, labels_trained, split, entry_task, epochs_completed.

        Args:
            name: its name.
            mapped: leave it on the disk, to read a part of it.

        Raises:
            RunError: it is missing or damaged.
        """
        try:
            return np.load(self.folder / f"{name}.npy", "r" if mapped else None, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise RunError(f"{self.folder}/{name}.npy cannot be read ({error}); the block is damaged") from None

    def _path(self, metric: str) -> Path:
        return self.folder / f"{metric}.npy"

    def _marks(self, metric: str) -> Path:
        return self.folder / f"{metric}.done"

    def _begin(self, metric: str, epochs: Sequence[int] | None) -> _OpenMetric:
        """Open a metric to write into, made if there is none."""
        if not self.has(metric):
            self._make(metric, epochs)
        rows = {epoch: row for row, epoch in enumerate(self.epochs(metric).tolist())}
        offset = find_rows(self._path(metric), (len(rows), len(self.ids)), list(rows))
        file = MatrixFile(self._path(metric), offset, len(self.ids))
        self._open[metric] = _OpenMetric(file, rows, self.done(metric))
        return self._open[metric]

    def _make(self, metric: str, epochs: Sequence[int] | None) -> None:
        """A matrix of NaN and its marks; the marks come last, so a metric without them was never begun."""
        if epochs is not None and not np.array_equal(epochs, self.array("epochs_completed")):
            axis = np.asarray(epochs, np.int32)
            write_by(self.folder / f"{metric}.epochs.npy", lambda file: np.save(file, axis))
        rows = len(self.epochs(metric))
        make_matrix(self._path(metric), (rows, len(self.ids)))
        temporary = self.folder / f".{metric}.{os.getpid()}.tmp"
        temporary.write_bytes(bytes(rows))
        os.replace(temporary, self._marks(metric))

    def _write_marks(self, marks: Mapping[str, npt.NDArray[np.bool_]]) -> None:
        """Overwrite the marks of some metrics."""
        for metric, done in marks.items():
            with open(self._marks(metric), "r+b") as file:
                file.write(done.astype(np.uint8).tobytes())
        to_disk(map(self._marks, marks))

    def _small_files(self) -> list[Path]:
        """What makes the rows readable: ids, labels, row axes, and the folders, which hold the names of all files."""
        axes = self.folder.glob("*.epochs.npy")
        small = (self.folder / f"{name}.npy" for name in (*TYPES, "epochs_completed"))
        return [*small, *axes, self.folder, self.folder.parent]


class SampleStore:
    """The folder samples/ of a run: one block a task."""

    def __init__(self, folder: Path) -> None:
        """Use `folder`, which need not exist."""
        self.folder = folder
        self._current: tuple[int, SampleBlock] | None = None
        self._read: SampleBlock | None = None

    def tasks(self) -> list[int]:
        """Tasks that have a block, ascending."""
        names = (re.fullmatch(r"task_(\d{4,})", path.name) for path in self.folder.glob("task_*"))
        return sorted(int(name[1]) for name in names if name)

    def block(self, task: int) -> SampleBlock:
        """The block of a task, to read.

        Raises:
            RunError: there is none.
        """
        path = self._path(task)
        if self._read is None or self._read.folder != path:
            if not path.exists():
                raise RunError(
                    f"{self.folder} has no per-sample values of task {task}; was a per-sample analysis selected?"
                )
            self._read = SampleBlock(path)
        return self._read

    def metrics(self) -> list[str]:
        """Metrics of any block."""
        return sorted({metric for task in self.tasks() for metric in self.block(task).metrics()})

    def open(self, task: int, about: SampleLabels, epochs: Iterable[int]) -> SampleBlock:
        """The block of a task to write into, made if it is not there; the one of the task before is closed.

        Raises:
            RunError: there is one of other samples, or an id is there twice.
        """
        if self._current is None or self._current[0] != task:
            self.close()
            path = self._path(task)
            if not path.exists():
                _make_block(path, about, np.asarray(list(epochs), np.int32))
            self._current, self._read = (task, SampleBlock(path)), None
        block = self._current[1]
        if not np.array_equal(block.ids, about.ids):
            raise RunError(f"{block.folder} belongs to other samples than task {task} has; use a folder of its own")
        return block

    def sync(self) -> None:
        """Mark all rows written so far, once they are on the disk."""
        if self._current is not None:
            self._current[1].sync()

    def close(self) -> None:
        """Mark and close."""
        if self._current is not None:
            self._current[1].close()
            self._current = None

    def cut_back(self, epochs_completed: int) -> None:
        """Forget what came after so many epochs, and blocks that a kill left unfinished."""
        self._read = None
        for left in self.folder.glob(".task_*.tmp"):
            shutil.rmtree(left)
        for task in self.tasks():
            block = SampleBlock(self._path(task))
            block.cut_back(epochs_completed)
            if not any(block.done(metric).any() for metric in block.metrics()):
                shutil.rmtree(block.folder)

    def _path(self, task: int) -> Path:
        return self.folder / f"task_{task:04d}"


def _make_block(path: Path, about: SampleLabels, epochs: npt.NDArray[np.int32]) -> None:
    """Write ids, labels and row axis into a folder that gets its name when it is whole."""
    _refuse_repeated(about.ids, path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    for name, kind in TYPES.items():
        np.save(temporary / f"{name}.npy", np.asarray(getattr(about, name), kind))
    np.save(temporary / "epochs_completed.npy", epochs)
    os.rename(temporary, path)


def _refuse_repeated(ids: Ids, path: Path) -> None:
    if not _ascend(ids) and len(np.unique(ids)) != len(ids):
        raise RunError(f"{path}: one id is given to several samples; per-sample values need ids of their own")


def _ascend(ids: Ids) -> bool:
    return bool((ids[1:] > ids[:-1]).all())


def _as_slice(places: npt.NDArray[np.int64]) -> Place:
    """The same as a slice, if they follow each other."""
    follow = len(places) > 0 and places[-1] - places[0] + 1 == len(places) and _ascend(places)
    return slice(int(places[0]), int(places[-1]) + 1) if follow else places
