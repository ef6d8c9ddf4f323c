"""Results of the published incremental CIFAR-100 code, `<name>/<metric>/index-<i>.npy`, read and written.

Row i of what its post-run analysis wrote is of the weights before task i, so it belongs to our row at the end of task
i - 1; row 0 is of the weights as initialised, which end no task: our row of kind run_begin, global_epoch and task -1.
Of the tasks before the first one nothing was measured, and the published 0 there means no more than that.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from plastiscope.collect.rows import fits
from plastiscope.collect.runs import CollectedRun, unreadable
from plastiscope.collect.settings import read_config
from plastiscope.error import DataError, PlastiscopeError
from plastiscope.formats.content import read_vector

if TYPE_CHECKING:
    import pyarrow as pa

Array = npt.NDArray[Any]

EPOCH_NUMBERS = {
    "test_loss_per_epoch": "test_loss",
    "test_accuracy_per_epoch": "test_accuracy",
    "validation_loss_per_epoch": "validation_loss",
    "validation_accuracy_per_epoch": "validation_accuracy",
    "epoch_runtime": "epoch_runtime",
    "test_evaluation_runtime": "test_evaluation_runtime",
    "validation_evaluation_runtime": "validation_evaluation_runtime",
}
"""Metrics with a value an epoch, and our names of them."""
CHECKPOINT_NUMBERS = {"train_loss_per_checkpoint": "epoch_loss", "train_accuracy_per_checkpoint": "epoch_accuracy"}
"""Means over 25 batches; an epoch of task t (from 1) has t times as many as one of task 1."""
LAST = "<last layer>"
TASK_NUMBERS = {
    "weight_magnitude_analysis": "representation/weights/total/weight_mag_all",
    "next_task_dormant_units_analysis": "representation/next/total/dormant_rate",
    "next_task_effective_rank_analysis": f"representation/next/{LAST}/effective_rank",
    "next_task_stable_rank_analysis": f"representation/next/{LAST}/srank_99_l1",
    "previous_tasks_dormant_units_analysis": "representation/current/total/dormant_rate",
    "previous_tasks_effective_rank_analysis": f"representation/current/{LAST}/effective_rank",
    "previous_tasks_stable_rank_analysis": f"representation/current/{LAST}/srank_99_l1",
}
"""Metrics with a value a task, and our names: all classes so far are what the task just trained on (`current`)."""
PREVIOUS = "previous_tasks"
"""What metrics of all classes so far begin with; there are none before the first task, and their row 0 is 0."""
PUBLISHED_LAST = "fc_input"
"""Our name for the layer whose features are measured, in tables of published results."""
LEARNERS = {
    "base_deep_learning_system": "backprop",
    "head_resetting": "head_reset",
    "shrink_and_perturb": "shrink_and_perturb",
    "continual_backpropagation": "continual_backprop",
    "continual_backprop": "continual_backprop",
    "retrained_network": "retrained",
}
"""Published names of arms, and of our learners."""
EPOCHS_PER_TASK = 200
"""Of the published runs; what is taken where a tree does not say how many tasks it has."""
EPOCHS_OPTION = "--epochs-per-task N (plastiscope-plot: epochs_per_task=N)"
"""What says how many epochs a task has."""
CLASSES, CLASSES_PER_TASK = 100, 5
"""Of CIFAR-100, and what each task of the published study brings."""
MORE_CLASSES = "task_shift_mode.classes_per_task"
CLASS_ORDER, PER_CLASS = "class_order", "accuracy_per_class_in_order"


def find_trees(folder: Path) -> list[Path]:
    """Folders <name> of results at or up to two levels below a folder, sorted."""
    metrics = (*EPOCH_NUMBERS, *CHECKPOINT_NUMBERS, *TASK_NUMBERS)
    found = {
        path.parents[1]
        for levels in ("", "*/", "*/*/")
        for metric in metrics
        for path in folder.glob(f"{levels}{metric}/index-*.npy")
    }
    return sorted(found)


def read_tree(folder: Path, epochs_per_task: int | None = None, keys: Sequence[str] = ()) -> list[CollectedRun]:
    """The runs of one <name>, by their indices; those with a file that cannot be read have failed.

    An index has the settings of its config_index-<i>.yaml, which `--export` writes; published results have none.

    Args:
        folder: <results>/<name>.
        epochs_per_task: None = as the config says, or else the lengths: epochs over rows of the post-run analysis, or
            else EPOCHS_PER_TASK.
        keys: patterns of the numbers that are wanted.

    Raises:
        DataError: experiment_indices.npy is damaged.
    """
    return [_read_index(folder, index, epochs_per_task, keys) for index in _indices(folder)]


def _read_index(folder: Path, index: int, epochs_per_task: int | None, keys: Sequence[str]) -> CollectedRun:
    learner = LEARNERS.get(folder.name, folder.name)
    settings: dict[str, Any] = {"name": folder.name, "seed": index, "data": "cifar100", "learner": learner}
    label = f"{folder}/index-{index}"
    try:
        arrays = _arrays(folder, index)
        if not arrays:
            missing = f"{folder}/experiment_indices.npy names it, and there is no index-{index}.npy"
            return CollectedRun(folder, label, "missing", index, settings, error=missing)
        advice = "get it again, or delete it to do without the run's settings"
        settings |= read_config(config_of_index(folder, index), advice) | {"name": folder.name, "seed": index}
        epochs, rows_of_tasks = _lengths(arrays, folder, index)
        per_task, said_of_epochs = _per_task(epochs, rows_of_tasks, epochs_per_task or settings.get("epochs"), folder)
        settings["epochs"] = per_task
        more, said_of_classes = _classes_per_task(folder, index, epochs // per_task or rows_of_tasks, settings)
        settings |= {} if more is None else {MORE_CLASSES: more}
        rows = _rows(arrays, epochs, rows_of_tasks, per_task, keys)
    except (PlastiscopeError, OSError) as error:
        return unreadable(folder, label, error, index, settings)
    notes = tuple(note for note in (said_of_epochs, said_of_classes) if note)
    return CollectedRun(folder, label, "published", index, settings, rows=rows, notes=notes)


def config_of_index(folder: Path, index: int) -> Path:
    """Where `--export` leaves the config of a run."""
    return folder / f"config_index-{index}.yaml"


def _classes_per_task(folder: Path, index: int, tasks: int, settings: Mapping[str, Any]) -> tuple[int | None, str]:
    """Classes that each task brings, None where none; and what is to be said of how they are known.

    The order of classes is of all that there are, so where tasks are fewer than bring them all it does not tell. Ours
    of the accuracies of classes is of those that have come; the published one is of all, so it tells if it is shorter.
    """
    order = read_class_order(folder, index)
    if MORE_CLASSES in settings or order is None or not tasks:
        return settings.get(MORE_CLASSES), ""
    path = folder / PER_CLASS / f"index-{index}.npy"
    seen = len(read_vector(path)) if path.exists() else len(order)
    if seen < len(order) and seen % tasks == 0:
        return seen // tasks, ""
    if len(order) == CLASSES and tasks * CLASSES_PER_TASK <= CLASSES:
        note = f"{folder}: taken for tasks of {CLASSES_PER_TASK} classes, as published, with {tasks} of 20 tasks"
        return CLASSES_PER_TASK, "" if tasks * CLASSES_PER_TASK == CLASSES else note
    if len(order) % tasks:
        return None, f"{folder}: not known how many classes a task brings, {len(order)} do not fit {tasks} tasks"
    note = f"{folder}: taken for tasks of {len(order) // tasks} classes, so that {tasks} tasks have all {len(order)}"
    return len(order) // tasks, "" if path.exists() and seen == len(order) else note


def read_class_order(folder: Path, index: int) -> Array | None:
    """Classes in the order of presentation of a run, if they are there."""
    path = folder / CLASS_ORDER / f"index-{index}.npy"
    return read_vector(path) if path.exists() else None


def _indices(folder: Path) -> list[int]:
    """Indices of files that are there, and those that experiment_indices.npy names."""
    found = [re.fullmatch(r"index-(\d+)\.npy", path.name) for path in folder.glob("*/index-*.npy")]
    named = folder / "experiment_indices.npy"
    listed = read_vector(named).astype(np.int64).tolist() if named.exists() else []
    return sorted({int(match[1]) for match in found if match} | set(listed))


def _arrays(folder: Path, index: int) -> dict[str, Array]:
    names = (*EPOCH_NUMBERS, *CHECKPOINT_NUMBERS, *TASK_NUMBERS)
    paths = {name: folder / name / f"index-{index}.npy" for name in names}
    return {name: read_vector(path).astype(np.float64) for name, path in paths.items() if path.exists()}


def _lengths(arrays: Mapping[str, Array], folder: Path, index: int) -> tuple[int, int]:
    """Epochs, and rows of the post-run analysis; 0 where there is none."""
    found = []
    for names in (EPOCH_NUMBERS, TASK_NUMBERS):
        lengths = {name: len(arrays[name]) for name in names if name in arrays}
        if len(set(lengths.values())) > 1:
            said = ", ".join(f"{name} {length}" for name, length in lengths.items())
            raise DataError(f"{folder}: arrays of index-{index} have different lengths ({said}); get the files again")
        found.append(next(iter(lengths.values()), 0))
    return found[0], found[1]


def _per_task(epochs: int, tasks: int, given: int | None, folder: Path) -> tuple[int, str]:
    """Epochs of a task, as given or as the lengths say; and what is to be said of how they are known."""
    if given is None and epochs and tasks and epochs % tasks == 0:
        return epochs // tasks, ""
    per_task = given or EPOCHS_PER_TASK
    if epochs % per_task:
        raise DataError(f"{folder}: {epochs} epochs are no whole tasks of {per_task}; give {EPOCHS_OPTION}")
    note = f"{folder}: taken for tasks of {per_task} epochs, as published; else give {EPOCHS_OPTION}"
    return per_task, "" if given else note


def _rows(arrays: Mapping[str, Array], epochs: int, tasks: int, per_task: int, keys: Sequence[str]) -> "pa.Table":
    """Rows as our log has them: of epochs, then of task ends."""
    import pyarrow as pa

    by_epoch = {EPOCH_NUMBERS[name]: values for name, values in arrays.items() if name in EPOCH_NUMBERS}
    for name, ours in CHECKPOINT_NUMBERS.items():
        means = None if name not in arrays else checkpoint_means(arrays[name], epochs, per_task)
        by_epoch |= {} if means is None else {ours: means}
    by_task = {our_name(n, PUBLISHED_LAST): _measured(n, arrays[n]) for n in TASK_NUMBERS if n in arrays}
    epoch, end = np.arange(epochs), np.arange(tasks) * per_task - 1
    columns: dict[str, Any] = {
        "kind": pa.array(["epoch"] * epochs + ["run_begin" if i == 0 else "task_end" for i in range(tasks)]),
        "global_epoch": pa.array(np.concatenate([epoch, end])),
        "task_idx": pa.array(np.concatenate([epoch // per_task, np.arange(tasks) - 1])),
        "epoch": pa.array([*(epoch % per_task).tolist(), *[None] * tasks], pa.int64()),
    }
    nothing = {"epoch": np.full(epochs, np.nan), "task": np.full(tasks, np.nan)}
    columns |= {k: _numbers(np.concatenate([v, nothing["task"]])) for k, v in by_epoch.items() if fits(k, keys)}
    columns |= {k: _numbers(np.concatenate([nothing["epoch"], v])) for k, v in by_task.items() if fits(k, keys)}
    return pa.table(columns)


def _measured(metric: str, values: Array) -> Array:
    """Values of a post-run metric; NaN where the published 0 only says that there were no tasks before."""
    is_nothing = metric.startswith(PREVIOUS) & (np.arange(len(values)) == 0) & (values == 0)
    return np.where(is_nothing, np.nan, values)


def _numbers(values: Array) -> "pa.Array":
    import pyarrow as pa

    return pa.array(values, from_pandas=True)


def our_name(metric: str, layer: str) -> str:
    """Our name of a metric with a value a task; `layer` is the last hidden one."""
    return TASK_NUMBERS[metric].replace(LAST, layer)


def checkpoint_means(values: Array, epochs: int, per_task: int) -> Array | None:
    """Means over the checkpoints of each epoch, [epochs]; None if their number does not fit growing tasks.

    An epoch of task t (from 1) has t c checkpoints, so all tasks T have per_task c T (T + 1) / 2 of them.
    """
    tasks = epochs // per_task
    unit = per_task * tasks * (tasks + 1) // 2
    if not unit or len(values) % unit:
        return None
    counts = np.repeat(np.arange(1, tasks + 1), per_task) * (len(values) // unit)
    return np.add.reduceat(values, np.concatenate([[0], np.cumsum(counts)[:-1]])) / counts
