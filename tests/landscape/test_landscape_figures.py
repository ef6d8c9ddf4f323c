"""Pictures of a landscape: drawn from files alone, true to lengths and angles, and they say what they leave out."""

import json
import math
import shutil

import numpy as np
import pytest
from matplotlib.colors import LogNorm
from matplotlib.table import Cell
from matplotlib.text import Text

from landscape.look_cases import normed, settings_of, stored
from plastiscope.figure.landscape import Colours, curves, draw, places, plane, relief
from plastiscope.landscape.look import SavedPoint
from plastiscope.landscape.settings import ConnectivitySettings
from plastiscope.landscape.study import analyse


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A look at everything, with its pictures."""
    folder = tmp_path_factory.mktemp("pictures")
    landscape = normed(
        folder,
        settings=settings_of(
            {"include_random": True, "include_trajectory": True, "plot_3d": True},
            enable_sam=True,
            enable_mode_connectivity=True,
            mode_connectivity=ConnectivitySettings(curve_points=3, opt_steps=2),
        ),
        path=[SavedPoint("epoch 0", normed(folder).start.load)],
    )
    analyse(landscape)
    return folder


def test_every_result_has_its_picture(pictures):
    planes = ("random_0", "trajectory", "three_point")
    expected = [f"planes/{name}{ending}.png" for name in planes for ending in ("", "_3d")]
    expected += [f"sam/{name}.png" for name in planes[:2]] + ["mode/curves.png"]
    found = {str(path.relative_to(pictures)): path.read_bytes() for path in pictures.rglob("*.png")}
    assert sorted(found) == sorted(expected)
    assert all(picture.startswith(b"\x89PNG") for picture in found.values())


def test_equal_files_give_equal_pictures_of_what_there_is(pictures, tmp_path):
    (tmp_path / "sam").mkdir()
    for ending in ("json", "npz"):
        shutil.copy(pictures / "sam" / f"random_0.{ending}", tmp_path / "sam")
    (drawn,) = draw(tmp_path)
    assert drawn == tmp_path / "sam" / "random_0.png"
    assert drawn.read_bytes() == (pictures / "sam" / "random_0.png").read_bytes()


def texts(figure):
    found = [*figure.findobj(Text), *(cell.get_text() for cell in figure.findobj(Cell))]
    return " ".join(text.get_text() for text in found)


def test_cells_at_the_border_are_whole(pictures):
    """Limits lie half a cell beyond the outermost centres; in a single weight both directions are one line."""
    arrays, record = stored(pictures, "planes/random_0")
    record |= {"drawn_orthonormal": False}
    (axes, _) = plane(arrays, record).axes
    half = (arrays["a"][1] - arrays["a"][0]) / 2
    assert axes.get_xlim() == pytest.approx((arrays["a"][0] - half, arrays["a"][-1] + half))
    assert axes.get_ylim() == pytest.approx((arrays["b"][0] - half, arrays["b"][-1] + half))
    assert len([x for x in axes.get_xticks() if abs(x) <= axes.get_xlim()[1]]) <= 6
    (axes, _) = plane(arrays, record | {"drawn_orthonormal": True, "cos": 1.0}).axes
    assert axes.get_ylim() == (-0.5, 0.5)


def test_axes_along_eigenvectors_say_how_long_they_are(pictures):
    arrays, record = stored(pictures, "planes/random_0")
    record |= {"kind": "hessian", "eigenvalues": [1.5625, -2], "norms": [1 + 1e-7, 0.8838]}
    (axes, _) = plane(arrays, record).axes
    assert axes.get_xlabel() == "eigenvector of eigenvalue 1.56\n(weight distance)"
    assert axes.get_ylabel() == "eigenvector of eigenvalue -2\n(1 = weight distance 0.884)"


def test_true_losses_stand_beside_those_of_the_plane(pictures):
    arrays, record = stored(pictures, "planes/trajectory")
    shown = texts(plane(arrays, record))
    assert "0 epoch 0" in shown and "1 the weights" in shown
    for value in (*arrays["true_losses"], *arrays["plane_losses"]):
        assert f"{value:.3g}" in shown
    assert "not of the path" in shown and "a random direction (weight distance)" in shown


@pytest.mark.parametrize(("here", "lines"), [(3, [(0, 4)]), (1, [(0, 2), (1, 4)]), (None, [(0, 3)])])
def test_lines_join_the_points_of_a_path_in_their_order(pictures, here, lines):
    """Never from the last epoch back to weights that were selected before it."""
    arrays, record = stored(pictures, "planes/trajectory")
    four = np.array([[0.0, 1], [1, 0], [2, 0], [3, 1]])
    arrays |= {key: np.arange(4.0) for key in ("true_losses", "plane_losses", "residuals")} | {"path": four}
    figure = plane(arrays, record | {"points": list("abcd"), "here": here})
    drawn = [line.get_xydata() for line in figure.axes[0].lines if len(line.get_xydata()) > 1]
    assert len(drawn) == len(lines)
    for found, (start, end) in zip(drawn, lines, strict=True):
        assert found.tolist() == four[start:end].tolist()
    assert ("dashed: epochs after the selected weights" in texts(figure)) == (here == 1)
    assert f"{3 if here is None else here} {'abcd'[3 if here is None else here]} (+)" in texts(figure)


def test_a_sheared_plane_is_drawn_with_its_lengths_and_angles():
    first, second = np.array([2.0, 0.0, 0.0]), np.array([1.5, 2.0, 0.5])
    cos = first @ second / np.linalg.norm(first) / np.linalg.norm(second)
    arrays = {"a": np.array([-1.0, 0, 1]), "b": np.array([-0.5, 0, 0.5])}
    arrays["norms"] = np.array([np.linalg.norm(first), np.linalg.norm(second)])
    x, y = places(arrays, {"cos": cos, "drawn_orthonormal": True})
    points = arrays["a"][:, None, None] * first + arrays["b"][:, None] * second
    assert 2 * np.hypot(x, y) == pytest.approx(np.linalg.norm(points, axis=-1))
    inner = 4 * (x[2, 1] * x[1, 2] + y[2, 1] * y[1, 2])
    assert inner == pytest.approx(points[2, 1] @ points[1, 2])
    plain = places(arrays, {"cos": cos, "drawn_orthonormal": False})
    assert plain[0][:, 0].tolist() == [-1, 0, 1] and plain[1][0].tolist() == [-0.5, 0, 0.5]


def test_colours_end_below_a_few_high_cells_and_say_so():
    values = np.linspace(1, 2, 100)
    assert Colours.of(values, False)[:2] == (1, 2) and Colours.of(values, False).label("loss") == "loss"
    values[-3:] = [50, math.inf, math.nan]
    colours = Colours.of(values, False)
    assert colours.low == 1 and colours.high < 2.1 and colours.top == 50
    above = int((values[np.isfinite(values)] > colours.high).sum())
    assert colours.label("loss") == f"loss ({above} of 100 cells above, up to 50)"
    logarithmic = Colours.of(values, True)
    assert logarithmic.high == 50 and isinstance(logarithmic.norm, LogNorm) and not logarithmic.above
    assert not Colours.of(values - 1, True).is_log  # a loss of 0 has no logarithm
    assert Colours.of(np.full(4, math.nan), True)[:2] == (0, 1)
    flat = Colours.of(np.full(4, 3.0), False)
    assert flat.low == 3 < flat.high


def test_cells_that_are_not_finite_are_counted(pictures):
    arrays, record = stored(pictures, "planes/random_0")
    record = json.loads(json.dumps(record)) | {"picture": {"log_color": True, "plot_3d": True}}
    arrays["losses"][0, :2] = math.nan, math.inf
    shown = texts(plane(arrays, record))
    assert "grey: 2 cells not finite" in shown
    assert "log10 of the loss" in texts(relief(arrays, record))


def test_curves_of_a_regression_have_no_accuracy(pictures):
    arrays, record = stored(pictures, "mode/curves")
    assert len(curves(arrays, record).axes) == 4
    assert "straight line, stale statistics" in texts(curves(arrays, record))
    nothing = {key: values * math.nan if key.endswith("accuracy") else values for key, values in arrays.items()}
    assert len(curves(nothing, record).axes) == 2
