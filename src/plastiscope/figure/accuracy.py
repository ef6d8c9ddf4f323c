"""Pictures of accuracy: over epochs, and on each task after each task."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from plastiscope.figure.style import BLUE, GREY, ORANGE, epoch_axis, new_figure, plain_frame

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = npt.NDArray[np.float64]
TRAINING = "training (while it learns)"
COLOURS = {TRAINING: GREY, "validation": ORANGE, "test": BLUE}
"""The curves there are."""
MOST_LABELLED = 12
"""Tasks up to which the cells of a matrix have room for their numbers."""


def accuracy_over_epochs(
    epochs: Array, curves: Mapping[str, Array], boundaries: Sequence[int], quantity: str
) -> "Figure":
    """Curves over the epochs completed by the run, broken where a task begins.

    Args:
        epochs: [e] epochs completed.
        curves: by name (of COLOURS), [e]; NaN = not measured.
        boundaries: epochs completed when each task but the first began.
        quantity: label of the y axis, such as "accuracy".
    """
    figure = new_figure(8.0, 3.6)
    axes = figure.add_subplot()
    epoch_axis(axes, boundaries)
    for name, values in curves.items():
        axes.plot(
            *broken(epochs, values, boundaries),
            color=COLOURS[name],
            linewidth=1.4,
            marker="o" if len(epochs) <= 200 else None,
            markersize=2.5,
            label=name,
        )
    axes.set_ylabel(quantity)
    axes.margins(x=0.02)
    plain_frame(axes)
    figure.legend(loc="outside upper right", ncols=len(curves), frameon=False)
    return figure


def broken(epochs: Array, values: Array, boundaries: Sequence[int]) -> tuple[Array, Array]:
    """The measured points of a curve with a gap where a task begins; without gaps if no task has two points."""
    x, y = epochs[np.isfinite(values)], values[np.isfinite(values)]
    task = np.searchsorted(np.asarray(boundaries), x, side="left")
    starts = np.flatnonzero(np.diff(task)) + 1
    if len(starts) + 1 == len(x):
        return x, y
    return np.insert(x, starts, np.nan), np.insert(y, starts, np.nan)


def accuracy_matrix(matrix: Array, quantity: str) -> "Figure":
    """The matrix a[i, j] as colours, with its numbers where there is room.

    Args:
        matrix: [i, j] on task j after training on task i; NaN = not measured, or without meaning.
        quantity: label of the colours, such as "test accuracy".
    """
    rows, columns = matrix.shape
    side = min(max(0.55 * columns, 3.2), 8.0)
    figure = new_figure(side + 1.6, side * min(max(rows / columns, 0.4), 1.0) + 0.8)
    axes = figure.add_subplot()
    axes.set_facecolor("#E6E6E6")
    low, high = (0.0, 1.0) if np.nanmin(matrix) >= 0 else (float(np.nanmin(matrix)), float(np.nanmax(matrix)))
    image = axes.imshow(np.ma.masked_invalid(matrix), cmap="viridis", vmin=low, vmax=high, interpolation="nearest")
    if columns <= MOST_LABELLED:
        for (i, j), value in np.ndenumerate(matrix):
            if np.isfinite(value):
                dark = value < low + 0.6 * (high - low)
                axes.text(j, i, f"{value:.2f}", ha="center", va="center", color="w" if dark else "k", fontsize=8)
        axes.set_xticks(range(columns))
        axes.set_yticks(range(rows))
    axes.set_xlabel("task tested")
    axes.set_ylabel("task just trained")
    figure.colorbar(image, ax=axes, label=quantity + " (grey: none)")
    return figure
