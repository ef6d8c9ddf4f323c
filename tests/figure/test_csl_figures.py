"""Figures of csl: what is shown is what the columns say."""

from pathlib import Path

import numpy as np
import pytest

from plans import make_plan
from plastiscope.experiment import run
from plastiscope.figure import csl
from plastiscope.figure.csl import bin_means, by_group, draw_csl, histograms, memorization_by_bins, one_against_another
from plastiscope.figure.run import draw_run

NAN = float("nan")
ALL = ["csl_against_learning_time.png", "csl_by_class.png", "csl_by_entry_task.png", "csl_histogram.png"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run over digits with wrong labels, two new classes a task."""
    folder = tmp_path_factory.mktemp("csl_figures") / "run"
    data = ("data.samples_per_class=12", "data.label_noise=0.2", "figures=true")
    run(make_plan("num_tasks=3", "epochs=3", "threads=1", *data, "analysis=[csl]", "csl.input_gradient=true"), folder)
    return folder


@pytest.fixture(scope="module")
def columns(folder: Path) -> dict[str, np.ndarray]:
    with np.load(folder / "task_0002_mlp" / "csl" / "per_sample.npz") as found:
        return dict(found)


def test_a_run_with_csl_has_its_figures_and_draws_them_again_alike(folder):
    there = {path.name: path.read_bytes() for path in (folder / "figures").glob("csl_*.png")}
    assert sorted(there) == ALL and all(content.startswith(b"\x89PNG") for content in there.values())
    drawn = [path for path in draw_run(folder) if path.name in ALL]
    assert {path.name: path.read_bytes() for path in drawn} == there


def test_memorization_is_drawn_when_it_is_given(columns, tmp_path):
    memorization = np.where(columns["label"] != columns["label_trained"], 0.9, 0.1)
    drawn = draw_csl(columns, "csl_active_mean", tmp_path, memorization)
    assert sorted(path.name for path in drawn) == sorted([*ALL, "csl_memorization.png"])
    unknown = draw_csl(columns, "csl_active_mean", tmp_path, np.full(len(memorization), NAN))
    assert sorted(path.name for path in unknown) == ALL


def test_without_what_it_needs_a_figure_is_left_out(columns, tmp_path):
    kept = {name: columns[name] for name in ("split", "label", "label_trained", "csl_active_mean")}
    kept |= {"entry_task": np.zeros_like(columns["entry_task"])}
    assert [path.name for path in draw_csl(kept, "csl_active_mean", tmp_path)] == ["csl_histogram.png", ALL[1]]
    kept["label"] = np.full_like(columns["label"], -1)
    assert [path.name for path in draw_csl(kept, "csl_active_mean", tmp_path)] == ["csl_histogram.png"]
    kept["csl_active_mean"] = np.full(len(kept["label"]), NAN)
    assert draw_csl(kept, "csl_active_mean", tmp_path) == []


def test_only_training_samples_are_shown(columns, tmp_path, monkeypatch):
    shown = {}
    monkeypatch.setattr(csl, "save", lambda figure, path: shown.setdefault(path.name, figure) and path)
    columns = dict(columns)
    columns["split"] = np.where(np.arange(len(columns["split"])) < 5, 1, 0).astype(np.uint8)
    draw_csl(columns, "csl_active_mean", tmp_path)
    (points, changed) = shown[ALL[0]].axes[0].collections
    train = columns["split"] == 0
    expected = np.stack([columns["lt_frac"], columns["csl_active_mean"]], 1)[train]
    np.testing.assert_array_equal(points.get_offsets(), expected)
    is_changed = (columns["label"] != columns["label_trained"])[train]
    assert 0 < is_changed.sum() < train.sum()
    np.testing.assert_array_equal(changed.get_offsets(), expected[is_changed])


def test_classes_before_label_noise_are_called_so(columns, tmp_path, monkeypatch):
    shown = {}
    monkeypatch.setattr(csl, "save", lambda figure, path: shown.update({path.name: figure}) or path)
    for label, name in ((columns["label"], "class before label noise"), (columns["label_trained"], "class")):
        draw_csl(columns | {"label": label}, "csl_active_mean", tmp_path)
        assert shown[ALL[1]].axes[0].get_xlabel() == name


def test_histograms_count_all_values_and_name_what_is_missing():
    figure = histograms({"csl_sum (loss)": np.array([1.0, 2.0, NAN, 9.0]), "lt_frac": np.array([0.0, 0.5, 1.0, 1.0])})
    one, other = figure.axes
    assert sum(bar.get_height() for bar in one.patches) == 3 and sum(bar.get_height() for bar in other.patches) == 4
    assert one.get_title() == "3 samples, 1 without a value" and other.get_title() == "4 samples"
    assert one.get_lines()[0].get_xdata()[0] == 2.0 and other.get_lines()[0].get_xdata()[0] == 0.75
    assert one.get_xlabel() == "csl_sum (loss)" and one.get_yscale() == "log"


def test_a_score_of_few_values_has_a_bar_at_each():
    values = np.repeat([0.0, 0.25, 1.0], [5, 1, 2])
    one, single = histograms({"lt_frac": values, "same": np.full(4, 0.5)}).axes
    bars = [(bar.get_x() + bar.get_width() / 2, bar.get_height()) for bar in one.patches]
    assert bars == [(pytest.approx(0.0), 5), (pytest.approx(0.25), 1), (pytest.approx(1.0), 2)]
    assert one.patches[0].get_width() == pytest.approx(0.2)
    assert [bar.get_height() for bar in single.patches] == [4]


def test_losses_of_classes_are_in_nats(columns, tmp_path, monkeypatch):
    shown = {}
    monkeypatch.setattr(csl, "save", lambda figure, path: shown.update({path.name: figure}) or path)
    draw_csl(columns, "csl_sum", tmp_path)
    assert {figure.axes[0].get_ylabel() for name, figure in shown.items() if name != ALL[3]} == {"csl_sum (nats)"}
    assert shown[ALL[3]].axes[0].get_xlabel() == "csl_sum (nats)"
    draw_csl(columns | {"label": np.full_like(columns["label"], -1)}, "csl_sum", tmp_path)
    assert shown[ALL[3]].axes[0].get_xlabel() == "csl_sum (units of the loss)"


def test_many_samples_are_shown_by_their_density():
    values = np.random.default_rng(0).normal(size=5000)
    figure = one_against_another(values, values**2, ("x", "y"))
    (cells,) = figure.axes[0].collections
    assert cells.get_array().sum() == 5000
    assert figure.axes[1].get_ylabel() == "samples in a cell"


def test_boxes_of_groups_have_their_quartiles():
    groups = np.repeat([3, 1, 7], 5)
    values = np.concatenate([np.arange(5.0), np.arange(5.0) + 10, np.full(5, NAN)])
    axes = by_group(values, groups, ("class", "csl_sum")).axes[0]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["1", "3"], "a group without a value is not shown"
    assert axes.get_title() == csl.BOXES
    boxes = [sorted(set(patch.get_path().vertices[:, 1].tolist())) for patch in axes.patches]
    assert boxes == [[11.0, 13.0], [1.0, 3.0]]
    assert [(text.get_position()[0], text.get_text()) for text in axes.texts] == [(0, "n=5"), (1, "n=5")]
    far = by_group(np.r_[np.arange(5.0), 40.0], np.zeros(6), ("class", "csl_sum")).axes[0]
    assert [40.0] in [np.asarray(line.get_ydata()).tolist() for line in far.get_lines()], "beyond the whiskers: a dot"
    axes = by_group(values[1:], groups[1:], ("class", "csl_sum"), order=[7, 3, 1]).axes[0]
    assert [text.get_text() for text in axes.texts] == ["n=4", "n=5"]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["3", "1"]


def test_many_groups_have_mean_and_standard_deviation():
    groups, values = np.repeat(np.arange(30), 2), np.tile([0.0, 4.0], 30) + np.repeat(np.arange(30), 2)
    axes = by_group(values, groups, ("class", "csl_sum")).axes[0]
    (bars,) = axes.containers
    np.testing.assert_array_equal(bars.lines[0].get_ydata(), np.arange(30) + 2.0)
    segments = bars.lines[2][0].get_segments()
    np.testing.assert_array_equal(segments[4], [[4, 4.0], [4, 8.0]])
    assert axes.get_ylabel() == "csl_sum: mean, std" and axes.get_title() == "2 samples each"
    axes = by_group(values[1:], groups[1:], ("class", "csl_sum")).axes[0]
    assert axes.get_title() == "1 to 2 samples each"
    assert [text.get_text() for text in axes.get_xticklabels()] == [str(i) for i in range(0, 30, 2)]


def test_bins_hold_equally_many_and_have_standard_errors_by_hand():
    score = np.array([5.0, 1.0, 2.0, 6.0, 3.0, 4.0, NAN, 0.5])
    values = np.array([1.0, 0.0, 0.4, 0.0, 0.8, 0.5, 1.0, NAN])
    found = bin_means(score, values, bins=2)
    assert found.counts.tolist() == [3, 3]
    np.testing.assert_allclose(found.centres, [2.0, 5.0])
    np.testing.assert_allclose(found.means, [0.4, 0.5])
    np.testing.assert_allclose(found.errors, [0.4 / np.sqrt(3), 0.5 / np.sqrt(3)])  # std(0, .4, .8), std(1, 0, .5)


def test_equal_scores_are_in_one_bin():
    score = np.array([0.0] * 7 + [1.0, 2.0, 3.0])
    found = bin_means(score, np.arange(10.0), bins=5)
    assert found.counts.tolist() == [8, 2], "edges are quantiles: three of the four inner ones are 0, the last is 1.2"
    np.testing.assert_allclose(found.means, [3.5, 8.5])
    assert bin_means(np.array([1.0]), np.array([2.0])).errors.tolist() == pytest.approx([NAN], nan_ok=True)
    assert len(bin_means(np.array([NAN]), np.array([2.0])).counts) == 0


def test_memorization_is_shown_in_bins_of_each_score():
    memorization, score = np.linspace(0, 1, 100), np.arange(100.0)
    figure = memorization_by_bins(memorization, {"csl_sum": score, "lt_frac": -score}, bins=4)
    for axes, sign, name in zip(figure.axes, (1, -1), ("csl_sum", "lt_frac"), strict=True):
        found = bin_means(sign * score, memorization, 4)
        np.testing.assert_array_equal(axes.get_lines()[-1].get_xydata(), np.stack([found.centres, found.means], 1))
        segments = np.array(axes.containers[0].lines[2][0].get_segments())
        np.testing.assert_allclose(segments[:, 1, 1] - segments[:, 0, 1], 2 * found.errors)
        assert (axes.get_xlabel(), axes.get_title()) == (f"{name}, mean of the bin", "4 bins of 25 samples")
