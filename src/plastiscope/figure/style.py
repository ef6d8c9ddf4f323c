"""Colours, axes and writing that all figures share; no global state of matplotlib is touched."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from plastiscope.run.storage import write_by

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREY = "#0072B2", "#E69F00", "#7F7F7F"
"""Of the palette of Okabe and Ito, which colour-blind readers can tell apart; grey for what is only context."""

MOST_BOUNDARIES = 40
"""With more tasks their boundaries would hide the curves."""


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure of so many inches whose parts do not overlap."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def save(figure: "Figure", path: Path) -> Path:
    """Write a PNG; equal figures give equal bytes (no version, no date)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_by(path, lambda file: figure.savefig(file, format="png", dpi=150, metadata={"Software": None}))
    return path


def depth_colours(n: int) -> list[tuple[float, ...]]:
    """`n` colours from dark (the first layer) to light (the last), distinct for every kind of colour vision."""
    from matplotlib import colormaps

    return [tuple(colormaps["viridis"](0.85 * i / max(n - 1, 1))) for i in range(n)]


def epoch_axis(axes: "Axes", boundaries: Sequence[int]) -> None:
    """An axis of epochs, and thin lines where a new task begins, unless there are too many."""
    from matplotlib.ticker import MaxNLocator

    are_marked = 0 < len(boundaries) <= MOST_BOUNDARIES
    axes.set_xlabel("epochs completed" + (" (dotted: a new task begins)" if are_marked else ""))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    for epoch in boundaries if are_marked else ():
        axes.axvline(epoch, color=GREY, linewidth=0.6, linestyle=":", zorder=0)


def plain_frame(axes: "Axes") -> None:
    """Only the axes that carry numbers."""
    axes.spines[["top", "right"]].set_visible(False)
