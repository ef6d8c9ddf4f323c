"""Results of the published studies that leave a pickle a run: continual ImageNet, online permuted MNIST, regression.

Their code writes `<data_dir>/<setting>/<run>`, a file without a suffix that holds a dict of tensors or arrays:

    continual ImageNet        train_accuracies, test_accuracies [tasks, epochs], and in a variant five more numbers
    online permuted MNIST     accuracies [steps], weight_mag_sum [steps, layers], ranks and dead units [tasks, layers]
    regression                errs [steps], and weight_mag, grad_mag [steps, 2], activation [steps]

What has a value a step becomes bins and means of tasks, so a run takes megabytes where its file has hundreds. Files are
read by the restricted unpickler, one after the other; which ones are results is seen from their first few bytes.
"""

import os
import pickletools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from plastiscope.collect.published_settings import Published, settings_of
from plastiscope.collect.published_tree import PUBLISHED_LAST
from plastiscope.collect.rows import fits
from plastiscope.collect.runs import CollectedRun
from plastiscope.data.restricted_pickle import load_restricted
from plastiscope.error import DataError

Array = npt.NDArray[Any]
Columns = dict[str, Array]

NAME = re.compile(r"(\d+)(\.(p|pkl|pickle))?")
MOST_ROWS = 100_000
"""Epochs of a run that get a row each; of more, only the last one of each task does."""
ONLINE_BIN = 60_000
"""Presentations of a bin of online MNIST, as published; ranks are measured once in so many, too."""
FLIPS_A_BIN = 2
"""Tasks of a bin of regression, as published."""
EPOCH_NUMBERS = {
    "test_accuracies": "test_accuracy",
    "train_accuracies": "epoch_accuracy",
    "weight_magnitudes": "representation/weights/total/weight_mag_all",
    "dormant_proportions": "representation/current/total/dormant_absmean",
    "effective_ranks": f"representation/current/{PUBLISHED_LAST}/effective_rank",
    "stable_ranks": f"representation/current/{PUBLISHED_LAST}/srank_99_l1",
    "curvatures": "published/curvature",
}
"""Of continual ImageNet, and our names; ours of the curvature is of the loss of one image, theirs of a mean of 100."""
RANKS = {
    "effective_ranks": "representation/next/linear_{}/effective_rank",
    "approximate_ranks": "representation/next/linear_{}/approx_rank_99",
    "abs_approximate_ranks": "representation/next/linear_{}/srank_99_l1",
    "ranks": "published/linear_{}/nonzero_singular_values",
    "dead_neurons": "published/linear_{}/dead_units",
}
"""Of online MNIST, as a task begins, on 2,000 of its images; by layer from 1."""


@dataclass
class _Content:
    """What becomes of a file: columns by kind of row (each of one length), bins, and what is to be said."""

    rows: dict[str, Columns]
    epochs: int
    bins: dict[str, Array] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def find_files(folder: Path) -> list[Path]:
    """Files of results at or below a folder, sorted; folders of our runs are not entered."""
    return sorted(path for path in _named(folder) if first_key(path) in STUDIES)


def _named(folder: Path) -> Iterator[Path]:
    for place, below, files in os.walk(folder):
        if "status.json" in files or "run.json" in files:
            below[:] = []
        else:
            yield from (Path(place) / name for name in files if NAME.fullmatch(name))


def first_key(path: Path) -> str | None:
    """The first key of a pickled dict; None of any other file. Reads some bytes, and executes nothing."""
    try:
        with open(path, "rb") as file:
            if file.read(1) != b"\x80":
                return None
            file.seek(0)
            is_dict = False
            for operation, argument, _ in pickletools.genops(file):
                if operation.name == "EMPTY_DICT":
                    is_dict = True
                elif is_dict and "UNICODE" in operation.name:
                    return str(argument)
                elif operation.name not in ("PROTO", "FRAME", "MEMOIZE", "MARK", "BINPUT", "LONG_BINPUT"):
                    return None
    except (OSError, ValueError):
        pass
    return None


def read_file(path: Path, keys: Sequence[str] = ()) -> CollectedRun:
    """The run of one file.

    Args:
        path: as `find_files` gives it.
        keys: patterns of the numbers that are wanted.

    Raises:
        DataError: the file is damaged or names anything but data, or an array has another shape than published.
    """
    about = settings_of(path, STUDIES[str(first_key(path))].name)
    content = load_restricted(path)
    if not isinstance(content, dict):
        raise DataError(f"{path} holds a {type(content).__name__}, and a dict of arrays is needed; get the file again")
    study = STUDIES[next(iter(content))]
    made = study.read(_Arrays(path, content), about)
    seed = seed_of(path)
    settings = {"name": study.name, "seed": seed, "epochs": made.epochs, **about.settings}
    notes = (*about.notes, *(f"{path}: {note}" for note in made.notes))
    rows = _table(made.rows, keys)
    return CollectedRun(path.parent, str(path), "published", seed, settings, rows=rows, bins=made.bins, notes=notes)


def seed_of(path: Path) -> int:
    """The number of a run, which is the name of its file."""
    return int(NAME.fullmatch(path.name)[1])  # type: ignore[index]


@dataclass(frozen=True)
class _Arrays:
    """The arrays of a file by name, checked as they are asked for."""

    path: Path
    content: Mapping[str, Any]

    def get(self, name: str, dimensions: int, length: int | None = None) -> Array | None:
        """An array of numbers with so many dimensions, and first of them `length`; None if there is none."""
        found = self.content.get(name)
        if found is None:
            return None
        array = found.detach().cpu().numpy() if isinstance(found, torch.Tensor) else found
        if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiub" or array.ndim != dimensions:
            shape = list(array.shape) if isinstance(array, np.ndarray) else type(found).__name__
            raise DataError(f"{self.path}: {name} is {shape}, and numbers in {dimensions} dimensions are needed")
        if length is not None and len(array) != length:
            raise DataError(f"{self.path}: {name} has {len(array)} rows where {length} are needed; get the file again")
        return array

    def need(self, name: str, dimensions: int) -> Array:
        """As `get`, and it must be there."""
        array = self.get(name, dimensions)
        if array is None:
            raise DataError(f"{self.path} has no {name}, which results of this study have; get the file again")
        return array


def _continual_imagenet(arrays: _Arrays, _: Published) -> _Content:
    """A row an epoch; tasks that the run had not come to are zeros, and left out."""
    test = arrays.need("test_accuracies", 2)
    tasks, epochs = test.shape
    begun = np.flatnonzero(test.any(1))
    done = int(begun[-1]) + 1 if len(begun) else 0
    kept = slice(None) if done * epochs <= MOST_ROWS else slice(epochs - 1, None)
    numbers = {}
    for theirs, ours in EPOCH_NUMBERS.items():
        found = arrays.get(theirs, 2, tasks)
        if found is not None:
            numbers[ours] = found[:done, kept].reshape(-1)
    task, epoch = (part.reshape(-1) for part in np.mgrid[:done, np.arange(epochs)[kept].min() : epochs])
    made = _Content(
        {"epoch": {"task_idx": task, "epoch": epoch, "global_epoch": task * epochs + epoch, **numbers}}, epochs
    )
    if done < tasks:
        made.notes.append(f"{done} of {tasks} tasks are done")
    if done * epochs > MOST_ROWS:
        made.notes.append(f"of {done * epochs} epochs the last one of each task is kept")
    return made


def _online_mnist(arrays: _Arrays, about: Published) -> _Content:
    """Means of tasks and bins of 60,000 presentations; row r of the ranks is of the newest task that has begun then."""
    hits, size = arrays.need("accuracies", 1), about.batch_size
    period = about.steps_a_task or ONLINE_BIN // size
    hits = _without_end(hits, max(period, 1))
    tasks = len(hits) // period
    numbers = {"online/train/total/accuracy": _means(hits, period)}
    sums = arrays.get("weight_mag_sum", 2, len(arrays.content["accuracies"]))
    if sums is not None:
        numbers |= _at_ends("published/weight_mag_sum", sums[: len(hits)], period)
    before: Columns = {}
    for theirs, ours in RANKS.items():
        found = arrays.get(theirs, 2)
        if found is not None:
            placed = _by_task(found, period * size, tasks)
            before |= {ours.format(layer + 1): column for layer, column in enumerate(placed.T)}
    made = _Content(_task_rows(tasks, numbers, before), 1)
    made.bins = _bins({"accuracy": hits}, max(period, ONLINE_BIN // size), size)
    if not len(made.bins["presentations"]):
        made.notes.append(f"{len(hits) * size} presentations of whole tasks are less than a bin, {ONLINE_BIN}")
    return made


def _regression(arrays: _Arrays, about: Published) -> _Content:
    """Means of tasks, and bins of two of them."""
    errors, period = arrays.need("errs", 1), about.steps_a_task
    tasks = len(errors) // period
    numbers = {"online/train/total/loss": _means(errors, period)}
    for name in ("weight_mag", "grad_mag"):
        found = arrays.get(name, 2, len(errors))
        if found is not None:
            at = _at_ends(f"published/{name}", found, period)
            means = {f"published/{name}/layer_{i + 1}": _means(part, period) for i, part in enumerate(found.T)}
            numbers |= at if name == "weight_mag" else means
    activation = arrays.get("activation", 1, len(errors))
    if activation is not None:
        numbers["published/activation"] = _means(activation, period)
    return _Content(_task_rows(tasks, numbers, {}), 1, _bins({"loss": errors}, FLIPS_A_BIN * period, 1))


@dataclass(frozen=True)
class _Study:
    """Which study a file is of, and how it is read."""

    name: str
    read: Callable[[_Arrays, Published], _Content]


STUDIES = {
    "train_accuracies": _Study("continual_imagenet", _continual_imagenet),
    "test_accuracies": _Study("continual_imagenet", _continual_imagenet),
    "accuracies": _Study("permuted_mnist", _online_mnist),
    "errs": _Study("slowly_changing_regression", _regression),
}
"""By the first key of the dict."""


def _without_end(hits: Array, period: int) -> Array:
    """Whole tasks up to the last one with a hit; what an unfinished run had not come to is zeros."""
    whole = hits[: len(hits) // period * period].reshape(-1, period)
    right = np.flatnonzero(whole.any(1))
    return whole[: int(right[-1]) + 1 if len(right) else 0].reshape(-1)


def _means(values: Array, period: int) -> Array:
    whole = values[: len(values) // period * period].reshape(-1, period)
    return np.asarray(whole.mean(1, dtype=np.float64))


def _at_ends(name: str, values: Array, period: int) -> Columns:
    """Columns of values [steps, layers] at the last step of each whole task."""
    return {f"{name}/layer_{i + 1}": part[period - 1 :: period] for i, part in enumerate(values.T)}


def _by_task(values: Array, examples: int, tasks: int) -> Array:
    """What was measured as each task began, [tasks, layers] of values [periods, layers]; NaN = overwritten, or nothing.

    Task k of so many examples writes into row k * examples // 60000; of several tasks of a row the newest one stays.
    """
    row = np.arange(tasks) * examples // ONLINE_BIN
    is_newest = np.append(row[1:] != row[:-1], True)[:tasks] & (row < len(values))
    placed = np.full((tasks, values.shape[1]), np.nan)
    placed[is_newest] = values[row[is_newest]]
    return placed


def _task_rows(tasks: int, at_ends: Columns, before: Columns) -> dict[str, Columns]:
    """Rows of task ends, and one of the beginning; what stands before task k is in the row of task k - 1."""
    ends: Columns = {"task_idx": np.arange(tasks), "global_epoch": np.arange(tasks), **at_ends}
    ends |= {name: np.append(column[1:], [np.nan] * min(tasks, 1)) for name, column in before.items()}
    begin: Columns = {"task_idx": np.array([-1]), "global_epoch": np.array([-1])}
    begin |= {name: column[:1] for name, column in before.items()}
    return ({"run_begin": begin} if before and tasks else {}) | {"task_end": ends}


def _bins(values: Mapping[str, Array], period: int, size: int) -> dict[str, Array]:
    means = {name: _means(column, period) for name, column in values.items()}
    count = len(next(iter(means.values())))
    return {"presentations": (np.arange(count) + 1) * period * size, **means}


def _table(rows: Mapping[str, Columns], keys: Sequence[str]) -> Any:
    """Rows as our log has them."""
    import pyarrow as pa

    tables = []
    for kind, columns in rows.items():
        n = len(columns["task_idx"])
        table: dict[str, Any] = {"kind": pa.repeat(pa.scalar(kind), n)}
        table |= {name: pa.array(columns[name], pa.int64()) for name in ("global_epoch", "task_idx")}
        table["epoch"] = pa.array(columns["epoch"], pa.int64()) if "epoch" in columns else pa.nulls(n, pa.int64())
        for name, values in columns.items():
            if name not in table and fits(name, keys):
                table[name] = pa.array(values.astype(np.float64), from_pandas=True)
        tables.append(pa.table(table))
    return pa.concat_tables(tables, promote_options="default")
