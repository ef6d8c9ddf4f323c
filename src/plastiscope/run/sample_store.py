"""Per-sample values of a run: a block of memory-mapped matrices per task, and the view over all of them.

    samples/task_0000/
        ids.npy                int64 [n]; labels.npy, labels_trained.npy int64; split.npy uint8; entry_task.npy int16
        epochs_completed.npy   int32 [e], the row axis
        <metric>.npy           float32 [e, n], a row an epoch; NaN = not measured, or not applicable (docs/analyses.md)
        <metric>.done          uint8 [e], 1 = the row is on the disk and whole
        <metric>.epochs.npy    the row axis of a metric that is measured more seldom than every epoch

A row is written at once but counts only when `sync` has marked it: the values are flushed to the disk first, the mark
after. The trainer does that before each checkpoint, so what is not marked is what a resumed run writes anew.
"""

import contextlib
import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy

from plastiscope.error import RunError
from plastiscope.run.storage import write_by

Ids = npt.NDArray[np.int64]
Values = npt.NDArray[np.float32]

LABELS = ("labels", "labels_trained", "split", "entry_task")
"""What is kept of each sample beside its id."""
SPLITS = ("train", "validation", "test")
"""Meaning of the values of split.npy."""


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


class SampleBlock:
    """The folder samples/task_XXXX: values of one task's samples."""

    def __init__(self, folder: Path) -> None:
        """Open `folder`, which exists."""
        self.folder = folder
        self._open: dict[str, tuple[IO[bytes], list[int]]] = {}

    @cached_property
    def ids(self) -> Ids:
        """Ids int64 [n], in the order of the columns."""
        ids = self.array("ids")
        if len(np.unique(ids)) != len(ids):
            raise RunError(f"{self.folder}/ids.npy gives one id to several samples; the block cannot be read")
        return ids

    @cached_property
    def about(self) -> SampleLabels:
        """Labels, split and entry task of the samples."""
        return SampleLabels(ids=self.ids, **{name: self.array(name) for name in LABELS})

    def metrics(self) -> list[str]:
        """Names of the metrics there are."""
        return sorted(path.stem for path in self.folder.glob("*.done"))

    def epochs(self, metric: str) -> npt.NDArray[np.int32]:
        """Epochs completed, the row axis of a metric, int32 [e]."""
        own = self.folder / f"{metric}.epochs.npy"
        return np.load(own) if own.exists() else self.array("epochs_completed")

    def done(self, metric: str) -> npt.NDArray[np.bool_]:
        """Which rows of a metric are whole, bool [e].

        Raises:
            RunError: there is no such metric; says which there are.
        """
        path = self.folder / f"{metric}.done"
        if not path.exists():
            there = ", ".join(self.metrics()) or "none"
            raise RunError(f"{self.folder} has no metric {metric}; there are: {there}")
        marks = np.fromfile(path, np.uint8)
        if len(marks) != len(self.epochs(metric)):
            raise RunError(f"{path} is cut short: {len(marks)} marks for {len(self.epochs(metric))} epochs")
        return marks == 1

    def matrix(self, metric: str) -> Values:
        """All rows, float32 [e, n], memory-mapped; those that are not done hold nothing to rely on.

        Raises:
            RunError: the file is missing, cut short or of another shape; names it and its last whole epoch.
        """
        epochs, path = self.epochs(metric), self.folder / f"{metric}.npy"
        wanted = (len(epochs), len(self.ids))
        try:
            with open(path, "rb") as file:
                shape, dtype, offset = _header(file)
        except (OSError, ValueError) as error:
            raise RunError(f"{path} cannot be read ({error}); the values of {metric} are lost") from None
        if shape != wanted or dtype != np.float32:
            raise RunError(f"{path} has shape {shape} and type {dtype}, the block needs {wanted} and float32")
        if (size := path.stat().st_size) < offset + 4 * wanted[0] * wanted[1]:
            whole = (size - offset) // (4 * wanted[1]) if wanted[1] else 0
            raise RunError(f"{path} is cut short: the row of epoch {epochs[max(whole, 0)]} and those after it are gone")
        return np.memmap(path, np.float32, "r", offset, wanted) if all(wanted) else np.empty(wanted, np.float32)

    def rows(self, metric: str) -> dict[int, Values]:
        """The whole rows of a metric by epochs completed, each float32 [n], memory-mapped."""
        matrix = self.matrix(metric)
        return {int(e): matrix[i] for i, e in enumerate(self.epochs(metric)) if self.done(metric)[i]}

    def is_written(self, metric: str, epochs_completed: int) -> bool:
        """Whether the row is there, marked or not yet."""
        if metric in self._open and epochs_completed in self._open[metric][1]:
            return True
        if not (self.folder / f"{metric}.done").exists():
            return False
        here = self.epochs(metric) == epochs_completed
        return bool((self.done(metric) & here).any())

    def write(self, metric: str, epochs_completed: int, values: Values, epochs: Sequence[int] | None = None) -> None:
        """Write one row; it counts after the next `sync`.

        Args:
            metric: its name.
            epochs_completed: of the row.
            values: float32 [n].
            epochs: the metric's row axis, if it is not the block's; taken the first time only.

        Raises:
            RunError: the block has no such row.
        """
        if not (self.folder / f"{metric}.npy").exists():
            self._make(metric, epochs)
        axis = self.epochs(metric)
        (place,) = np.flatnonzero(axis == epochs_completed)[:1] if (axis == epochs_completed).any() else (None,)
        if place is None or values.shape != (len(self.ids),):
            raise RunError(
                f"{self.folder}/{metric}.npy has rows for the epochs {axis.tolist()} of {len(self.ids)} samples; "
                f"epoch {epochs_completed} of {values.shape} does not fit. Use a folder of its own"
            )
        if metric not in self._open:
            self._open[metric] = (open(self.folder / f"{metric}.npy", "r+b"), [])  # noqa: SIM115 (until close)
            self._unmark(metric, axis >= epochs_completed)
        file, waiting = self._open[metric]
        _, _, offset = _header(file)
        file.seek(offset + 4 * int(place) * len(self.ids))
        file.write(np.ascontiguousarray(values, np.float32).tobytes())
        waiting.append(epochs_completed)

    def sync(self) -> None:
        """Flush the rows written since the last time to the disk, then mark them."""
        for metric, (file, waiting) in self._open.items():
            if waiting:
                file.flush()
                os.fsync(file.fileno())
                self._mark(metric, np.isin(self.epochs(metric), waiting), 1)
                waiting.clear()

    def close(self) -> None:
        """Mark what is written and close the files."""
        self.sync()
        for file, _ in self._open.values():
            file.close()
        self._open = {}

    def cut_back(self, epochs_completed: int) -> None:
        """Forget the rows after so many epochs: a resumed run writes them anew."""
        for metric in self.metrics():
            self._unmark(metric, self.epochs(metric) > epochs_completed)

    def _make(self, metric: str, epochs: Sequence[int] | None) -> None:
        """A matrix of NaN and its marks; the marks come last, so a metric without them was never begun."""
        if epochs is not None and not np.array_equal(epochs, self.array("epochs_completed")):
            axis = np.asarray(epochs, np.int32)
            write_by(self.folder / f"{metric}.epochs.npy", lambda file: np.save(file, axis))
        rows, columns = len(self.epochs(metric)), len(self.ids)
        temporary = self.folder / f".{metric}.{os.getpid()}.tmp"
        with open(temporary, "wb") as file:
            npy.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (rows, columns)})
            row = np.full(columns, np.nan, np.float32).tobytes()
            for _ in range(rows):
                file.write(row)
        (self.folder / f"{metric}.done").write_bytes(bytes(rows))
        os.replace(temporary, self.folder / f"{metric}.npy")

    def _mark(self, metric: str, which: npt.NDArray[np.bool_], mark: int) -> None:
        path = self.folder / f"{metric}.done"
        with open(path, "r+b") as file:
            for place in np.flatnonzero(which):
                file.seek(int(place))
                file.write(bytes([mark]))
            file.flush()
            os.fsync(file.fileno())

    def _unmark(self, metric: str, which: npt.NDArray[np.bool_]) -> None:
        if (self.done(metric) & which).any():
            self._mark(metric, which, 0)

    def array(self, name: str) -> npt.NDArray:
        """One of the small arrays: ids, labels, labels_trained, split, entry_task, epochs_completed.

        Raises:
            RunError: it is missing or damaged.
        """
        try:
            return np.load(self.folder / f"{name}.npy", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise RunError(f"{self.folder}/{name}.npy cannot be read ({error}); the block is damaged") from None


class SampleStore:
    """The folder samples/ of a run: one block a task."""

    def __init__(self, folder: Path) -> None:
        """Use `folder`, which need not exist."""
        self.folder = folder
        self._current: tuple[int, SampleBlock] | None = None

    def tasks(self) -> list[int]:
        """Tasks that have a block, ascending."""
        return sorted(int(path.name.removeprefix("task_")) for path in self.folder.glob("task_*"))

    def block(self, task: int) -> SampleBlock:
        """The block of a task, to read.

        Raises:
            RunError: there is none.
        """
        if not self._path(task).exists():
            raise RunError(
                f"{self.folder} has no per-sample values of task {task}; was a per-sample analysis selected?"
            )
        return SampleBlock(self._path(task))

    def metrics(self) -> list[str]:
        """Metrics of any block."""
        return sorted({metric for task in self.tasks() for metric in self.block(task).metrics()})

    def open(self, task: int, about: SampleLabels, epochs: Iterable[int]) -> SampleBlock:
        """The block of a task to write into, made if it is not there; the one of the task before is closed.

        Raises:
            RunError: there is one of other samples.
        """
        if self._current is not None and self._current[0] == task:
            return self._current[1]
        self.close()
        path = self._path(task)
        if not path.exists():
            _make_block(path, about, np.asarray(list(epochs), np.int32))
        block = SampleBlock(path)
        if not np.array_equal(block.ids, about.ids):
            raise RunError(f"{path} belongs to other samples than those of task {task}; use a folder of its own")
        self._current = (task, block)
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
        """Forget what came after so many epochs."""
        for task in self.tasks():
            block = self.block(task)
            block.cut_back(epochs_completed)
            if not any(block.done(metric).any() for metric in block.metrics()):
                shutil.rmtree(block.folder)

    def _path(self, task: int) -> Path:
        return self.folder / f"task_{task:04d}"


def _make_block(path: Path, about: SampleLabels, epochs: npt.NDArray[np.int32]) -> None:
    """Write ids, labels and row axis into a folder that gets its name when it is whole."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.mkdir(parents=True, exist_ok=True)
    for name in ("ids", *LABELS):
        np.save(temporary / f"{name}.npy", getattr(about, name))
    np.save(temporary / "epochs_completed.npy", epochs)
    with contextlib.suppress(FileExistsError):
        os.rename(temporary, path)


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype, int]:
    """Shape, type and offset of the data of an open .npy file."""
    file.seek(0)
    version = npy.read_magic(file)
    if version != (1, 0):
        raise ValueError(f"npy version {version}")
    shape, _, dtype = npy.read_array_header_1_0(file)
    return shape, dtype, file.tell()
