"""Figures show what is stored, and equal runs have equal pictures."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import AxesImage

from plans import make_plan
from plastiscope.experiment import run
from plastiscope.figure.accuracy import accuracy_matrix, accuracy_over_epochs
from plastiscope.figure.representation import quantities_over_epochs
from plastiscope.figure.run import draw_run

NAN = float("nan")
TINY = (
    *("num_tasks=3", "epochs=2", "threads=1", "data.samples_per_class=12"),
    *("analysis=[representation,continual]", "representation.samples=20"),
)
ALL = ["accuracy_per_task.png", "accuracy_matrix.png", "representation.png"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("figures") / "run"
    run(make_plan(*TINY, "figures=true"), folder)
    return folder


def lines(axes) -> dict[str, list[tuple[float, float]]]:
    """Points of the curves by label; NaN where a curve is broken."""
    curves = (line for line in axes.get_lines() if not str(line.get_label()).startswith("_"))
    return {line.get_label(): list(zip(line.get_xdata(), line.get_ydata(), strict=True)) for line in curves}


def test_a_finished_run_has_all_figures(folder):
    assert sorted(path.name for path in (folder / "figures").iterdir()) == sorted(ALL)
    assert all((folder / "figures" / name).read_bytes().startswith(b"\x89PNG") for name in ALL)


def test_equal_runs_have_equal_pictures(folder, tmp_path):
    before = {name: (folder / "figures" / name).read_bytes() for name in ALL}
    shutil.copytree(folder, tmp_path / "copy", ignore=shutil.ignore_patterns("figures"))
    assert [path.name for path in draw_run(tmp_path / "copy")] == ALL
    assert {name: (tmp_path / "copy" / "figures" / name).read_bytes() for name in ALL} == before
    assert all(b"matplotlib" not in content and b"date" not in content.lower()[:200] for content in before.values())


def test_only_what_there_are_data_for_is_drawn(folder, tmp_path):
    assert draw_run(tmp_path) == []
    kept = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for row in kept:
        for key in [key for key in row if "/" in key]:
            del row[key]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
    assert [path.name for path in draw_run(tmp_path)] == ["accuracy_per_task.png"]


def test_accuracy_curves_are_broken_where_a_task_begins():
    epochs = np.arange(1.0, 5.0)
    curves = {"test": np.array([0.5, 0.6, 0.2, 0.4]), "validation": np.array([NAN, 0.7, NAN, 0.3])}
    (axes,) = accuracy_over_epochs(epochs, curves, [2], "accuracy").axes
    shown = lines(axes)
    np.testing.assert_array_equal(shown["test"], [(1, 0.5), (2, 0.6), (NAN, NAN), (3, 0.2), (4, 0.4)])
    np.testing.assert_array_equal(shown["validation"], [(2, 0.7), (4, 0.3)])  # one point a task: joined
    assert axes.get_ylabel() == "accuracy"
    assert [line.get_xdata()[0] for line in axes.get_lines() if line.get_linestyle() == ":"] == [2]


def test_matrix_is_shown_with_its_numbers():
    matrix = np.array([[0.9, NAN], [0.25, 0.8]])
    figure = accuracy_matrix(matrix, "test accuracy")
    axes = figure.axes[0]
    (image,) = (child for child in axes.get_children() if isinstance(child, AxesImage))
    np.testing.assert_array_equal(np.ma.filled(image.get_array(), NAN), matrix)
    assert image.get_clim() == (0, 1)
    texts = {text.get_position(): text.get_text() for text in axes.texts}
    assert texts == {(0, 0): "0.90", (0, 1): "0.25", (1, 1): "0.80"}  # (task tested, task trained)
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("task tested", "task just trained")


def test_layers_are_coloured_by_depth_alike_in_every_panel():
    epochs = np.array([2.0, 4.0])
    layers = {f"layer_{i}": np.array([0.1 * i, NAN]) for i in range(10)}
    figure = quantities_over_epochs(epochs, {"rank": layers, "share": layers}, [2])
    first, second = figure.axes
    solid = [[line for line in axes.get_lines() if line.get_linestyle() == "-"] for axes in (first, second)]
    colours = [[line.get_color() for line in curves] for curves in solid]
    assert colours[0] == colours[1]
    assert len(set(colours[0])) == 10
    assert lines(first)["layer_3"] == [(2.0, pytest.approx(0.3))]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["layer_0", "layer_5", "layer_9"]
    assert [axes.get_title() for axes in figure.axes] == ["rank", "share"]


def test_numbers_of_the_log_reach_the_curves(folder, monkeypatch):
    """The first panel's curves are the dormant_rate of each layer at the task ends."""
    from plastiscope.figure import run as module

    drawn = {}
    monkeypatch.setattr(module, "save", lambda figure, path: drawn.setdefault(path.name, figure) and path)
    draw_run(folder)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    ends = [row for row in rows if row["kind"] == "task_end"]
    panels = {axes.get_title(): lines(axes) for axes in drawn["representation.png"].axes}
    key = "representation/current/linear_2/effective_rank"
    assert panels["effective_rank, current task"]["linear_2"] == [(2.0 * i + 2, ends[i][key]) for i in range(3)]
    assert list(panels["weight_mag_layer (mean |w|)"]) == ["linear_1", "linear_2", "head"]
    shown = lines(drawn["accuracy_per_task.png"].axes[0])["test"]
    epochs = [row for row in rows if row["kind"] == "epoch"]
    assert [y for _, y in shown if y == y] == [row["test_accuracy"] for row in epochs]
