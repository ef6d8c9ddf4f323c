"""Pictures of dormant units: by layer over epochs, over the samples, and what becomes of dead units over tasks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from plastiscope.error import RunError
from plastiscope.figure.style import BLUE, GREY, ORANGE, depth_colours, epoch_axis, new_figure, plain_frame, save
from plastiscope.run.sample_store import SampleStore
from plastiscope.run.storage import read_json

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = npt.NDArray
Curves = Mapping[str, Array]
"""[e] by layer, in order from the input, and of the total."""

MOST_NAMED = 8
"""Layers up to which the legend names each; of more, the first, the middle and the last."""
MOST_TASKS = 5
"""Tasks whose distributions are shown; of more, as many spread over all of them."""
TOTALS = ("total", "layer_mean")
LIGHT = "#C8C8C8"
"""Grey of what can be compared with nothing."""


@dataclass(frozen=True, kw_only=True)
class Dormancy:
    """What is known of one rule at one site.

    Attributes:
        name: of the quantity, such as "persample_strict".
        epochs: [e] epochs completed.
        shares: mean over samples of the share of dormant units; NaN = not measured.
        dead: share of units that are dormant on all samples.
        boundaries: epochs completed when each task but the first began.
        samples: share of dormant units [n] of each sample at the end of some tasks, by task.
        dead_units: bool [units] at the end of each task that has them, by task.
    """

    name: str
    epochs: Array
    shares: Curves
    dead: Curves
    boundaries: Sequence[int]
    samples: Mapping[int, Array]
    dead_units: Mapping[int, Array]


def draw_dormancy(folder: Path, rows: Sequence[dict[str, Any]], boundaries: Sequence[int]) -> list[Path]:
    """Draw what `dormant` has left in a run folder, a picture of each rule and site, into <folder>/figures.

    Args:
        folder: of the run.
        rows: of its log that have its numbers, one an epoch.
        boundaries: epochs completed when each task but the first began.
    """
    ends = {int(path.parts[-3].split("_")[1]): path.parent for path in folder.glob("task_*/dormant/summary.json")}
    about = {task: read_json(path / "summary.json") for task, path in sorted(ends.items())}
    names = dict.fromkeys(name for summary in about.values() for name in summary["questions"])
    written = []
    for name in names:
        epochs = np.array([row["global_epoch"] + 1.0 for row in rows])
        found = Dormancy(
            name=name,
            epochs=epochs,
            shares=_by_layer(rows, name),
            dead=_by_layer(rows, f"{name}_dead"),
            boundaries=boundaries,
            samples=_over_samples(SampleStore(folder / "samples"), name, about),
            dead_units={task: _dead(ends[task] / summary["file"], name) for task, summary in about.items()},
        )
        written.append(save(dormancy(found), folder / "figures" / f"dormant_{name}.png"))
    return written


def dormancy(of: Dormancy) -> "Figure":
    """Four panels: shares and dead shares over epochs by layer, shares over samples, dead units over tasks."""
    figure = new_figure(9.2, 6.6)
    panels = figure.subplots(2, 2)
    layers = [layer for layer in of.shares if layer not in TOTALS]
    colours = dict(zip(layers, depth_colours(len(layers)), strict=True))
    for axes, curves, title in (
        (panels[0, 0], of.shares, "dormant on a sample (mean over samples)"),
        (panels[0, 1], of.dead, "dead: dormant on every sample"),
    ):
        _over_epochs(axes, of, curves, colours)
        axes.set_title(title, fontsize=10)
        axes.set_ylabel("share of units")
    _distributions(panels[1, 0], of.samples)
    _fates(panels[1, 1], of.dead_units)
    for axes in panels.flat:
        plain_frame(axes)
    lines = {line.get_label(): line for line in panels[0, 0].get_lines()}
    named = layers if len(layers) <= MOST_NAMED else [layers[0], layers[len(layers) // 2], layers[-1]]
    named = [name for name in [*named, "total"] if name in lines]
    if named:
        handles = [lines[name] for name in named]
        figure.legend(handles, named, title=of.name, loc="outside upper center", ncols=5, frameon=False, fontsize=9)
    return figure


class Fate(NamedTuple):
    """Shares of all units at a task's end.

    Attributes:
        kept, new: dead, and dead also at the end of the task before, or not.
        revived: no longer dead.
        unknown: dead, where there is no task before to compare with.
    """

    kept: float = 0.0
    new: float = 0.0
    revived: float = 0.0
    unknown: float = 0.0


def fates(dead_units: Mapping[int, Array]) -> dict[int, Fate]:
    """What has become of the dead units, by task, from bool [units]."""
    found, before = {}, None
    for task, now in dead_units.items():
        if before is None or len(before) != len(now):
            found[task] = Fate(unknown=float(now.mean()))
        else:
            shares = [float(units.mean()) for units in (now & before, now & ~before, before & ~now)]
            found[task] = Fate(*shares)
        before = now
    return found


def _over_epochs(axes: "Axes", of: Dormancy, curves: Curves, colours: Mapping[str, Any]) -> None:
    epoch_axis(axes, of.boundaries)
    marker = "o" if len(of.epochs) <= 100 else None
    for layer, values in curves.items():
        known = np.isfinite(values)
        if layer in colours:
            style = {"color": colours[layer], "linewidth": 1.2}
        elif layer == "total":
            style = {"color": "black", "linewidth": 1.8, "linestyle": "--"}
        else:
            continue
        axes.plot(of.epochs[known], values[known], label=layer, marker=marker, markersize=2.5, clip_on=False, **style)
    axes.set_ylim(bottom=0)


def _distributions(axes: "Axes", samples: Mapping[int, Array]) -> None:
    """A curve for each task: the share of samples that leave at most so many units dormant."""
    known = {task: values[np.isfinite(values)] for task, values in samples.items() if np.isfinite(values).any()}
    for (task, values), colour in zip(known.items(), depth_colours(len(known)), strict=True):
        axes.ecdf(values, color=colour, linewidth=1.4, label=f"task {task}")
    if known:
        axes.legend(frameon=False, fontsize=8)
    axes.set_title("over the samples, at task ends", fontsize=10)
    axes.set_xlabel("share of units dormant on the sample")
    axes.set_ylabel("share of samples with no more")


def _fates(axes: "Axes", dead_units: Mapping[int, Array]) -> None:
    """Bars of what is dead at each task's end, and below zero of what no longer is."""
    from matplotlib.ticker import MaxNLocator

    found = fates(dead_units)
    tasks = np.array(list(found))
    kept, new, revived, unknown = np.array(list(found.values())).reshape(-1, len(Fate._fields)).T
    axes.bar(tasks, unknown, color=LIGHT, label="dead (no task before)")
    axes.bar(tasks, kept, color=GREY, label="dead already")
    axes.bar(tasks, new, bottom=kept, color=ORANGE, label="newly dead")
    axes.bar(tasks, -revived, color=BLUE, label="revived")
    axes.axhline(0, color="black", linewidth=0.8)
    if not (kept + new + revived + unknown).any():
        axes.text(0.5, 0.5, "no unit is dead", transform=axes.transAxes, ha="center", color=GREY)
    axes.set_ylim(-1.25 * revived.max(), 1.4 * (kept + new + unknown).max() or 0.1)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_title("dead units at task ends, against the task before", fontsize=10)
    axes.set_xlabel("task")
    axes.set_ylabel("share of units")
    axes.legend(frameon=False, fontsize=8, ncols=2, loc="upper center")


def _by_layer(rows: Sequence[dict[str, Any]], quantity: str) -> dict[str, Array]:
    """The quantity of each layer and in total in each row: of the training samples, or of all where that is told.

    Rows that tell it of the training samples and rows that tell it of all are one curve.
    """
    keys = [key for row in rows for key in row if _is(key, quantity)]
    found: dict[str, Array] = {}
    for key in dict.fromkeys(keys):
        column = np.array([row.get(key, np.nan) for row in rows], np.float64)
        if np.isfinite(column).any():
            layer = key.split("/")[2]
            known = found.get(layer, column)
            found[layer] = np.where(np.isfinite(known), known, column)
    return found


def _is(key: str, quantity: str) -> bool:
    analysis, subset, *_, last = key.split("/") if key.count("/") == 3 else ("", "", "")
    return analysis == "dormant" and subset in ("train", "all") and last == quantity


def _over_samples(store: SampleStore, name: str, about: Mapping[int, dict[str, Any]]) -> dict[int, Array]:
    """Values of the samples at the end of some tasks."""
    tasks = sorted(about)
    some = [tasks[i] for i in np.unique(np.linspace(0, len(tasks) - 1, min(MOST_TASKS, len(tasks))).astype(int))]
    found = {}
    for task in some:
        rows = store.block(task).rows(name)
        if about[task]["epochs_completed"] in rows:
            found[task] = np.asarray(rows[about[task]["epochs_completed"]])
    return found


def _dead(path: Path, name: str) -> Array:
    """Units that are dormant on all samples, of all layers."""
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as shares:
            return np.concatenate([shares[key] == 1 for key in shares if key.startswith(f"{name}/")])
    except (OSError, ValueError, EOFError, BadZipFile) as error:
        raise RunError(f"{path} cannot be read ({error}); delete its folder to draw the others") from None
