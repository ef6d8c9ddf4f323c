"""The published figures, drawn from run folders and from published results: what each shows, and of which numbers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from plastiscope.collect import published_values
from plastiscope.collect.curves import Array, Points, SeedCurve, column, grouped, points, side_by_side
from plastiscope.collect.published_tree import PUBLISHED_LAST
from plastiscope.collect.published_values import PublishedArm
from plastiscope.collect.runs import CollectedRun
from plastiscope.error import DataError
from plastiscope.figure.online import read_bins
from plastiscope.run.storage import read_json

PUBLISHED_WIDTH = 512
"""Units of the last hidden layer of published results."""
BIN = 50
"""Tasks of a bin of continual ImageNet, as published."""
RANK = "srank_99_l1"
NEXT = "representation/next"
BEFORE_TASKS = ("run_begin", "task_end")
"""Rows of weights with which a task begins: task_idx is that of the task before, -1 of the initialisation."""
CLASSES, TASK = "classes seen", "task (from 1)"
"""Labels of the axis that `classes_seen` gives."""
NOTHING: Points = (np.empty(0), np.empty(0))


@dataclass(frozen=True)
class PublishedFigure:
    """One figure.

    Attributes:
        points: of a run; none where it has no such numbers.
        x, y: labels of the axes.
        needs: what a run must have for it, for messages.
        values: published ones.
        depends_on: an analysis whose settings change what is shown.
        is_relative: the values of the retrained network are subtracted.
    """

    points: Callable[[CollectedRun], Points]
    x: str
    y: str
    needs: str
    values: Sequence[PublishedArm]
    depends_on: str = ""
    is_relative: bool = False


def best_of_tasks(run: CollectedRun) -> Points:
    """Largest test accuracy of each whole task's epochs, per cent, over the classes seen."""
    assert run.rows is not None
    accuracy, task = column(run, "test_accuracy"), column(run, "task_idx")
    rows = np.isfinite(accuracy) & np.isfinite(column(run, "epoch"))
    whole, epochs = run.settings.get("epochs"), column(run, "epoch")
    tasks = [k for k in np.unique(task[rows]) if whole is None or epochs[rows & (task == k)].max() == whole - 1]
    best = np.array([accuracy[rows & (task == k)].max() for k in tasks])
    return classes_seen(run, np.array(tasks)), 100 * best


def classes_seen(run: CollectedRun, tasks: Array) -> Array:
    """Classes that have come up to each task; its number from 1 where tasks do not bring classes."""
    more = run.settings.get("task_shift_mode.classes_per_task")
    if more is None:
        return tasks + 1.0
    return np.asarray((run.settings.get("task_shift_mode.initial_classes") or more) + more * tasks, np.float64)


def next_task_dormant(run: CollectedRun) -> Points:
    """Dormant units on the next task's samples before it is learnt, per cent, over its number from 1."""
    task, share = points(run, f"{NEXT}/total/dormant_rate", "task_idx", BEFORE_TASKS)
    return task + 2, 100 * share


def stable_rank(run: CollectedRun) -> Points:
    """srank_99_l1 of the last hidden layer on the next task's samples, per cent of its width, by its number from 1."""
    layer = last_layer(run)
    if layer is None:
        return NOTHING
    task, rank = points(run, f"{NEXT}/{layer}/{RANK}", "task_idx", BEFORE_TASKS)
    width = _width(run, layer)
    return NOTHING if width is None else (task + 2, 100 * rank / width)


def last_layer(run: CollectedRun, subset: str = NEXT) -> str | None:
    """The hidden layer next to the head, of those whose ranks are logged."""
    assert run.rows is not None
    names = [name.split("/") for name in run.rows.column_names if name.startswith(f"{subset}/")]
    layers = [parts[2] for parts in names if parts[3:] == [RANK] and parts[2] not in ("layer_mean", "total")]
    return layers[-1] if layers else None


def _width(run: CollectedRun, layer: str) -> int | None:
    if run.state == "published" and layer == PUBLISHED_LAST:
        return PUBLISHED_WIDTH
    for path in run.folder.glob("task_*/representation/summary*.json"):
        about = ((read_json(path) or {}).get("subsets") or {}).get("next") or {}
        if layer in about.get("layers", {}):
            return int(about["layers"][layer]["d"])
    return None


def accuracy_of_epochs(run: CollectedRun) -> Points:
    """Test accuracy after each epoch, per cent."""
    epoch, accuracy = points(run, "test_accuracy", "epochs_completed", ["epoch"])
    return epoch, 100 * accuracy


def binned_accuracy(run: CollectedRun, tasks: int = BIN) -> Points:
    """Test accuracy after each task's last epoch, per cent, mean of whole bins of tasks, over tasks learnt.

    Bin b is of the tasks b * tasks to (b + 1) * tasks - 1, so runs that begin with a later task have later bins.
    """
    whole = run.settings.get("epochs")
    values, epoch = column(run, "test_accuracy"), column(run, "epoch")
    last = np.isfinite(values) & (epoch == (whole - 1 if whole else np.nanmax(epoch, initial=0)))
    bins, where = np.unique(column(run, "task_idx")[last] // tasks, return_inverse=True)
    counts = np.bincount(where, minlength=len(bins))
    means = np.bincount(where, values[last], len(bins)) / np.maximum(counts, 1)
    return tasks * (bins + 1)[counts == tasks], 100 * means[counts == tasks]


def online_accuracy(run: CollectedRun) -> Points:
    """Accuracy of each presentation before its update, per cent, in bins of analysis=online."""
    bins = run.bins if run.state == "published" else read_bins(run.folder)
    return (bins["presentations"].astype(float), 100 * bins["accuracy"]) if "accuracy" in bins else NOTHING


def binned_error(run: CollectedRun) -> Points:
    """Squared error of each presentation before its update, in bins of analysis=online; none where classes are."""
    bins = run.bins if run.state == "published" else read_bins(run.folder)
    is_error = "loss" in bins and "accuracy" not in bins
    return (bins["presentations"].astype(float), bins["loss"]) if is_error else NOTHING


_TESTS = "test_accuracy in its log"
_NEXT = "analysis=[representation] with subset next"
_BINS = "analysis=[online], and classes"
_ERRORS = "analysis=[online], and no classes"
FIGURES: Mapping[str, PublishedFigure] = {
    "relative_accuracy": PublishedFigure(
        best_of_tasks, CLASSES, "test accuracy above retrained (points)",
        f"{_TESTS}, and runs with learner=retrained", published_values.RELATIVE_ACCURACY, is_relative=True,
    ),
    "best_test_accuracy": PublishedFigure(
        best_of_tasks, CLASSES, "best test accuracy of a task's epochs (%)", _TESTS,
        published_values.BEST_TEST_ACCURACY,
    ),
    "test_accuracy_per_epoch": PublishedFigure(accuracy_of_epochs, "epochs completed", "test accuracy (%)", _TESTS, ()),
    "next_task_dormant_units": PublishedFigure(
        next_task_dormant, "next task", "units dormant on it before it is learnt (%)", _NEXT,
        published_values.NEXT_TASK_DORMANT, "representation",
    ),
    "stable_rank": PublishedFigure(
        stable_rank, "next task", "srank_99_l1 of the last layer (% of its width)", _NEXT,
        published_values.STABLE_RANK, "representation",
    ),
    "binned_accuracy": PublishedFigure(
        binned_accuracy, "tasks learnt", f"test accuracy, mean of {BIN} tasks (%)", f"{_TESTS}, and {BIN} tasks",
        published_values.BINNED_ACCURACY,
    ),
    "online_accuracy": PublishedFigure(
        online_accuracy, "examples presented", "online accuracy, mean of a bin (%)", _BINS,
        published_values.ONLINE_ACCURACY, "online",
    ),
    "binned_error": PublishedFigure(
        binned_error, "examples presented", "squared error, mean of a bin", _ERRORS, published_values.BINNED_ERROR,
        "online",
    ),
}  # fmt: skip
"""By name, as `figure=` has it."""


def figure_of(name: str, bin_size: int | None = None) -> PublishedFigure:
    """A figure by its name, with bins of so many tasks.

    Raises:
        DataError: there is none, or it has no bins of tasks.
    """
    from plastiscope.advice import nearest

    if name not in FIGURES:
        raise DataError(f"figure={name}: there is no such figure{nearest(name, list(FIGURES))}")
    if bin_size is None:
        return FIGURES[name]
    if name != "binned_accuracy":
        raise DataError(f"bin={bin_size}: only figure=binned_accuracy has bins of tasks; others take what was logged")
    return replace(
        FIGURES[name],
        points=lambda run: binned_accuracy(run, bin_size),
        y=f"test accuracy, mean of {bin_size} tasks (%)",
        needs=f"{_TESTS}, and {bin_size} tasks",
        values=FIGURES[name].values if bin_size == BIN else (),
    )


def published_curves(
    runs: Sequence[CollectedRun], figure: PublishedFigure, by: Sequence[str] | None = None
) -> tuple[list[SeedCurve], list[str]]:
    """The curves of a figure, and what is to be said of them.

    Raises:
        DataError: no run has what it needs.
        ConfigError: as `grouped`.
    """
    found = {run.label: figure.points(run) for run in runs if run.rows is not None and run.rows.num_rows}
    having = [run for run in runs if run.label in found and len(found[run.label][0])]
    if not having:
        raise DataError(f"no run has what this figure needs: {figure.needs}")
    groups = grouped(having, by, f"{figure.depends_on}/")
    made = [side_by_side(group, {s: found[run.label] for s, run in group.runs.items()}) for group in groups]
    return above_retrained(made) if figure.is_relative else (made, [])


def x_label(figure: PublishedFigure, curves: Sequence[SeedCurve]) -> str:
    """What the x axis shows: tasks instead of classes where tasks bring none."""
    is_of_tasks = all("task_shift_mode.classes_per_task" not in curve.group.settings for curve in curves)
    return TASK if figure.x == CLASSES and is_of_tasks else figure.x


def is_retrained(settings: Mapping[str, object]) -> bool:
    """Whether the network starts anew with each task."""
    return settings.get("learner") == "retrained" or settings.get("learner.reset") == "network"


def above_retrained(curves: Sequence[SeedCurve]) -> tuple[list[SeedCurve], list[str]]:
    """Each curve less that of the retrained network: seed by seed where it has every seed, else less its mean.

    Seeds have the same order of classes, so their difference varies less; the mean's own error is not in the bands.

    Raises:
        DataError: there is no retrained network, or more than one kind.
    """
    bases = [curve for curve in curves if is_retrained(curve.group.settings)]
    others = [curve for curve in curves if not is_retrained(curve.group.settings)]
    if len(bases) != 1 or not others:
        kinds = f"{len(bases)} kinds of retrained networks and {len(others)} of others"
        raise DataError(f"there are {kinds}; give the folders of one kind with learner=retrained, and of others")
    (base,) = bases
    pairs = [_less(curve, base) for curve in others]
    return [curve for curve, _ in pairs], [note for _, note in pairs if note]


def _less(curve: SeedCurve, base: SeedCurve) -> tuple[SeedCurve, str]:
    x, ours, theirs = np.intersect1d(curve.x, base.x, return_indices=True)
    seeds = list(base.group.runs)
    is_paired = all(seed in seeds for seed in curve.group.runs)
    if is_paired:
        rows = base.values[[seeds.index(seed) for seed in curve.group.runs]][:, theirs]
    else:
        with np.errstate(invalid="ignore"):
            rows = np.nanmean(base.values[:, theirs], 0)
    note = f"{curve.group.label}: not all its seeds are retrained; the mean of those that are was subtracted"
    return SeedCurve(curve.group, x, curve.values[:, ours] - rows), "" if is_paired else note
