"""Pictures of the table of samples: pairs of scores, difficulty over tasks, scores in bins, effects of the order."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from plastiscope.figure.csl import MOST_POINTS, BinMeans
from plastiscope.figure.style import BLUE, GREY, ORANGE, depth_colours, epoch_axis, new_figure, plain_frame
from plastiscope.measure.comparison import spearman

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = npt.NDArray[np.floating]
MOST_NAMED = 8
"""Entry tasks up to which the legend names each; of more, the first, the middle and the last."""


def pairs(scores: Mapping[str, Array]) -> "Figure":
    """Each score against each other one, below the diagonal; its histogram on the diagonal.

    Args:
        scores: [n] by name, two or more; NaN = unknown. Each panel shows the samples that have both, and says their
            Spearman correlation.
    """
    names = list(scores)
    side = len(names)
    figure = new_figure(2.3 * side + 0.6, 2.2 * side + 0.3)
    for i, below in enumerate(names):
        for j, left in enumerate(names[: i + 1]):
            axes = figure.add_subplot(side, side, i * side + j + 1)
            if i == j:
                _histogram(axes, scores[below])
            else:
                cloud(axes, scores[left], scores[below])
            plain_frame(axes)
            axes.tick_params(labelsize=7)
            axes.set_xlabel(left if i == side - 1 else "", fontsize=8)
            axes.set_ylabel("samples" if i == j else below if j == 0 else "", fontsize=8)
    return figure


def cloud(axes: "Axes", x: Array, y: Array) -> None:
    """One score against another: points, or their density; the title says the Spearman correlation.

    Axes of skewed scores are logarithmic. A score that is constant has no correlation, and the title says so.
    """
    known = np.isfinite(x) & np.isfinite(y)
    scales: dict[str, Any] = {}
    for scale, values in (("xscale", x), ("yscale", y)):
        scales[scale] = "log" if is_skewed(values[known]) else "linear"
    if known.sum() > MOST_POINTS:
        axes.hexbin(x[known], y[known], gridsize=40, bins="log", cmap="viridis", mincnt=1, linewidths=0, **scales)
    else:
        axes.scatter(x[known], y[known], s=5, alpha=0.35, color=BLUE, linewidths=0)
        axes.set(**scales)
    agreement = spearman(x, y)
    said = f"Spearman {agreement.value:.2f}"
    if not np.isfinite(agreement.value):
        said = "one score constant" if agreement.n else "no sample has both"
    axes.set_title(f"{said}, n = {agreement.n:,}", fontsize=8)


def is_constant(values: Array) -> bool:
    """Whether the known values are all the same, or there is none."""
    known = values[np.isfinite(values)]
    return len(known) == 0 or known.min() == known.max()


def is_skewed(values: Array) -> bool:
    """Whether a score is positive and reaches to more than ten times its median, as losses do."""
    return len(values) > 0 and values.min() > 0 and values.max() > 10 * np.median(values)


def difficulty_over_tasks(
    by_entry: BinMeans, quantity: str, epochs: Array, curves: Mapping[int, Array], boundaries: Sequence[int]
) -> "Figure":
    """How hard the samples of each task are: a score by the task of entry, and their mean loss over the epochs.

    Args:
        by_entry: mean of the score by entry task, with standard errors.
        quantity: what the score is.
        epochs: [e] epochs completed.
        curves: mean loss [e] by entry task; NaN before the samples have entered. Without any, only the score is shown.
        boundaries: epochs completed when each task but the first began.
    """
    from matplotlib.ticker import MaxNLocator

    figure = new_figure(9.8 if curves else 4.4, 3.4)
    left, *others = figure.subplots(1, 2, width_ratios=[1, 1.5]) if curves else [figure.add_subplot()]
    _means(left, by_entry)
    left.xaxis.set_major_locator(MaxNLocator(integer=True))
    left.set_xlabel("task of entry")
    left.set_ylabel(f"{quantity}: mean, s.e.")
    for axes in others:
        _loss_curves(axes, epochs, curves, boundaries)
    for axes in (left, *others):
        plain_frame(axes)
    return figure


def _loss_curves(axes: "Axes", epochs: Array, curves: Mapping[int, Array], boundaries: Sequence[int]) -> None:
    epoch_axis(axes, boundaries)
    drawn = {}
    for (task, values), colour in zip(curves.items(), depth_colours(len(curves)), strict=True):
        known = np.isfinite(values)
        (drawn[f"task {task}"],) = axes.plot(epochs[known], values[known], color=colour, linewidth=1.3)
    names = list(drawn)
    names = names if len(names) <= MOST_NAMED else [names[0], names[len(names) // 2], names[-1]]
    figure = axes.get_figure(root=True)
    assert figure is not None
    lines = [drawn[name] for name in names]
    figure.legend(
        lines, names, title="samples that\nentered with", loc="outside right center", frameon=False, fontsize=8
    )
    axes.set_ylabel("mean loss (nats)")
    axes.set_ylim(bottom=0)


def in_bins(panels: Sequence[tuple[str, str, Array, Array, BinMeans]]) -> "Figure":
    """Scores against others, each as its samples and as means in bins with standard errors.

    Args:
        panels: (label of x, label of y, x [n], y [n], means of y in bins of x).
    """
    figure = new_figure(4.4 * len(panels), 3.4)
    for place, (x_name, y_name, x, y, means) in enumerate(panels, start=1):
        axes = figure.add_subplot(1, len(panels), place)
        cloud(axes, x, y)
        _means(axes, means, ORANGE)
        axes.set_xlabel(x_name)
        axes.set_ylabel(y_name)
        plain_frame(axes)
    return figure


def order_effects(change: BinMeans, score: BinMeans, quantity: str) -> "Figure":
    """What the place in the epoch's order of presentation does.

    Args:
        change: change of the loss from the end of the epoch before to the end of the epoch, less the mean change of
            all samples in that epoch, by place in the order.
        score: mean of a score by the mean place of the sample over all epochs.
        quantity: what the score is.
    """
    figure = new_figure(9.0, 3.4)
    left, right = figure.subplots(1, 2)
    _means(left, change)
    left.axhline(0, color=GREY, linewidth=0.8, zorder=0)
    left.set_xlabel("place in the epoch (0 = first, 1 = last)")
    left.set_ylabel("change of the loss over the epoch,\nless the mean of all samples (nats)")
    _means(right, score)
    right.set_xlabel("mean place over all epochs")
    right.set_ylabel(f"{quantity}: mean, s.e.")
    for axes in (left, right):
        plain_frame(axes)
    return figure


def _means(axes: "Axes", means: BinMeans, colour: str = BLUE) -> None:
    axes.errorbar(
        means.centres, means.means, means.errors, color=colour, marker="o", markersize=4, linewidth=1.3, capsize=2
    )


def _histogram(axes: "Axes", values: Array) -> None:
    known = values[np.isfinite(values)]
    if is_skewed(known):
        axes.hist(known, bins=np.geomspace(known.min(), known.max(), 31).tolist(), color=GREY)
        axes.set_xscale("log")
    elif len(known):
        axes.hist(known, bins=30, color=GREY)
    axes.set_title(f"{'constant, ' if len(known) and is_constant(known) else ''}n = {len(known):,}", fontsize=8)
