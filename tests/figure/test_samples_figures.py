"""The pictures of the table show the numbers they are given."""

import numpy as np
import pytest
from matplotlib.collections import PathCollection, PolyCollection

from plastiscope.figure.csl import BinMeans, bin_means
from plastiscope.figure.samples import difficulty_over_tasks, in_bins, is_skewed, order_effects, pairs
from plastiscope.figure.style import save

NAN = float("nan")
RANDOM = np.random.default_rng(0)
FEW = RANDOM.normal(size=50)


def points(axes) -> np.ndarray:
    (found,) = (child for child in axes.collections if isinstance(child, PathCollection))
    return np.asarray(found.get_offsets())


def means_of(axes) -> list[tuple[float, float]]:
    """Points of the first curve with error bars."""
    line = axes.containers[0].lines[0]
    return list(zip(line.get_xdata(), line.get_ydata(), strict=True))


def test_pairs_show_the_samples_that_have_both():
    other = np.where(np.arange(50) < 10, NAN, 2 * FEW)
    figure = pairs({"csl": FEW, "memorization": other, "curvature": -FEW})
    assert len(figure.axes) == 6
    by_place = {
        (axes.get_subplotspec().rowspan.start, axes.get_subplotspec().colspan.start): axes for axes in figure.axes
    }
    shown = by_place[1, 0]  # memorization over csl
    np.testing.assert_array_equal(points(shown), np.stack([FEW[10:], other[10:]], 1))
    assert shown.get_title() == "Spearman 1.00, n = 40"
    assert by_place[2, 0].get_title() == "Spearman -1.00, n = 50"
    assert (by_place[2, 1].get_xlabel(), by_place[2, 0].get_ylabel()) == ("memorization", "curvature")
    assert by_place[1, 1].get_title() == "n = 40"
    assert sum(bar.get_height() for bar in by_place[1, 1].patches) == 40


def test_many_samples_are_shown_as_their_density():
    x = RANDOM.lognormal(sigma=2, size=5000)
    y = np.where(np.arange(5000) < 500, NAN, x)
    axes = pairs({"x": x, "y": y}).axes[1]
    (cells,) = (child for child in axes.collections if isinstance(child, PolyCollection))
    assert np.asarray(cells.get_array()).sum() == 4500
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")


def test_axes_are_logarithmic_only_for_positive_skewed_scores():
    assert is_skewed(np.array([0.1, 0.1, 5.0]))
    assert not is_skewed(np.array([0.0, 0.1, 5.0]))
    assert not is_skewed(np.array([0.1, 0.1, 0.9]))
    assert not is_skewed(np.array([]))


def test_difficulty_by_task_of_entry_and_over_the_epochs():
    by_entry = BinMeans(np.array([0.0, 1.0]), np.array([0.5, 0.7]), np.array([0.1, 0.2]), np.array([10, 12]))
    curves = {0: np.array([1.0, 0.5, 0.4]), 1: np.array([NAN, NAN, 2.0])}
    figure = difficulty_over_tasks(by_entry, "csl", np.array([1.0, 2.0, 3.0]), curves, [2])
    left, right = figure.axes
    assert means_of(left) == [(0, 0.5), (1, 0.7)]
    lines = [list(zip(line.get_xdata(), line.get_ydata(), strict=True)) for line in right.get_lines()]
    assert [(1, 1.0), (2, 0.5), (3, 0.4)] in lines and [(3, 2.0)] in lines
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["task 0", "task 1"]
    assert len(difficulty_over_tasks(by_entry, "csl", np.empty(0), {}, []).axes) == 1


def test_means_in_bins_lie_over_the_samples(tmp_path):
    means = bin_means(FEW, FEW**2, 5)
    figure = in_bins([("csl", "dormancy", FEW, FEW**2, means), ("x", "y", FEW, -FEW, bin_means(FEW, -FEW, 5))])
    first, second = figure.axes
    assert means_of(first) == list(zip(means.centres, means.means, strict=True))
    assert (second.get_xlabel(), second.get_ylabel()) == ("x", "y")
    one, other = (save(figure, tmp_path / name).read_bytes() for name in ("1.png", "2.png"))
    assert one == other and one.startswith(b"\x89PNG")


def test_order_effects():
    change = BinMeans(np.array([0.25, 0.75]), np.array([0.1, -0.1]), np.array([0.01, 0.02]), np.array([5, 5]))
    figure = order_effects(change, bin_means(FEW, FEW, 2), "csl_mean")
    left, right = figure.axes
    assert means_of(left) == [(0.25, pytest.approx(0.1)), (0.75, pytest.approx(-0.1))]
    assert right.get_ylabel() == "csl_mean: mean, s.e."
