"""The picture of what a run gets wrong while it learns: means over bins of presentations."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from plastiscope.figure.style import BLUE, new_figure, plain_frame, save

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = npt.NDArray[np.float64]


def draw_online(folder: Path) -> list[Path]:
    """Draw what `online` has left in a run folder into <folder>/figures/online.png; nothing if no bin is whole."""
    bins = read_bins(folder)
    return [save(online(bins), folder / "figures" / "online.png")] if len(bins.get("presentations", ())) else []


def read_bins(folder: Path) -> dict[str, Array]:
    """All bins of a run, in order: presentations [b] at their ends, loss [b], and with classes accuracy [b]."""
    names = (path.parents[1].name for path in folder.glob("task_*/online/bins.npz"))
    parts = []
    for name in sorted(names, key=lambda name: int(name.split("_")[1])):
        with np.load(folder / name / "online" / "bins.npz", allow_pickle=False) as stored:
            parts.append(dict(stored))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]} if parts else {}


def online(bins: dict[str, Array]) -> "Figure":
    """A panel for the loss and, where there are classes, one for the accuracy, over presentations."""
    quantities = [name for name in ("loss", "accuracy") if name in bins]
    figure = new_figure(4.5 * len(quantities), 3.4)
    for axes, name in zip(figure.subplots(1, len(quantities), squeeze=False)[0], quantities, strict=True):
        axes.plot(bins["presentations"], bins[name], color=BLUE, marker="o" if len(bins[name]) <= 200 else None, ms=2.5)
        axes.set_xlabel("presentations")
        axes.set_ylabel(f"online {name}, mean of a bin")
        plain_frame(axes)
    return figure
