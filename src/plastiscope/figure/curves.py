"""Curves over seeds: a mean with its band for each group of runs, and published values as stars."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from plastiscope.figure.style import GREY, new_figure, plain_frame
from plastiscope.measure.over_seeds import LEVEL, Array, Band

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Of Okabe and Ito, which colour-blind readers can tell apart; the yellow is left out, white paper swallows it."""
LINES = ("-", "--", ":", "-.")
"""Where there are more groups than colours."""
MARKERS = "os^DvPX"
"""Of the colours, for readers who tell none of them apart, and where curves lie on each other."""
WIDEST, THINNEST = 2.6, 1.4
"""Lines: the first curve is the widest, so that it is seen under another one."""
DENSE, HAIR = 500, 0.7
"""Points of a curve from which on its line is thin and unmarked: thick ones that jump hide each other, and marks at
every so many points would fall on the same epoch of each task."""
MOST_GROUPS = len(COLOURS) * len(LINES)
MOST_MARKED = 20
"""Points of a curve that are marked."""
MOST_IN_ROW = 60
"""Letters of a row of the legend."""
LARGE = 20_000
"""From which largest x on ticks are abbreviated."""


@dataclass(frozen=True, eq=False)
class Curve:
    """One group of runs.

    Attributes:
        label: of the legend, without the number of seeds.
        x: [p].
        band: over seeds, [p].
        style: which colour and line; None = by its place among the curves.
    """

    label: str
    x: Array
    band: Band
    style: int | None = None


@dataclass(frozen=True)
class Mark:
    """A published value.

    Attributes:
        x, y: where; x None = along the whole axis.
        of: index of the curve that it is to be compared with; None = of none.
        is_bound: the value is known to lie below y.
        label: of the legend, for a line along the whole axis.
        is_other: of another protocol than the curve's runs; hollow, or paler.
    """

    x: float | None
    y: float
    of: int | None = None
    is_bound: bool = False
    label: str = ""
    is_other: bool = False


@dataclass(frozen=True)
class CurveLabels:
    """Labels of a picture.

    Attributes:
        x, y: of the axes, with their units.
        title: over it; "" = none.
        interval: bootstrap, stderr or none: what the bands are.
        log_y: whether the y axis is logarithmic.
    """

    x: str
    y: str
    title: str = ""
    interval: str = "bootstrap"
    log_y: bool = False


BANDS = {
    "bootstrap": f"bands: bootstrap {LEVEL:.0%} interval of the mean",
    "stderr": "bands: mean ± standard error",
    "none": "",
}
"""What the bands are, in words."""


def seed_curves(curves: Sequence[Curve], labels: CurveLabels, marks: Sequence[Mark] = ()) -> "Figure":
    """Means of the curves with their bands, and the published values that lie within their range."""
    names = [_named(curve) for curve in curves]
    columns = max(1, min(len(names), MOST_IN_ROW // max(len(name) for name in names)))
    rows = -(-(len(names) + sum(bool(mark.label) for mark in marks) + 2 * bool(marks)) // columns)
    figure = new_figure(max(6.4, 0.09 * max(len(name) for name in names) + 1), 3.6 + 0.2 * rows)
    axes = figure.add_subplot()
    styles = [i if curve.style is None else curve.style for i, curve in enumerate(curves)]
    for i, (curve, name) in enumerate(zip(curves, names, strict=True)):
        width = min(WIDEST, THINNEST + 0.5 * (len(curves) - 1 - i)) if len(curve.x) < DENSE else HAIR
        _draw(axes, curve, name, styles[i], width, labels.interval)
    for mark in marks:
        _mark(axes, mark, GREY if mark.of is None else style_of(styles[mark.of])[0])
    for is_other, said in ((False, "published"), (True, OTHER)):
        if any(mark.x is not None and mark.is_other == is_other for mark in marks):
            axes.plot([], [], "*", **_look(GREY, is_other), markersize=11, linestyle="none", label=said)
    _number_axis(axes, np.concatenate([curve.x for curve in curves]))
    axes.set_xlabel(labels.x)
    axes.set_ylabel(labels.y)
    if labels.log_y:
        axes.set_yscale("log")
    note = BANDS[labels.interval] if any((curve.band.n > 1).any() for curve in curves) else ""
    title = "\n".join(part for part in (labels.title, note) if part)
    if title:
        axes.set_title(title, fontsize=9, color="#404040")
    plain_frame(axes)
    legend = figure.legend(loc="outside upper center", ncols=columns, frameon=False, fontsize=9)
    for line in legend.get_lines():
        line.set_linewidth(max(line.get_linewidth(), 1.2))
    return figure


def style_of(i: int) -> tuple[str, str]:
    """Colour and line of the i-th group."""
    return COLOURS[i % len(COLOURS)], LINES[i // len(COLOURS) % len(LINES)]


def _named(curve: Curve) -> str:
    """Label and number of seeds, from the fewest to the most where points have different numbers."""
    few, many = (int(n) for n in (curve.band.n.min(), curve.band.n.max()))
    n = f"n={many}" if few == many else f"n={few} to {many}"
    return f"{curve.label} ({n})" if curve.label else n


def _draw(axes: "Axes", curve: Curve, name: str, i: int, width: float, interval: str) -> None:
    colour, line = style_of(i)
    band = curve.band
    style: dict[str, Any] = {
        "color": colour,
        "linestyle": line,
        "linewidth": width,
        "marker": MARKERS[i % len(MARKERS)] if len(curve.x) < DENSE else None,
    }
    every = max(1, -(-len(curve.x) // MOST_MARKED))
    axes.plot(curve.x, band.mean, **style, markersize=2.5 + width, markevery=(i % every, every), label=name)
    low, high = {"stderr": (band.mean - band.error, band.mean + band.error)}.get(interval, (band.low, band.high))
    if interval == "none" or not np.isfinite(low).any():
        return
    if len(curve.x) == 1:  # a band of one point would not be seen
        axes.vlines(curve.x, low, high, color=colour, linewidth=1.0)
    axes.fill_between(curve.x, low, high, color=colour, alpha=0.2, linewidth=0)


def _number_axis(axes: "Axes", x: Array) -> None:
    """Ticks at whole numbers where all x are whole; 200k for 200000."""
    from matplotlib.ticker import EngFormatter, MaxNLocator

    if (x == np.round(x)).all():
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    if x.max() >= LARGE:
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))


OTHER = "published, another protocol"
"""What the legend calls values that are not of the runs' own protocol."""


def _look(colour: str, is_other: bool) -> dict[str, Any]:
    """Of a published value: filled, or hollow where it is of another protocol."""
    if is_other:
        return {"color": "white", "markeredgecolor": colour, "markeredgewidth": 1.4}
    return {"color": colour, "markeredgecolor": "black", "markeredgewidth": 0.8}


def _mark(axes: "Axes", mark: Mark, colour: str) -> None:
    if mark.x is None:
        label = f"{mark.label} (another protocol)" if mark.is_other else mark.label
        style = (0, (1, 4)) if mark.is_other else (0, (1, 1.5))
        axes.axhline(mark.y, color=colour, linewidth=1.2, linestyle=style, zorder=1, label=label)
        return
    symbol, size = ("v", 8) if mark.is_bound else ("*", 12)
    axes.plot(mark.x, mark.y, symbol, **_look(colour, mark.is_other), markersize=size, clip_on=False, zorder=5)
