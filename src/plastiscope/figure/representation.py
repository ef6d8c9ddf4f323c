"""Pictures of a network's representations and weights over a run."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from plastiscope.figure.style import depth_colours, epoch_axis, new_figure, plain_frame

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = npt.NDArray[np.float64]
MOST_NAMED = 8
"""Layers up to which the legend names each; of more, the first, the middle and the last."""


def quantities_over_epochs(
    epochs: Array, panels: Mapping[str, Mapping[str, Array]], boundaries: Sequence[int]
) -> "Figure":
    """A panel for each quantity, in it a curve for each layer, coloured by depth.

    Args:
        epochs: [e] epochs completed.
        panels: by label of the y axis: curves [e] by layer in order from the input; NaN = not measured.
        boundaries: epochs completed when each task but the first began.
    """
    columns = min(len(panels), 2)
    rows = -(-len(panels) // columns)
    figure = new_figure(4.4 * columns, 2.8 * rows + 0.5)
    layers = list(dict.fromkeys(layer for curves in panels.values() for layer in curves))
    colours = dict(zip(layers, depth_colours(len(layers)), strict=True))
    for place, (quantity, curves) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(rows, columns, place)
        epoch_axis(axes, boundaries)
        for layer, values in curves.items():
            measured = np.isfinite(values)
            axes.plot(
                epochs[measured],
                values[measured],
                color=colours[layer],
                linewidth=1.4,
                marker="o" if len(epochs) <= 100 else None,
                markersize=3,
                label=layer,
                clip_on=False,
            )
        axes.set_ylim(bottom=0)
        axes.set_title(quantity, fontsize=10)
        plain_frame(axes)
    named = layers if len(layers) <= MOST_NAMED else [layers[0], layers[len(layers) // 2], layers[-1]]
    lines = {line.get_label(): line for axes in figure.axes for line in axes.get_lines()}
    figure.legend([lines[name] for name in named], named, loc="outside lower center", ncols=len(named), frameon=False)
    return figure
