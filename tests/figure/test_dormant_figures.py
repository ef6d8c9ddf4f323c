"""Figures of dormant units show what is stored."""

from pathlib import Path

import numpy as np
import pytest

from plans import make_plan
from plastiscope.error import RunError
from plastiscope.experiment import run
from plastiscope.figure.dormant import Dormancy, _by_layer, dormancy, fates
from plastiscope.figure.run import draw_run
from plastiscope.load import load_run

NAN = float("nan")


def of(**named) -> Dormancy:
    usual = {
        "name": "persample_strict",
        "epochs": np.array([1.0, 2.0, 3.0]),
        "shares": {
            "total": np.array([0.5, NAN, 0.7]),
            "b": np.array([0.25, 0.5, 0.5]),
            "layer_mean": np.array([0.0, 0.0, 0.0]),
        },
        "dead": {"total": np.array([0.1, 0.2, 0.3])},
        "boundaries": [2],
        "samples": {0: np.array([0.5, 0.25, NAN, 0.25], np.float32), 4: np.array([NAN], np.float32)},
        "dead_units": {0: np.array([1, 1, 0, 0], bool), 1: np.array([0, 1, 1, 1], bool)},
    }
    return Dormancy(**usual | named)


def points(axes) -> dict[str, list[tuple[float, float]]]:
    lines = (line for line in axes.get_lines() if not str(line.get_label()).startswith("_"))
    return {line.get_label(): list(zip(line.get_xdata(), line.get_ydata(), strict=True)) for line in lines}


def test_panels_show_the_numbers():
    shares, dead, samples, bars = dormancy(of()).axes
    assert points(shares) == {"total": [(1, 0.5), (3, 0.7)], "b": [(1, 0.25), (2, 0.5), (3, 0.5)]}
    assert points(dead) == {"total": [(1, 0.1), (2, 0.2), (3, 0.3)]}
    curves = points(samples)
    assert list(curves) == ["task 0"] and dict(curves["task 0"]) == {0.25: pytest.approx(2 / 3), 0.5: 1.0}
    found = [(bar.get_x() + bar.get_width() / 2, bar.get_y(), bar.get_height()) for bar in bars.patches]
    unknown, kept, new, revived = found[:2], found[2:4], found[4:6], found[6:]
    assert unknown == [(0, 0, 0.5), (1, 0, 0)], "there is no task before the first one"
    assert kept == [(0, 0, 0), (1, 0, 0.25)] and new == [(0, 0, 0), (1, 0.25, 0.5)]
    assert [(x, height) for x, _, height in revived] == [(0, 0), (1, -0.25)]


def test_fates_are_those_of_sets():
    """A network of another width has no units of before."""
    units = {3: np.array([1, 0, 1, 0], bool), 5: np.array([1, 1, 0, 0], bool), 6: np.array([1, 0], bool)}
    assert fates(units) == {3: (0, 0, 0, 0.5), 5: (0.25, 0.25, 0.25, 0), 6: (0, 0, 0, 0.5)}


def test_nothing_dead_and_nothing_measured_can_be_drawn():
    axes = dormancy(of(samples={}, dead_units={0: np.zeros(4, bool)})).axes[3]
    assert [text.get_text() for text in axes.texts] == ["no unit is dead"]
    assert dormancy(of(shares={}, dead={}, samples={}, epochs=np.empty(0))).axes


def test_few_dead_units_fill_their_panel():
    units = {0: np.arange(1000) < 4, 1: np.arange(1000) < 2}
    assert dormancy(of(dead_units=units)).axes[3].get_ylim() == pytest.approx((-1.25 * 0.002, 1.4 * 0.004))


def test_training_samples_and_all_samples_are_one_curve():
    rows = [{"dormant/all/a/r_dead": 0.5}, {"dormant/train/a/r_dead": 0.25}, {"dormant/later/a/r_dead": 1.0}]
    assert _by_layer(rows, "r_dead")["a"].tolist() == pytest.approx([0.5, 0.25, NAN], nan_ok=True)


def test_all_tasks_are_in_the_panel_of_dead_units_when_later_samples_are_scored(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr("plastiscope.figure.dormant.dormancy", lambda found: seen.append(found) or dormancy(found))
    tiny = ("num_tasks=3", "epochs=1", "threads=1", "data.samples_per_class=6", "net=mlp", "net.widths=[8]")
    run(make_plan(*tiny, "analysis=[dormant]", "samples.population=run", "figures=true"), tmp_path / "run")
    (found,) = seen
    assert set(found.dead) == {"linear_1", "total", "layer_mean"}
    assert all(len(curve) == 3 and np.isfinite(curve).all() for curve in found.dead.values())
    assert found.dead["total"].tolist() == [units.mean() for units in found.dead_units.values()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dormant") / "run"
    tiny = ("num_tasks=2", "epochs=2", "threads=1", "data.samples_per_class=12", "net=mlp", "net.widths=[12,8]")
    asked = ("analysis=[dormant]", "dormant.rules=[persample_strict,persample_module]", "figures=true")
    run(make_plan(*tiny, *asked), folder)
    return folder


def test_a_run_has_a_picture_of_each_rule(folder):
    drawn = sorted(path.name for path in (folder / "figures").glob("dormant_*"))
    assert drawn == ["dormant_persample_module.png", "dormant_persample_strict.png"]
    before = {name: (folder / "figures" / name).read_bytes() for name in drawn}
    draw_run(folder)
    assert {name: (folder / "figures" / name).read_bytes() for name in drawn} == before


def test_what_is_drawn_of_a_run_is_what_it_has_stored(folder, monkeypatch):
    seen = []
    monkeypatch.setattr("plastiscope.figure.dormant.dormancy", lambda found: seen.append(found) or dormancy(found))
    draw_run(folder)
    strict = next(found for found in seen if found.name == "persample_strict")
    view = load_run(folder).samples("persample_strict")
    means = [np.nanmean(row.astype(np.float64)) for row in view.values]
    assert strict.shares["total"].tolist() == means and strict.boundaries == [2]
    assert set(strict.shares) == set(strict.dead) == {"total", "linear_1", "linear_2", "layer_mean"}
    for task, row in ((0, 1), (1, 3)):
        values = view.values[row]
        assert sorted(strict.samples[task].tolist()) == sorted(values[~np.isnan(values)].tolist())
        assert strict.dead_units[task].shape == (20,)
        assert strict.dead_units[task].mean() == strict.dead["total"][row]


def test_a_damaged_file_is_named(folder):
    path = next(folder.glob("task_0001_*/dormant/silent_*.npz"))
    whole = path.read_bytes()
    path.write_bytes(whole[:50])
    try:
        with pytest.raises(RunError, match=path.name):
            draw_run(folder)
    finally:
        path.write_bytes(whole)
