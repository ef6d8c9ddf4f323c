"""Pictures of a spectrum, from files alone."""

import json

import numpy as np
import pytest

from plastiscope.figure.landscape_spectrum import distribution, draw, linear_within, spectrum

DENSITY = {
    "grid": np.linspace(-2, 4, 50),
    "values": np.exp(-(np.linspace(-2, 4, 50) ** 2)),
    "nodes": np.array([-1.0, 0.0, 3.0, -0.5, 0.0, 2.0]),
    "weights": np.array([0.2, 0.7, 0.1, 0.1, 0.6, 0.3]),
    "run": np.array([0, 0, 0, 1, 1, 1]),
}
ABOUT = {"dimension": 115, "samples": 64, "sigma": 0.1, "lanczos_steps": [3, 3], "dtype": "float64"}
PAIRS = {"values": np.array([3.0, 2.0, -1.0]), "converged": np.array([True, False, True]), "num_top": np.array(2)}


def test_distribution_over_runs():
    at, mean, spread = distribution(DENSITY)
    assert at.tolist() == [-1, -0.5, 0, 2, 3]
    runs = np.array([[0.2, 0.2, 0.9, 0.9, 1.0], [0, 0.1, 0.7, 1.0, 1.0]])
    assert mean == pytest.approx(runs.mean(0))
    assert spread == pytest.approx(np.abs(runs[0] - runs[1]) / np.sqrt(2))
    one = {name: DENSITY[name][:3] for name in ("nodes", "weights", "run")}
    assert distribution(one)[1] == pytest.approx([0.2, 0.9, 1.0])
    assert np.isnan(distribution(one)[2]).all()


def test_the_axis_is_linear_where_the_bulk_is_wide():
    """Half of the weight lies at zero: a narrow bulk, of which the axis shows at least 1e-4 of the range."""
    assert linear_within(DENSITY) == pytest.approx(3e-4)
    wide = {"nodes": np.array([1.0, 2.0, 3.0]), "weights": np.full(3, 1 / 3)}
    assert linear_within(wide) is None
    some = {"nodes": np.array([-0.1, 0.2, 4.0]), "weights": np.array([0.3, 0.3, 0.4])}
    assert linear_within(some) == pytest.approx(0.2)


def test_what_the_picture_shows():
    figure = spectrum(DENSITY, ABOUT, PAIRS, ABOUT)
    left, right = figure.axes
    labels = left.get_legend_handles_labels()[1]
    assert labels == ["1 top eigenvalues", "1 top eigenvalues, not converged", "1 bottom eigenvalues"]
    places = {line.get_label(): list(line.get_xdata()) for line in left.lines}
    assert [places[label] for label in labels] == [[3.0], [2.0], [-1.0]]
    assert (left.get_yscale(), left.get_xscale(), right.get_xscale()) == ("log", "linear", "symlog")
    assert right.lines[0].get_ydata()[-1] == pytest.approx(1)


def test_drawn_from_files(tmp_path):
    assert draw(tmp_path) == []
    (tmp_path / "spectrum").mkdir()
    for name, arrays in (("density", DENSITY), ("eigenvalues", PAIRS)):
        np.savez(tmp_path / "spectrum" / f"{name}.npz", **arrays)
        (tmp_path / "spectrum" / f"{name}.json").write_text(json.dumps(ABOUT))
    (path,) = draw(tmp_path)
    assert path == tmp_path / "spectrum" / "density.png"
    first = path.read_bytes()
    draw(tmp_path)
    assert path.read_bytes() == first
