"""The figures of a table: samples_*.png."""

from collections.abc import Sequence
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from plastiscope.error import DataError
from plastiscope.figure.csl import BinMeans, bin_means, memorization_by_bins
from plastiscope.figure.samples import difficulty_over_tasks, in_bins, is_constant, order_effects, pairs
from plastiscope.figure.style import save
from plastiscope.run.sample_store import SampleStore
from plastiscope.run.sample_view import SampleView
from plastiscope.table.codes import axis_columns
from plastiscope.table.file import Table
from plastiscope.table.groups import group_statistics
from plastiscope.table.tracking import PLACES, order_effect

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = npt.NDArray[np.float64]
MOST_LETTERS = 32
"""Of a line of a label."""
NO_ORDER = (
    "no picture of the order of presentation (samples_order.png): it needs the loss after two epochs of a task that "
    "follow each other, from analysis=[csl,tracking] with csl.every=1, csl.mode=posthoc or both, epochs=2 or more"
)
DORMANCY = ("memorization", "csl", "curvature")
"""Axes against which dormancy is shown."""


class Drawn(NamedTuple):
    """The files written, and sentences on what could not be drawn."""

    files: list[Path]
    notes: list[str]


def draw_table(table: Table, out: Path | None = None) -> Drawn:
    """Draw what there is: pairs of scores, difficulty over tasks, dormancy and memorization, effects of the order.

    A score that is the same for all samples has no trend over another one, and no such picture.

    Args:
        table: of a run; what needs more than the table is read from the run folder that holds it in tables/.
        out: folder of the figures; by default figures/ of the run, or beside a table that lies elsewhere.

    Raises:
        DataError: there is nothing to draw.
    """
    run = table.path.parent.parent if table.path.parent.name == "tables" else None
    target = out or (table.path.parent if run is None else run / "figures")
    store = None if run is None else SampleStore(run / "samples")
    axes = {axis: table.column(column).astype(np.float64) for axis, column in axis_columns(table.names).items()}
    names = axis_columns(table.names)
    labels = {axis: axis_label(table, name) for axis, name in names.items()}
    figures, notes = {}, []
    if len(axes) > 1:
        figures["samples_pairs"] = pairs({labels[axis]: values for axis, values in axes.items()})
    if "csl" in axes and "entry_task" in table and len(np.unique(table.column("entry_task"))) > 1:
        figures["samples_difficulty"] = _difficulty(table, axes["csl"], labels["csl"], store)
    varied = {axis for axis, values in axes.items() if not is_constant(values)}
    others = [axis for axis in DORMANCY if axis in varied]
    if "dormant" in varied and others:
        figures["samples_dormancy"] = in_bins([_panel(axes, labels, axis) for axis in others])
    if "memorization" in varied and (scores := _scores(table, names)):
        figures["samples_memorization"] = memorization_by_bins(axes["memorization"], scores)
    if run is not None and store is not None and "position_mean" in table:
        effect = order_effect(run, store) if "csl" in axes else None
        if effect is None:
            notes.append(NO_ORDER)
        else:
            parts = (np.arange(PLACES) + 0.5) / PLACES
            mean_place = bin_means(table.column("position_mean"), axes["csl"])
            change = BinMeans(parts, effect.mean, effect.error, effect.n)
            figures["samples_order"] = order_effects(change, mean_place, labels["csl"])
    if not figures:
        raise DataError(f"{table.path} has nothing to draw: two of CSL, curvature, dormancy, memorization are needed")
    return Drawn([save(figure, target / f"{name}.png") for name, figure in figures.items()], notes)


def axis_label(table: Table, column: str) -> str:
    """Name of a column and its unit, as its definition says it; the name alone of a pure number."""
    unit = table.about.get("columns", {}).get(column, {}).get("unit", "1")
    if unit == "1":
        return column
    label = f"{column} ({unit})"
    return label if len(label) <= MOST_LETTERS else f"{column}\n{fill(f'({unit})', MOST_LETTERS)}"


def loss_by_entry_task(store: SampleStore, tasks: Sequence[int]) -> tuple[Array, dict[int, Array]]:
    """Epochs completed [e], and the mean loss [e] of the training samples that entered with each task.

    NaN before they have entered. An epoch of several tasks is not possible: rows follow each other over the tasks.
    """
    view = SampleView(store, "loss")
    total, count = (np.zeros((len(view.epochs_completed), max(tasks) + 1)) for _ in range(2))
    row_of = {int(epoch): i for i, epoch in enumerate(view.epochs_completed)}
    for k in store.tasks():
        block = store.block(k)
        about, rows = block.about, block.rows("loss") if "loss" in block.metrics() else {}
        for epoch, row in rows.items():
            known = np.isfinite(row) & (about.split == 0)
            entered = about.entry_task[known]
            total[row_of[epoch]] += np.bincount(entered, row[known], total.shape[1])[: total.shape[1]]
            count[row_of[epoch]] += np.bincount(entered, minlength=total.shape[1])[: total.shape[1]]
    with np.errstate(invalid="ignore"):
        mean = total / count
    return view.epochs_completed.astype(np.float64), {task: mean[:, task] for task in tasks}


def _difficulty(table: Table, csl: Array, name: str, store: SampleStore | None) -> "Figure":
    entry = table.column("entry_task").astype(np.float64)
    known = np.isfinite(entry)
    tasks, place = np.unique(entry[known].astype(np.int64), return_inverse=True)
    n, mean, std = group_statistics(csl[known], place, len(tasks))
    by_entry = BinMeans(tasks.astype(np.float64), mean, std / np.sqrt(np.maximum(n, 1)), n)
    epochs, curves, boundaries = np.empty(0), dict[int, Array](), list[int]()
    if store is not None and "loss" in store.metrics():
        epochs, curves = loss_by_entry_task(store, tasks.tolist())
        blocks = [store.block(k).array("epochs_completed") for k in store.tasks()[1:]]
        boundaries = [int(axis[0]) - 1 for axis in blocks if len(axis)]
    return difficulty_over_tasks(by_entry, name, epochs, curves, boundaries)


def _panel(axes: dict[str, Array], labels: dict[str, str], axis: str) -> tuple[str, str, Array, Array, BinMeans]:
    x, y = axes[axis], axes["dormant"]
    return labels[axis], labels["dormant"], x, y, bin_means(x, y)


def _scores(table: Table, names: dict[str, str]) -> dict[str, Array]:
    wanted = [names["csl"]] if "csl" in names else []
    wanted += ["lt_frac"] if "lt_frac" in table else []
    scores = {axis_label(table, name): table.column(name).astype(np.float64) for name in wanted}
    return {name: values for name, values in scores.items() if not is_constant(values)}
