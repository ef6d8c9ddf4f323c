"""Pictures of what every sample's loss has been: distributions, by class, by entry task, against other scores."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from plastiscope.figure.style import BLUE, GREY, ORANGE, new_figure, plain_frame, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = npt.NDArray
Scores = Mapping[str, Array]
"""Values [n] by the label of their axis."""

MOST_POINTS = 3000
"""Of more samples the density is shown, not each of them."""
MOST_BOXES = 20
"""Of more groups mean and standard deviation are shown, not the quartiles."""
MOST_VALUES = 60
"""Of a score that takes more values, or seldom one of them twice, ranges are counted."""
BINS = 10
BOXES = "line: median; box: quartiles; dots: samples beyond\nwhiskers: farthest sample within 1.5 box heights"
"""What the parts of a box mean."""


class BinMeans(NamedTuple):
    """Mean of one score in bins of another; all [bins].

    Attributes:
        centres: mean of the score that is binned.
        means, errors: mean of the other one, and its standard error (standard deviation / sqrt(n), ddof 1).
        counts: samples in each bin.
    """

    centres: Array
    means: Array
    errors: Array
    counts: Array


def bin_means(score: Array, values: Array, bins: int = BINS) -> BinMeans:
    """Mean and standard error of `values` [n] in bins of `score` [n] that hold equally many samples.

    Samples without either are left out. Samples of equal score are not torn apart: bin edges are quantiles, and bins
    that would be empty for ties are not there. A single sample has no standard error (NaN).
    """
    known = np.isfinite(score) & np.isfinite(values)
    score, values = score[known].astype(np.float64), values[known].astype(np.float64)
    if len(score) == 0:
        return BinMeans(np.empty(0), np.empty(0), np.empty(0), np.empty(0, np.int64))
    inner = np.unique(np.quantile(score, np.arange(1, bins) / bins))
    _, place = np.unique(np.searchsorted(inner, score, side="right"), return_inverse=True)
    counts = np.bincount(place)
    means = np.bincount(place, values) / counts
    squares = np.bincount(place, (values - means[place]) ** 2)
    errors = np.where(counts > 1, np.sqrt(squares / np.maximum(counts - 1, 1) / counts), np.nan)
    return BinMeans(np.bincount(place, score) / counts, means, errors, counts)


def histograms(scores: Scores) -> "Figure":
    """A histogram of each score, with the median as a line; few samples count: the scale of the counts is logarithmic.

    A score that takes few values, such as a share of few epochs, has a bar at each of them.
    Samples without a value are left out and counted in the title.
    """
    figure = new_figure(4.2 * len(scores), 3.2)
    for axes, (label, values) in zip(figure.subplots(1, len(scores), squeeze=False)[0], scores.items(), strict=True):
        known = values[np.isfinite(values)]
        values_there, counts = np.unique(known, return_counts=True)
        if len(values_there) <= MOST_VALUES and 2 * len(values_there) <= len(known):
            axes.bar(values_there, counts, width=_bar_width(values_there), color=BLUE)
        else:
            axes.hist(known, bins=min(50, max(10, int(np.sqrt(len(known))))), color=BLUE)
        axes.axvline(np.median(known), color=ORANGE, linewidth=1.4, label=f"median {np.median(known):.3g}")
        axes.set_xlabel(label)
        axes.set_yscale("log")
        axes.set_ylim(bottom=0.7)  # a bar of one sample is seen
        axes.set_ylabel("samples (log scale)")
        missing = len(values) - len(known)
        axes.set_title(f"{len(known)} samples" + (f", {missing} without a value" if missing else ""), fontsize=10)
        axes.legend(frameon=False)
        plain_frame(axes)
    return figure


def _bar_width(values: Array) -> float:
    """Of bars at ascending values: they do not touch, and can be seen."""
    gaps = np.diff(values)
    return 0.5 if len(gaps) == 0 else max(0.8 * float(gaps.min()), 0.005 * float(values[-1] - values[0]))


def one_against_another(x: Array, y: Array, labels: tuple[str, str], marked: Array | None = None) -> "Figure":
    """One score against another: each sample a point, or their density when they are many.

    Args:
        x: [n].
        y: [n].
        labels: of the axes.
        marked: bool [n], such as "its label was changed"; shown in another colour.
    """
    known = np.isfinite(x) & np.isfinite(y)
    figure = new_figure(4.8, 3.8)
    axes = figure.add_subplot()
    if known.sum() > MOST_POINTS:
        cells = axes.hexbin(x[known], y[known], gridsize=45, bins="log", cmap="viridis", mincnt=1, linewidths=0)
        figure.colorbar(cells, ax=axes, label="samples in a cell")
    else:
        axes.scatter(x[known], y[known], s=9, color=BLUE, alpha=0.45, linewidths=0)
    if marked is not None and marked.any():
        some = known & marked
        axes.scatter(x[some], y[some], s=9, color=ORANGE, linewidths=0, label="label changed")
        axes.legend(frameon=False)
    axes.set_xlabel(labels[0])
    axes.set_ylabel(labels[1])
    plain_frame(axes)
    return figure


def by_group(values: Array, groups: Array, labels: tuple[str, str], order: Sequence[int] | None = None) -> "Figure":
    """A score by class, entry task or the like: quartiles and whiskers of each, or mean and standard deviation.

    How many samples a group has stands over its box, or over all of them from which to which number.

    Args:
        values: [n].
        groups: int [n]; only groups with a value are shown.
        labels: of the axes: the groups, the score.
        order: of the groups, left to right; ascending by default.
    """
    known = np.isfinite(values)
    there = set(np.unique(groups[known]).tolist())
    shown = [group for group in (sorted(there) if order is None else order) if group in there]
    figure = new_figure(max(3.6, min(9.0, 1.2 + 0.5 * len(shown))), 3.4)
    axes = figure.add_subplot()
    parts = [values[known & (groups == group)] for group in shown]
    if len(shown) <= MOST_BOXES:
        dots = {"marker": ".", "markersize": 3, "markerfacecolor": GREY, "markeredgecolor": "none"}
        boxes = axes.boxplot(parts, positions=range(len(shown)), widths=0.6, flierprops=dots, patch_artist=True)
        for box in boxes["boxes"]:
            box.set(facecolor=BLUE, alpha=0.35, edgecolor=BLUE)
        for median in boxes["medians"]:
            median.set_color(ORANGE)
        axes.set_xticks(range(len(shown)), [str(group) for group in shown])
        for x, part in enumerate(parts):
            over = axes.get_xaxis_transform()
            axes.text(x, 1.01, f"n={len(part)}", fontsize=7, color=GREY, ha="center", transform=over)
        axes.set_ylabel(labels[1])
        axes.set_title(BOXES, fontsize=7, color=GREY, pad=14)
    else:
        means, deviations = [p.mean(dtype=np.float64) for p in parts], [p.std(dtype=np.float64) for p in parts]
        _bars(axes, np.arange(len(shown)), np.array(means), np.array(deviations), BLUE)
        _name_some(axes, shown)
        axes.set_ylabel(f"{labels[1]}: mean, std")
        axes.set_title(f"{_from_to([len(part) for part in parts])} samples each", fontsize=10)
    axes.set_xlabel(labels[0])
    plain_frame(axes)
    return figure


def memorization_by_bins(memorization: Array, scores: Scores, bins: int = BINS) -> "Figure":
    """Mean memorization in bins of each score, with standard errors; a bin holds as many samples as the others.

    Args:
        memorization: [n], NaN = unknown.
        scores: values [n] by the label of their axis, such as CSL and learning time.
        bins: of equally many samples, at most so many.
    """
    figure = new_figure(4.2 * len(scores), 3.2)
    for axes, (label, values) in zip(figure.subplots(1, len(scores), squeeze=False)[0], scores.items(), strict=True):
        found = bin_means(values, memorization, bins)
        _bars(axes, found.centres, found.means, found.errors, BLUE)
        axes.plot(found.centres, found.means, color=BLUE, linewidth=1.0)
        axes.set_xlabel(f"{label}, mean of the bin")
        axes.set_ylabel("memorization (mean, s.e.)")
        axes.set_title(f"{len(found.counts)} bins of {_from_to(found.counts.tolist())} samples", fontsize=10)
        plain_frame(axes)
    return figure


def draw_csl(
    found: Mapping[str, Array], definition: str, target: Path, memorization: Array | None = None
) -> list[Path]:
    """Draw what there are columns for, of the training samples.

    Args:
        found: columns [n] of the per-sample table: `definition`, label, split, entry_task, and lt_frac where gradients
            were measured.
        definition: the CSL to show, such as csl_sum.
        target: folder for csl_histogram.png, csl_by_class.png, csl_by_entry_task.png, csl_against_learning_time.png
            and csl_memorization.png.
        memorization: [n], NaN = unknown; None = not drawn.

    Returns:
        The files written.
    """
    train = found["split"] == 0
    columns = {name: values[train] for name, values in found.items()}
    if not train.any() or not np.isfinite(columns[definition]).any():
        return []
    label = f"{definition} (nats)" if (columns["label"] >= 0).any() else f"{definition} (units of the loss)"
    scores = {label: columns[definition]}
    if "lt_frac" in columns and np.isfinite(columns["lt_frac"]).any():
        scores["lt_frac (fraction of epochs)"] = columns["lt_frac"]
    figures = {"csl_histogram": histograms(scores)}
    if (columns["label"] >= 0).any():
        is_noisy = (columns["label"] != columns["label_trained"]).any()
        axis = "class before label noise" if is_noisy else "class"
        figures["csl_by_class"] = by_group(columns[definition], columns["label"], (axis, label))
    if len(np.unique(columns["entry_task"])) > 1:
        groups = ("task with which the sample entered", label)
        figures["csl_by_entry_task"] = by_group(columns[definition], columns["entry_task"], groups)
    if len(scores) > 1:
        is_changed = columns["label"] != columns["label_trained"]
        names = ("lt_frac (fraction of epochs)", label)
        figures["csl_against_learning_time"] = one_against_another(
            columns["lt_frac"], columns[definition], names, is_changed
        )
    if memorization is not None and np.isfinite(memorization[train]).any():
        figures["csl_memorization"] = memorization_by_bins(memorization[train], scores)
    return [save(figure, target / f"{name}.png") for name, figure in figures.items()]


def _from_to(counts: Sequence[int]) -> str:
    """The least and the most of some counts."""
    few, many = min(counts, default=0), max(counts, default=0)
    return str(few) if few == many else f"{few} to {many}"


def _bars(axes: "Axes", x: Array, y: Array, errors: Array, colour: str) -> None:
    axes.errorbar(x, y, yerr=errors, fmt="o", markersize=4, color=colour, ecolor=GREY, elinewidth=1.0, capsize=2)


def _name_some(axes: "Axes", groups: Sequence[int]) -> None:
    """Ticks at groups, named, not more than fit."""
    step = -(-len(groups) // MOST_BOXES)
    places = range(0, len(groups), step)
    axes.set_xticks(list(places), [str(groups[i]) for i in places])
