"""Pictures of the probe and of online bins: what is in the files is what is drawn."""

import json
import math

import numpy as np
import pytest

from plastiscope.figure.online import draw_online, online, read_bins
from plastiscope.figure.probe import draw_probe, probe, read_looks

STEPS = np.array([0, 1, 2])


def write_probe(folder, task, loss, ratio):
    place = folder / f"task_{task:04d}_mlp" / "probe"
    place.mkdir(parents=True)
    fresh = np.array([[2.0, 1.0, 0.5], [2.0, 1.5, 1.0]])
    np.savez(place / "curves.npz", steps=STEPS, loss=np.array(loss), fresh_loss=fresh)
    (place / "summary.json").write_text(json.dumps({"numbers": {"probe_ratio": ratio}}))


@pytest.fixture
def folder(tmp_path):
    for task, loss, ratio in ((10, [2.0, 2.0, 1.0], 1.5), (2, [2.0, 1.0, 0.5], 1.0)):
        write_probe(tmp_path, task, loss, ratio)
    return tmp_path


def test_a_probes_curves_and_ratios_are_those_of_the_files(folder):
    curves, ratios = probe(read_looks(folder)).axes
    lines = [(line.get_label(), line.get_ydata().tolist()) for line in curves.get_lines()]
    assert lines == [
        ("fresh networks", [2.0, 1.0, 0.5]),
        ("fresh networks", [2.0, 1.5, 1.0]),
        ("after task 2", [2.0, 1.0, 0.5]),
        ("after task 10", [2.0, 2.0, 1.0]),
    ]
    one, ratio = ratios.get_lines()
    assert one.get_ydata() == [1.0, 1.0] and [*ratio.get_xdata()] == [2, 10] and [*ratio.get_ydata()] == [1.0, 1.5]
    assert draw_probe(folder) == [folder / "figures" / "probe.png"] and (folder / "figures" / "probe.png").exists()


def test_of_many_looks_some_curves_and_all_ratios(tmp_path):
    for task in range(40):
        write_probe(tmp_path, task, [2.0, 1.0, 0.5], None if task == 3 else 1.0 + task)
    curves, ratios = probe(read_looks(tmp_path)).axes
    assert len(curves.get_lines()) == 2 + 8
    values = ratios.get_lines()[1].get_ydata()
    assert len(values) == 40 and math.isnan(values[3]) and values[39] == 40.0


def test_bins_of_all_tasks_in_order(tmp_path):
    for task in (0, 1, 2, 10):
        place = tmp_path / f"task_{task:04d}_mlp" / "online"
        place.mkdir(parents=True)
        ends = np.array([10 * task, 10 * task + 5]) if task != 1 else np.array([], dtype=np.int64)
        np.savez(place / "bins.npz", presentations=ends, loss=ends / 2.0, accuracy=ends / 1000.0)
    bins = read_bins(tmp_path)
    assert bins["presentations"].tolist() == [0, 5, 20, 25, 100, 105]
    loss, accuracy = online(bins).axes
    assert loss.get_lines()[0].get_ydata().tolist() == [0.0, 2.5, 10.0, 12.5, 50.0, 52.5]
    assert accuracy.get_lines()[0].get_xdata().tolist() == bins["presentations"].tolist()
    assert draw_online(tmp_path) == [tmp_path / "figures" / "online.png"]


def test_nothing_is_drawn_of_nothing(tmp_path):
    assert draw_probe(tmp_path) == [] and draw_online(tmp_path) == []
    place = tmp_path / "task_0000_mlp" / "online"
    place.mkdir(parents=True)
    np.savez(place / "bins.npz", presentations=np.array([], dtype=np.int64), loss=np.array([]))
    assert draw_online(tmp_path) == []
