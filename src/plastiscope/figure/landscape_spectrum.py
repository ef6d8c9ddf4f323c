"""Pictures of the spectrum of a Hessian: density with its extreme eigenvalues, and distribution; from files alone."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from plastiscope.figure.style import BLUE, GREY, ORANGE, new_figure, plain_frame, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = npt.NDArray[Any]
Arrays = Mapping[str, Array]
NARROW = 0.1
"""An axis is linear around zero and logarithmic beyond, if half of the weight lies within this share of the range."""
LOWEST = 1e-8
"""Of the density's peak, the smallest that is shown; an eigenvalue that stands alone weighs about 1/D."""


def draw(folder: Path) -> list[Path]:
    """Draw spectrum/density.png of a look's files.

    Args:
        folder: of the look, with spectrum/.

    Returns:
        The files written.
    """
    place = folder / "spectrum"
    if not (place / "density.npz").exists():
        return []
    density, about = _stored(place / "density")
    pairs, about_pairs = _stored(place / "eigenvalues")
    return [save(spectrum(density, about, pairs, about_pairs), place / "density.png")]


def spectrum(density: Arrays, about: Mapping[str, Any], pairs: Arrays, about_pairs: Mapping[str, Any]) -> "Figure":
    """Density with ticks at the extreme eigenvalues, and the distribution function with its spread over runs.

    Args:
        density: grid, values [bins]; nodes, weights, run [n].
        about: record of the density.
        pairs: values, converged [k]; num_top.
        about_pairs: record of the eigenvalues.
    """
    figure = new_figure(9.6, 3.8)
    left, right = figure.subplots(1, 2)
    _density(left, density, about, pairs)
    _distribution(right, density, about)
    for axes in (left, right):
        axes.set_xlabel("eigenvalue")
        axes.axvline(0, color=GREY, linewidth=0.6, zorder=0)
        axes.tick_params(labelsize=8)
        plain_frame(axes)
    steps = about["lanczos_steps"]
    figure.suptitle(
        f"Spectrum of the Hessian, {about['dimension']:,} weights, {about['samples']:,} samples; "
        f"{len(steps)} runs of {max(steps)} steps, {int(pairs['num_top'])} top and "
        f"{len(pairs['values']) - int(pairs['num_top'])} bottom eigenvalues ({about_pairs['dtype']})",
        fontsize=9,
    )
    return figure


def distribution(density: Arrays) -> tuple[Array, Array, Array]:
    """Nodes ascending, and mean and standard deviation over runs of the weight at or below each (NaN of one run)."""
    at = np.unique(density["nodes"])
    runs = []
    for run in np.unique(density["run"]):
        own = density["run"] == run
        order = np.argsort(density["nodes"][own])
        summed = np.concatenate([[0.0], density["weights"][own][order].cumsum()])
        runs.append(summed[np.searchsorted(density["nodes"][own][order], at, side="right")])
    spread = np.std(runs, axis=0, ddof=1) if len(runs) > 1 else np.full(len(at), np.nan)
    return at, np.mean(runs, axis=0), spread


def linear_within(density: Arrays) -> float | None:
    """Half width of the linear part of an axis that is logarithmic beyond; None where the whole is linear."""
    size, weights = np.abs(density["nodes"]), density["weights"]
    order = np.argsort(size)
    half = size[order][np.searchsorted(weights[order].cumsum(), weights.sum() / 2)]
    largest = size.max()
    return max(float(half), 1e-4 * float(largest)) if half < NARROW * largest else None


def _density(axes: "Axes", density: Arrays, about: Mapping[str, Any], pairs: Arrays) -> None:
    grid, values = density["grid"], density["values"]
    shown = np.where(values > LOWEST * values.max(), values, np.nan)
    axes.fill_between(grid, LOWEST * values.max(), shown, color=BLUE, alpha=0.25, linewidth=0)
    axes.plot(grid, shown, color=BLUE, linewidth=1.2)
    axes.set_yscale("log")
    axes.set_ylim(np.nanmin(shown) / 2, values.max() * 3)
    axes.set_ylabel("density")
    top = int(pairs["num_top"])
    for name, chosen, colour in (("top", slice(0, top), ORANGE), ("bottom", slice(top, None), GREY)):
        found, is_sure = pairs["values"][chosen], pairs["converged"][chosen].astype(bool)
        for mark, places, told in (("|", found[is_sure], ""), ("x", found[~is_sure], ", not converged")):
            if len(places):
                label = f"{len(places)} {name} eigenvalues{told}"
                low = np.full(len(places), axes.get_ylim()[0] * 2)
                axes.plot(places, low, mark, color=colour, markersize=9, markeredgewidth=1.6, label=label)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=7, frameon=False, loc="upper right")
    axes.set_title(f"Density, smoothed with a Gaussian of width {about['sigma']:.2g}", fontsize=9)


def _distribution(axes: "Axes", density: Arrays, about: Mapping[str, Any]) -> None:
    at, mean, spread = distribution(density)
    axes.step(at, mean, where="post", color=BLUE, linewidth=1.2)
    if np.isfinite(spread).all():
        low, high = np.clip(mean - spread, 0, 1), np.clip(mean + spread, 0, 1)
        axes.fill_between(at, low, high, step="post", color=BLUE, alpha=0.25, linewidth=0)
    width = linear_within(density)
    if width is not None:
        axes.set_xscale("symlog", linthresh=width, linscale=0.5)
        from matplotlib.ticker import MaxNLocator

        ends = [value for value in (at.min(), at.max()) if abs(value) > width]
        axes.set_xticks(sorted({0.0, *(float(np.sign(v)) * 10.0 ** np.floor(np.log10(abs(v))) for v in ends)}))
        axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.set_ylim(-0.02, 1.02)
    axes.set_ylabel("share of eigenvalues at or below")
    axes.set_title("Distribution" + (" and its standard deviation over runs" if np.isfinite(spread).all() else ""),
                   fontsize=9)  # fmt: skip


def _stored(path: Path) -> tuple[dict[str, Array], dict[str, Any]]:
    with np.load(path.with_suffix(".npz"), allow_pickle=False) as file:
        return dict(file), json.loads(path.with_suffix(".json").read_text())
