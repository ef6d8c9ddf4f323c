"""Pictures of the trainability probe: curves on the held-out task, and the ratio to fresh networks over tasks."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from plastiscope.figure.style import BLUE, GREY, depth_colours, new_figure, plain_frame, save
from plastiscope.run.storage import read_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = npt.NDArray[np.float64]

MOST_CURVES = 8
"""Looks whose curves are shown; of more, as many spread over all of them."""


@dataclass(frozen=True, eq=False)
class ProbeLook:
    """What one look left.

    Attributes:
        task: index of the task.
        steps: [p] of training, from 0.
        loss: [p] of the copy.
        fresh_loss: [m, p] of the fresh networks.
        ratio: of the areas; NaN if a curve ended early.
    """

    task: int
    steps: Array
    loss: Array
    fresh_loss: Array
    ratio: float


def draw_probe(folder: Path) -> list[Path]:
    """Draw what `probe` has left in a run folder into <folder>/figures/probe.png; nothing if there is none."""
    looks = read_looks(folder)
    return [save(probe(looks), folder / "figures" / "probe.png")] if looks else []


def read_looks(folder: Path) -> list[ProbeLook]:
    """The looks of a run, by task."""
    looks = []
    for path in folder.glob("task_*/probe/curves.npz"):
        ratio = read_json(path.parent / "summary.json")["numbers"]["probe_ratio"]
        with np.load(path, allow_pickle=False) as stored:
            task = int(path.parents[1].name.split("_")[1])
            ratio = float("nan") if ratio is None else float(ratio)
            looks.append(ProbeLook(task, stored["steps"], stored["loss"], stored["fresh_loss"], ratio))
    return sorted(looks, key=lambda look: look.task)


def probe(looks: Sequence[ProbeLook]) -> "Figure":
    """Left the losses over steps, coloured by task, fresh networks grey; right the ratio of the areas over tasks."""
    from matplotlib.ticker import MaxNLocator

    figure = new_figure(9.0, 3.6)
    curves, ratios = figure.subplots(1, 2)
    shown = [looks[i] for i in sorted({round(i) for i in np.linspace(0, len(looks) - 1, MOST_CURVES)})]
    for loss in looks[0].fresh_loss:
        curves.plot(looks[0].steps, loss, color=GREY, linewidth=1.0, linestyle="--", label="fresh networks")
    for look, colour in zip(shown, depth_colours(len(shown)), strict=True):
        curves.plot(look.steps, look.loss, color=colour, linewidth=1.4, label=f"after task {look.task}")
    curves.set_xlabel("steps on the held-out task")
    curves.set_ylabel("loss on it")
    handles, labels = curves.get_legend_handles_labels()
    named = dict(zip(labels, handles, strict=True))
    curves.legend(named.values(), named.keys(), frameon=False, fontsize=8)
    ratios.axhline(1.0, color=GREY, linewidth=1.0, linestyle="--")
    ratios.plot([look.task for look in looks], [look.ratio for look in looks], color=BLUE, marker="o", markersize=3)
    ratios.set_xlabel("task just trained")
    ratios.xaxis.set_major_locator(MaxNLocator(integer=True))
    ratios.set_ylabel("probe_ratio")
    ratios.set_title("above 1: less trainable than fresh networks", fontsize=10)
    for axes in (curves, ratios):
        plain_frame(axes)
    return figure
