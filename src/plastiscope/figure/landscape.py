"""Pictures of a loss landscape: planes, surfaces, robust surfaces, curves; drawn from the files of a look alone.

`draw(folder)` draws what is in planes/, sam/ and mode/ beside the files. Cells whose loss is not finite are grey.
Where few cells tower over the others, colours end below them, and the colour bar says so.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from plastiscope.figure.style import BLUE, ORANGE, new_figure, plain_frame, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Normalize
    from matplotlib.contour import QuadContourSet
    from matplotlib.figure import Figure

Array = npt.NDArray[Any]
Record = Mapping[str, Any]

SATURATED_FROM = 95
"""Percentile of the finite cells at which colours end, where the largest cell is more than three times as far away."""
LEVELS = 12
TITLES = {
    "hessian": "Loss along eigenvectors of the Hessian",
    "hessian_signed": "Loss along the extreme eigenvectors",
    "random": "Loss along random directions",
    "trajectory": "Loss where the path lies",
    "three_point": "Loss in the plane of the curve",
}


def draw(folder: Path) -> list[Path]:
    """Draw what the files of a look hold: heat maps, surfaces, robust surfaces, curves.

    Args:
        folder: of the look, with planes/, sam/ and mode/.

    Returns:
        The files written, beside those that were read.
    """
    written = []
    for part, pictures in (("planes", _of_plane), ("sam", _of_robust), ("mode", _of_curves)):
        for path in sorted((folder / part).glob("*.json")):
            record = json.loads(path.read_text())
            with np.load(path.with_suffix(".npz"), allow_pickle=False) as file:
                arrays = dict(file)
            for ending, figure in pictures(arrays, record).items():
                written.append(save(figure, path.with_name(f"{path.stem}{ending}.png")))
    return written


def _of_plane(arrays: Mapping[str, Array], record: Record) -> "dict[str, Figure]":
    if "losses" not in arrays:
        return {}
    found = {"": plane(arrays, record)}
    if record["picture"]["plot_3d"] and np.isfinite(arrays["losses"]).any():
        found["_3d"] = relief(arrays, record)
    return found


def _of_robust(arrays: Mapping[str, Array], record: Record) -> "dict[str, Figure]":
    return {"": robust(arrays, record)}


def _of_curves(arrays: Mapping[str, Array], record: Record) -> "dict[str, Figure]":
    return {"": curves(arrays, record)} if "t" in arrays else {}


def plane(arrays: Mapping[str, Array], record: Record) -> "Figure":
    """Heat map with contours; of a path its points and, in a table, their true losses beside those in the plane.

    Args:
        arrays: losses [n, m] at offsets a [n], b [m], norms [2]; path, true_losses, ... of a trajectory.
        record: of the plane.
    """
    has_path = "true_losses" in arrays
    figure = new_figure(10.4 if has_path else 5.2, 4.4)
    axes, *beside = figure.subplots(1, 2, width_ratios=[1.35, 1.2]) if has_path else [figure.add_subplot()]
    colours = Colours.of(arrays["losses"], record["picture"]["log_color"])
    _map(axes, arrays, record, arrays["losses"], colours, "loss")
    if "path" in arrays:
        _mark(axes, arrays, record)
    else:
        axes.plot(0, 0, marker="+", color="white", markersize=9, markeredgewidth=1.6)
    axes.set_title(_title(record), fontsize=10)
    if has_path:
        _table(beside[0], arrays, record)
    return figure


def relief(arrays: Mapping[str, Array], record: Record) -> "Figure":
    """The losses as a surface over the plane, cut off where the colours end."""
    colours = Colours.of(arrays["losses"], record["picture"]["log_color"])
    x, y = places(arrays, record)
    losses = np.where(np.isfinite(arrays["losses"]), np.clip(arrays["losses"], colours.low, colours.high), np.nan)
    heights = np.log10(losses) if colours.is_log else losses
    figure = new_figure(5.6, 4.6)
    axes = figure.add_subplot(projection="3d")
    norm = _plain_norm(np.log10(colours.low), np.log10(colours.high)) if colours.is_log else colours.norm
    count = max(1, max(losses.shape) // 50)
    axes.plot_surface(x, y, heights, cmap="viridis", norm=norm, rstride=count, cstride=count, linewidth=0.2,
                      edgecolor="#00000030", antialiased=True)  # fmt: skip
    first, second = _labels(record)
    axes.set_xlabel(first, fontsize=8)
    axes.set_ylabel(second, fontsize=8)
    axes.set_zlabel("log10 of the loss" if colours.is_log else "loss", fontsize=8)
    axes.tick_params(labelsize=7)
    axes.locator_params(nbins=5)
    cut = f"\ncut off at {colours.high:.3g}; the highest cell: {colours.top:.3g}" if colours.above else ""
    axes.set_title(_title(record) + cut, fontsize=10)
    axes.set_box_aspect(None, zoom=0.8)
    return figure


def robust(arrays: Mapping[str, Array], record: Record) -> "Figure":
    """Plain loss, robust loss in the same colours, and the gap between them."""
    figure = new_figure(13.2, 4.0)
    both = np.concatenate([arrays["losses"].ravel(), arrays["worst"].ravel()])
    colours = Colours.of(both, record["picture"]["log_color"])
    name = "adaptive ball" if record["adaptive"] else "ball"
    panels = [
        ("losses", "loss", "Plain loss", colours),
        ("worst", "robust loss", f"Robust loss, {name} of radius {record['rho']:g}", colours),
        ("gap", "robust loss - loss", "Gap (a lower bound)", Colours.of(arrays["gap"], False)),
    ]
    for axes, (key, label, title, colour) in zip(figure.subplots(1, 3), panels, strict=True):
        _map(axes, arrays, record, arrays[key], colour, label)
        axes.plot(0, 0, marker="+", color="white", markersize=9, markeredgewidth=1.6)
        axes.set_title(title, fontsize=10)
    return figure


def curves(arrays: Mapping[str, Array], record: Record) -> "Figure":
    """Loss and accuracy along the line and the trained curve, with bands of two standard errors."""
    has_accuracy = bool(np.isfinite(arrays["linear_train_accuracy"]).any())
    splits = [split for split in ("train", "test") if f"linear_{split}_loss" in arrays]
    figure = new_figure(4.6 * (1 + has_accuracy) + 0.4, 3.2 * len(splits) + 0.5)
    grid = figure.subplots(len(splits), 1 + has_accuracy, squeeze=False)
    for row, split in zip(grid, splits, strict=True):
        for axes, quantity in zip(row, ("loss", "accuracy")[: 1 + has_accuracy], strict=True):
            for name, colour, label in (("linear", ORANGE, "straight line"), ("bezier", BLUE, "trained curve")):
                _curve(axes, arrays, f"{name}_{split}", quantity, colour, label)
            axes.set_xlabel(f"t (0: {record['ends'][0]}, 1: {record['ends'][1]})")
            axes.set_ylabel(f"{split} {quantity}" + (" (band: 2 s.e.)" if quantity == "loss" else ""))
            plain_frame(axes)
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=8)
    return figure


class Colours(NamedTuple):
    """Where colours begin and end.

    Attributes:
        low, high: losses of the first and the last colour.
        is_log: colours follow the logarithm.
        top: the largest finite value.
        above: finite cells above `high`.
        cells: all cells.
    """

    low: float
    high: float
    is_log: bool
    top: float
    above: int
    cells: int

    @classmethod
    def of(cls, values: Array, wants_log: bool) -> "Colours":
        """Colours for these values; logarithmic only where all finite ones are positive."""
        known = values[np.isfinite(values)]
        if not known.size:
            return cls(0.0, 1.0, False, np.nan, 0, values.size)
        low, top = float(known.min()), float(known.max())
        high, is_log = top, wants_log and low > 0
        inner = float(np.percentile(known, SATURATED_FROM))
        if not is_log and top - low > 3 * (inner - low) > 0:
            high = inner
        if not high > low:
            high = low + max(abs(low), 1.0) * 1e-6
        return cls(low, high, is_log, top, int((known > high).sum()), values.size)

    @property
    def norm(self) -> "Normalize":
        """For matplotlib."""
        from matplotlib.colors import LogNorm

        return LogNorm(self.low, self.high) if self.is_log else _plain_norm(self.low, self.high)

    @property
    def levels(self) -> Array:
        """Of contours, inside."""
        ends = np.geomspace if self.is_log else np.linspace
        return ends(self.low, self.high, LEVELS + 2)[1:-1]

    def label(self, quantity: str) -> str:
        """Of the colour bar; says what is saturated."""
        if not self.above:
            return quantity
        return f"{quantity} ({self.above} of {self.cells} cells above, up to {self.top:.3g})"


def _plain_norm(low: float, high: float) -> "Normalize":
    from matplotlib.colors import Normalize

    return Normalize(low, high)


def places(arrays: Mapping[str, Array], record: Record) -> tuple[Array, Array]:
    """Coordinates [n, m] of the cells: offsets, or orthonormal ones in units of the first direction's length."""
    a, b = np.meshgrid(arrays["a"], arrays["b"], indexing="ij")
    return _orthonormal(a, b, arrays, record) if record.get("drawn_orthonormal") else (a, b)


def _orthonormal(a: Array, b: Array, arrays: Mapping[str, Array], record: Record) -> tuple[Array, Array]:
    cos, ratio = record["cos"], arrays["norms"][1] / arrays["norms"][0]
    return a + b * ratio * cos, b * ratio * np.sqrt(max(0.0, 1 - cos * cos))


def _map(
    axes: "Axes", arrays: Mapping[str, Array], record: Record, values: Array, colours: Colours, label: str
) -> None:
    """Colours, contours and colour bar of one quantity over the plane."""
    x, y = places(arrays, record)
    masked = np.ma.masked_invalid(values)
    axes.set_facecolor("#D9D9D9")  # cells that are not finite
    mesh = axes.pcolormesh(x, y, masked, norm=colours.norm, cmap="viridis", shading="nearest", rasterized=True)
    if masked.count() and masked.max() > masked.min():
        lines = axes.contour(x, y, masked, levels=colours.levels, colors="white", linewidths=0.6)
        _name_contours(axes, lines)
    axes.figure.colorbar(mesh, ax=axes, label=colours.label(label), extend="max" if colours.above else "neither")
    axes.set(xlim=_reach(x), ylim=_reach(y))
    axes.locator_params(nbins=5)  # numbers below a small map touch otherwise
    first, second = _labels(record)
    axes.set_xlabel(first)
    axes.set_ylabel(second)
    axes.grid(False)
    missing = int((~np.isfinite(values)).sum())
    if missing:
        axes.text(0.01, 0.01, f"grey: {missing} cells not finite", transform=axes.transAxes, fontsize=7)


def _reach(centres: Array) -> tuple[float, float]:
    """Ends of an axis that show whole cells [n, m]: half a cell beyond the outermost centres.

    Cells of no extent, as where all weights are one, get a range all the same.
    """
    half = sum(np.abs(np.diff(centres, axis=k)).max(initial=0.0) for k in range(centres.ndim)) / 2 or 0.5
    return float(centres.min() - half), float(centres.max() + half)


def _name_contours(axes: "Axes", lines: "QuadContourSet") -> None:
    axes.clabel(lines, list(lines.levels)[1::3], fontsize=6, fmt="%.3g")


def _labels(record: Record) -> tuple[str, str]:
    """Names of the axes with their units."""
    kind = record["kind"]
    if kind == "three_point":
        return "along the chord (weight distance)", "towards the bend (weight distance)"
    if kind == "trajectory":
        one, two = (f"axis {i + 1} of the path, {100 * share:.1f} %" for i, share in enumerate(_shares(record)))
        two = two if record["second_axis"] == "PCA" else "a random direction"
        return f"{one} (weight distance)", f"{two} (weight distance)"
    if "eigenvalues" in record:
        pairs = zip(record["eigenvalues"], record["norms"], strict=True)
        one, two = (f"eigenvector of eigenvalue {value:.3g}\n({_unit(length)})" for value, length in pairs)
        return one, two
    if record.get("drawn_orthonormal"):
        return "$d_1$ (units of $|d_1|$)", "$d_2$ orthogonal to $d_1$ (units of $|d_1|$)"
    return "$d_1$ (units of $|d_1|$)", "$d_2$ (units of $|d_2|$)"


def _unit(length: float) -> str:
    """What an offset of 1 is along a direction of this length."""
    return "weight distance" if abs(length - 1) < 1e-3 else f"1 = weight distance {length:.3g}"


def _shares(record: Record) -> list[float]:
    return [share or 0.0 for share in record["explained_variance"]]


def _title(record: Record) -> str:
    loss, error = record["center_loss"], record.get("center_stderr")
    if record["kind"] == "three_point":
        return TITLES["three_point"]
    shown = "not finite" if loss is None else f"{loss:.4g}" + (f" +- {error:.1g}" if error is not None else "")
    return f"{TITLES[record['kind']]}\nat the weights (+): {shown}"


def _mark(axes: "Axes", arrays: Mapping[str, Array], record: Record) -> None:
    """The points of a path, numbered, or the ends and the bend of a curve."""
    path = arrays["path"]
    if "curve" in arrays:
        axes.plot(*arrays["curve"].T, color=ORANGE, linewidth=1.6)
        axes.plot(*path[:2].T, color=ORANGE, linewidth=1.0, linestyle="--")
        for (x, y), name in zip(path, record["points"], strict=True):
            axes.plot(x, y, marker="o", color=ORANGE, markersize=5, markeredgecolor="black")
            box = {"facecolor": "white", "alpha": 0.7, "linewidth": 0, "pad": 1}
            axes.annotate(name, (x, y), (0, 7), textcoords="offset points", ha="center", fontsize=8, bbox=box)
        return
    here = _here(record)
    way = path[: len(path) - 1 if here is None else here + 1]
    marker = {"marker": "o", "markersize": 4, "markeredgecolor": "black"}
    style: dict[str, Any] = {"color": ORANGE, "linewidth": 1.2, **marker}
    axes.plot(*way.T, **style)
    if here is not None and here + 1 < len(path):
        axes.plot(*path[here:].T, **style, linestyle="--")
    axes.plot(0, 0, marker="+", color="white", markersize=9, markeredgewidth=1.6)
    for i in _apart(axes, path, len(path) - 1 if here is None else here):
        axes.annotate(str(i), path[i], xytext=(4, 4), textcoords="offset points", fontsize=7, color="white")


def _here(record: Record) -> int | None:
    """Which point of the path are the weights; None = the last one, which no line joins to the others."""
    return record.get("here", len(record["points"]) - 1)


def _apart(axes: "Axes", path: Array, here: int) -> list[int]:
    """Points far enough from those named before them to be named, the first one always, the weights never."""
    size = np.array([np.ptp(axes.get_xlim()), np.ptp(axes.get_ylim())])
    named: list[int] = []
    for i, point in enumerate(path):
        if i != here and all(np.linalg.norm((point - path[j]) / size) > 0.05 for j in named):
            named.append(i)
    return named


def _table(axes: "Axes", arrays: Mapping[str, Array], record: Record) -> None:
    """True loss of each point of the path, the loss where it projects to, and its distance from the plane."""
    from matplotlib.transforms import Bbox

    axes.axis("off")
    columns = zip(arrays["true_losses"], arrays["plane_losses"], arrays["residuals"], strict=True)
    names = [_short(name) for name in record["points"]]
    here = _here(record)
    names[-1 if here is None else here] += " (+)"
    rows = [
        [f"{i} {name}", *(f"{v:.3g}" for v in row)] for i, (name, row) in enumerate(zip(names, columns, strict=True))
    ]
    heads = ["point", "true loss", "on the plane", "distance"]
    height = min(0.95, 0.055 * (len(rows) + 2))
    table = axes.table(
        rows, colLabels=heads, colWidths=[0.42, 0.18, 0.22, 0.18], bbox=Bbox.from_bounds(0, 0.97 - height, 1, height)
    )
    table.auto_set_font_size(False)
    table.set_fontsize(7)
    for cell in table.get_celld().values():
        cell.set_linewidth(0.3)
    after = here is not None and here + 1 < len(names)
    note = "\ndashed: epochs after the selected weights" if after else ""
    axes.set_title(f"The contours are those of the plane\nthrough the weights, not of the path{note}", fontsize=9)


def _short(name: str) -> str:
    return name if len(name) <= 22 else f"...{name[-19:]}"


def _curve(axes: "Axes", arrays: Mapping[str, Array], key: str, quantity: str, colour: str, label: str) -> None:
    """One curve, with its stale twin dashed where there is one."""
    t, values = arrays["t"], arrays[f"{key}_{quantity}"]
    axes.plot(t, values, color=colour, marker="o", markersize=3, linewidth=1.4, label=label)
    if quantity == "loss":
        errors = 2 * arrays[f"{key}_stderr"]
        axes.fill_between(t, values - errors, values + errors, color=colour, alpha=0.2, linewidth=0)
    if f"{key}_stale_{quantity}" in arrays:
        stale = arrays[f"{key}_stale_{quantity}"]
        axes.plot(t, stale, color=colour, linestyle=":", linewidth=1.2, label=f"{label}, stale statistics")
