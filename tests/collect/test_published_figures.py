"""The published figures: what each shows of a run, and where the published values stand."""

import json

import numpy as np
import pytest

from collect.small_runs import analysis, ends, epochs, learner, write_bins, write_run
from plastiscope.collect import published_figures as figures
from plastiscope.collect.published_figures import FIGURES, figure_of, published_curves, x_label
from plastiscope.collect.table import collect
from plastiscope.error import DataError
from plastiscope.figure.curves import COLOURS, Curve, CurveLabels, Mark, seed_curves
from plastiscope.measure.over_seeds import over_seeds

SHIFT = "plastiscope.task_shift_mode.class_incremental.ClassIncremental"
CLASSES = (SHIFT, {"classes_per_task": 5, "initial_classes": None})
REGRESSION = ("plastiscope.task_shift_mode.bit_flipping.BitFlippingShift", {"flip": "all"})
CIFAR = ("plastiscope.data.cifar100.Cifar100", {})
NEXT = "representation/next"


def incremental(folder, name, seed, accuracy):
    rows = epochs(2, test_accuracy=accuracy)
    return write_run(
        folder / f"{name}_{seed}", rows, seed=seed, data=CIFAR, learner=learner(name), task_shift_mode=CLASSES
    )


@pytest.fixture
def study(tmp_path):
    """Two seeds of an arm, three of the retrained network; the last task of seed 1 is not whole."""
    incremental(tmp_path, "backprop", 0, [0.5, 0.7, 0.6, 0.4])
    incremental(tmp_path, "backprop", 1, [0.6, 0.5, 0.3])
    for seed, shift in ((0, 0.0), (1, 0.1), (2, 0.5)):
        incremental(tmp_path, "retrained", seed, [0.2 + shift, 0.1, 0.1, 0.4 + shift])
    return collect([tmp_path]).runs


def values(curve):
    return [[round(v, 10) for v in row] for row in curve.values.tolist()]


def test_the_best_of_each_whole_task_over_classes_seen(study):
    (base, retrained), notes = published_curves(study, FIGURES["best_test_accuracy"])
    assert base.x.tolist() == [5, 10] and notes == []
    assert np.array_equal(base.values, [[70.0, 60.0], [60.0, np.nan]], equal_nan=True)
    assert values(retrained) == [[20.0, 40.0], [30.0, 50.0], [70.0, 90.0]]


def test_the_axis_shows_tasks_where_they_bring_no_classes(study, tmp_path):
    figure = FIGURES["best_test_accuracy"]
    assert x_label(figure, published_curves(study, figure)[0]) == "classes seen"
    write_run(tmp_path / "pairs" / "run", epochs(2, test_accuracy=[0.5, 0.6, 0.7, 0.8]))
    found, _ = published_curves(collect([tmp_path / "pairs"]).runs, figure)
    assert found[0].x.tolist() == [1, 2] and x_label(figure, found) == "task (from 1)"


def test_relative_accuracy_seed_by_seed(study):
    (curve,), notes = published_curves(study, FIGURES["relative_accuracy"])
    assert curve.group.label == "learner=backprop" and notes == []
    assert curve.values[0].tolist() == pytest.approx([50.0, 20.0]) and curve.values[1, 0] == pytest.approx(30.0)


def test_relative_accuracy_less_the_mean_where_a_seed_is_not_retrained(study):
    some = [run for run in study if not (run.settings["learner"] == "retrained" and run.seed == 1)]
    (curve,), (note,) = published_curves(some, FIGURES["relative_accuracy"])
    assert curve.values[0].tolist() == pytest.approx([70 - 45, 60 - 65])
    assert "not all its seeds are retrained" in note


def test_relative_accuracy_needs_the_retrained_network(study):
    with pytest.raises(DataError, match="0 kinds of retrained networks and 1 of others"):
        published_curves([run for run in study if run.settings["learner"] != "retrained"], FIGURES["relative_accuracy"])


def test_accuracy_of_every_epoch(study):
    (base, _), _ = published_curves(study, FIGURES["test_accuracy_per_epoch"])
    assert base.x.tolist() == [1, 2, 3, 4] and base.values[0] == pytest.approx([50, 70, 60, 40])


def test_dormant_units_and_stable_rank_stand_at_the_task_that_comes(tmp_path):
    numbers = {
        f"{NEXT}/total/dormant_rate": [0.1, 0.2, None],
        **{f"{NEXT}/{layer}/srank_99_l1": rank for layer, rank in (("a", [1, 1, None]), ("b", [30, 10, None]))},
        f"{NEXT}/layer_mean/srank_99_l1": [5.0, 5.0, None],
    }
    folder = write_run(tmp_path / "run", ends(2, numbers))
    (folder / "task_0000_mlp" / "representation").mkdir(parents=True)
    about = {"subsets": {"next": {"layers": {"a": {"d": 7}, "b": {"d": 40}}}}}
    (folder / "task_0000_mlp" / "representation" / "summary.json").write_text(json.dumps(about))
    (run,) = collect([tmp_path]).runs
    for found, expected in ((figures.next_task_dormant(run), [10, 20]), (figures.stable_rank(run), [75, 25])):
        assert found[0].tolist() == [2, 3] and found[1] == pytest.approx(expected)


def test_bins_of_tasks_are_means_of_the_last_epochs(tmp_path):
    rng = np.random.default_rng(0)
    accuracy = rng.random(2 * 7)
    write_run(tmp_path / "run", epochs(2, test_accuracy=accuracy.tolist()))
    (run,) = collect([tmp_path]).runs
    x, y = figure_of("binned_accuracy", 3).points(run)
    last = 100 * accuracy[1::2]
    assert x.tolist() == [3, 6] and y == pytest.approx([last[:3].mean(), last[3:6].mean()])
    assert figure_of("binned_accuracy").points(run)[0].tolist() == []


def test_bins_of_tasks_count_tasks_not_rows(tmp_path):
    """A run that branched off at task 4 has the bins of its own tasks; bins that are not whole are left out."""
    rows = [{**row, "task_idx": row["task_idx"] + 4} for row in epochs(2, test_accuracy=[i / 16 for i in range(16)])]
    write_run(tmp_path / "branch", rows, init_from="elsewhere")
    write_run(tmp_path / "holes", [row for row in rows if row["task_idx"] != 7])
    branch, holes = collect([tmp_path]).runs
    x, y = figures.binned_accuracy(branch, 3)  # tasks 4 to 11: bins 6 to 8 and 9 to 11
    assert x.tolist() == [9, 12] and y.tolist() == [100 * (5 + 7 + 9) / 48, 100 * (11 + 13 + 15) / 48]
    assert figures.binned_accuracy(holes, 3)[0].tolist() == [12]


@pytest.mark.parametrize(
    ("shift", "expected"),
    [
        ({"classes_per_task": 5, "initial_classes": None}, [5, 10, 15]),
        ({"classes_per_task": 5, "initial_classes": 50}, [50, 55, 60]),
        ({}, [1, 2, 3]),
    ],
)
def test_classes_that_have_come_up(tmp_path, shift, expected):
    write_run(tmp_path / "run", epochs(1, test_accuracy=[0.1] * 3), task_shift_mode=(SHIFT, shift))
    (run,) = collect([tmp_path]).runs
    assert figures.classes_seen(run, np.arange(3.0)).tolist() == expected


@pytest.fixture
def regression(tmp_path):
    for seed in (0, 8):
        folder = write_run(
            tmp_path / str(seed), ends(1, {"x": [1.0]}), seed=seed, online=analysis("online", bin_size=20_000),
            learner=learner("backprop", optimizer="sgd", lr=0.01), task_shift_mode=REGRESSION,
            net=("plastiscope.net.mlp.Mlp", {"widths": [5], "activation": "relu"}),
        )  # fmt: skip
        write_bins(folder, 1, [40_000, 60_000], loss=[0.7 + seed, 0.8 + seed])
        write_bins(folder, 0, [20_000], loss=[0.6 + seed])
    return collect([tmp_path]).runs


def test_online_bins_over_presentations(regression):
    (curve,), _ = published_curves(regression, FIGURES["binned_error"])
    assert curve.x.tolist() == [20_000, 40_000, 60_000]
    assert values(curve) == [[0.6, 0.7, 0.8], [8.6, 8.7, 8.8]]
    with pytest.raises(DataError, match=r"needs: analysis=\[online\], and classes"):
        published_curves(regression, FIGURES["online_accuracy"])


def test_online_accuracy_in_per_cent(tmp_path):
    folder = write_run(tmp_path / "run", ends(1, {"x": [1.0]}))
    write_bins(folder, 0, [10, 20], loss=[0.7, 0.8], accuracy=[0.5, 0.25])
    runs = collect([tmp_path]).runs
    (curve,), _ = published_curves(runs, FIGURES["online_accuracy"])
    assert curve.x.tolist() == [10, 20] and values(curve) == [[50.0, 25.0]]
    with pytest.raises(DataError, match=r"needs: analysis=\[online\], and no classes"):
        published_curves(runs, FIGURES["binned_error"])


def test_what_a_figure_needs_is_said(study):
    with pytest.raises(DataError, match=r"needs: analysis=\[online\]"):
        published_curves(study, FIGURES["binned_error"])
    with pytest.raises(DataError, match="figure=binned_eror: there is no such figure; did you mean binned_error"):
        figure_of("binned_eror")
    with pytest.raises(DataError, match="only figure=binned_accuracy has bins of tasks"):
        figure_of("stable_rank", 10)


def test_the_picture_shows_means_bands_and_marks():
    x, rows = np.array([1.0, 2.0, 3.0]), np.array([[1.0, 2.0, 3.0], [3.0, 2.0, np.nan]])
    drawn = [Curve("one", x, over_seeds(rows)), Curve("two", x[:1], over_seeds(rows[:, :1]))]
    marks = [Mark(2.0, 5.0, of=0), Mark(None, 4.0, label="a line"), Mark(3.0, 1.0, of=1, is_other=True)]
    picture = seed_curves(drawn, CurveLabels("x", "y", interval="stderr"), marks)
    (axes,) = picture.axes
    first, second, star, line, hollow, *_ = axes.get_lines()
    assert first.get_label() == "one (n=1 to 2)" and second.get_label() == "two (n=2)"
    assert first.get_ydata().tolist() == [2.0, 2.0, 3.0]
    assert [*star.get_xdata(), *star.get_ydata()] == [2.0, 5.0] and star.get_color() == first.get_color()
    assert (hollow.get_color(), hollow.get_markeredgecolor()) == ("white", second.get_color())
    named = {text.get_text() for text in picture.legends[0].get_texts()}
    assert {"a line", "published", "published, another protocol"} <= named
    assert {*line.get_ydata()} == {4.0} and line.get_label() == "a line"
    corners = axes.collections[0].get_paths()[0].vertices
    assert corners[:, 1].min() == 1.0 and corners[:, 1].max() == 3.0
    assert "standard error" in axes.get_title()
    assert "bootstrap 95% interval" in seed_curves(drawn, CurveLabels("x", "y")).axes[0].get_title()


def test_a_curve_has_the_colour_of_its_arm():
    drawn = [Curve(str(i), np.arange(3.0), over_seeds(np.ones((1, 3))), i) for i in (4, 0)]
    (axes,) = seed_curves(drawn, CurveLabels("x", "y"), [Mark(1.0, 1.0, of=0)]).axes
    first, second, star, _ = axes.get_lines()
    assert [first.get_color(), second.get_color()] == [COLOURS[4], COLOURS[0]] and star.get_color() == COLOURS[4]


def test_curves_of_many_points_are_thin():
    few, many = (Curve(str(n), np.arange(float(n)), over_seeds(np.ones((1, n)))) for n in (499, 500))
    (axes,) = seed_curves([few, many], CurveLabels("x", "y")).axes
    first, second = axes.get_lines()
    assert first.get_linewidth() > 1 > second.get_linewidth()
    assert (first.get_marker(), second.get_marker()) == ("o", "None")


def test_the_bootstrap_band_is_the_bands_own():
    x, rows = np.array([1.0, 2.0]), np.random.default_rng(0).normal(size=(4, 2))
    band = over_seeds(rows)
    (axes,) = seed_curves([Curve("", x, band)], CurveLabels("x", "y")).axes
    heights = axes.collections[0].get_paths()[0].vertices[:, 1]
    assert heights.min() == band.low.min() and heights.max() == band.high.max()
