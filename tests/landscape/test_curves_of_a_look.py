"""Curves of a look: closed forms, the samples' own losses, both kinds of statistics."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from landscape.look_cases import ENDS, looked, normed, of_weights, ring, settings_of, stored, with_norms
from plastiscope.error import DataError
from plastiscope.landscape.look import SavedPoint
from plastiscope.landscape.settings import ConnectivitySettings
from plastiscope.measure.keyed import keyed_uniform
from plastiscope.measure.landscape.connectivity import fresh_statistics
from plastiscope.run.storage import read_json


def connected(planes=None, **options):
    return settings_of(planes, enable_mode_connectivity=True, mode_connectivity=ConnectivitySettings(**options))


@pytest.fixture(scope="module")
def around(tmp_path_factory):
    """The ring's curve, and the plane of it."""
    folder = tmp_path_factory.mktemp("ring")
    settings = connected({"grid_resolution": 21}, curve_points=21, opt_steps=400)
    landscape = ring(folder, settings=settings, seed=1)
    return looked(landscape), landscape, folder


def test_the_line_crosses_the_hill_and_the_curve_goes_round_it(around):
    numbers, landscape, folder = around
    arrays, record = stored(folder, "mode/curves")
    assert numbers["mode_linear_barrier"] == 1 == numbers["mode_linear_mid_loss"]
    assert record["barrier_at"]["linear_train"] == 0.5
    t = np.linspace(0, 1, 21)
    expected = ((1 - 2 * t) ** 2 - 1) ** 2
    assert arrays["t"] == pytest.approx(t) and arrays["linear_train_loss"] == pytest.approx(expected, abs=1e-12)
    assert numbers["mode_linear_mean_loss"] == pytest.approx(np.trapezoid(expected, t))
    assert numbers["mode_linear_mean_loss_by_length"] == pytest.approx(np.trapezoid(expected, t))
    assert numbers["mode_linear_length_ratio"] == pytest.approx(1, rel=1e-12) and record["chord"] == 2
    assert numbers["mode_bezier_barrier"] <= 0.07 and numbers["mode_bezier_mean_loss"] <= 0.022
    assert arrays["bezier_train_loss"][[0, -1]].tolist() == [0, 0]
    assert numbers["mode_bezier_bend_loss"] > 1 > numbers["mode_bezier_mid_loss"]  # the bend is not on the curve
    assert "mode_linear_mid_accuracy" not in numbers  # a loss without classes
    assert landscape.net.theta.equal(ENDS[0])


def test_errors_of_samples_that_move_together(around):
    """The two samples' losses are half and one and a half of L: each error is half the value."""
    numbers, _, folder = around
    for name in ("linear_barrier", "linear_mid_loss", "linear_mean_loss", "bezier_mid_loss", "bezier_mean_loss"):
        assert numbers[f"mode_{name}_stderr"] == pytest.approx(numbers[f"mode_{name}"] / 2, rel=1e-9)
    arrays, _ = stored(folder, "mode/curves")
    assert arrays["linear_train_stderr"] == pytest.approx(arrays["linear_train_loss"] / 2, abs=1e-12)


def test_the_plane_of_the_curve_holds_ends_and_bend(around):
    numbers, _, folder = around
    arrays, record = stored(folder, "planes/three_point")
    points = arrays["path"]
    assert record["points"] == ["start", "the weights", "bend"]
    assert points[:2].tolist() == [[-1, 0], [1, 0]] and abs(points[2, 1] - 2.12) <= 0.08
    x, y = np.meshgrid(arrays["a"], arrays["b"], indexing="ij")
    assert arrays["losses"] == pytest.approx((x**2 + y**2 - 1) ** 2, abs=1e-10)
    assert numbers["plane_three_point_center_loss"] == 1  # the middle of the chord
    t = np.linspace(0, 1, 101)[:, None]
    assert arrays["curve"] == pytest.approx((1 - t) ** 2 * points[0] + 2 * t * (1 - t) * points[2] + t**2 * points[1])
    assert arrays["a"][-1] >= 1.2 and arrays["b"][-1] == pytest.approx(1.2 * points[2, 1])


def test_equal_ends_are_told_and_not_drawn(tmp_path):
    same = SavedPoint("before", lambda: {"theta": ENDS[0].clone()})
    landscape = replace(ring(tmp_path, settings=connected()), start=same)
    assert looked(landscape) == {}
    assert "degenerate" in read_json(tmp_path / "summary.json")["absent"]["mode"]
    assert stored(tmp_path, "mode/curves")[1]["degenerate"] and not list(tmp_path.rglob("*.png"))


def test_no_other_end_and_another_architecture(tmp_path):
    nowhere = replace(ring(tmp_path, settings=connected()), start=None, without_start="the first task")
    assert looked(nowhere) == {}
    assert read_json(tmp_path / "summary.json")["absent"]["mode"] == "the first task"
    other = SavedPoint("run b", lambda: {"theta": torch.zeros(3)})
    with pytest.raises(DataError, match=r"run b is of another architecture: theta has the shape \(3,\) there"):
        looked(replace(ring(tmp_path, settings=connected()), start=other))


def test_a_training_that_diverges_is_told(tmp_path):
    numbers = looked(ring(tmp_path, settings=connected({}, lr=1e6)))
    _, record = stored(tmp_path, "mode/curves")
    assert "lower mode_connectivity.lr" in record["warning"]
    assert "mode_bezier_barrier" not in numbers and numbers["mode_linear_barrier"] == 1
    assert "the bend" in read_json(tmp_path / "summary.json")["absent"]["planes/three_point"]


@pytest.fixture(scope="module")
def between_norms(tmp_path_factory):
    """A curve between two nets with batch normalisations."""
    folder = tmp_path_factory.mktemp("norms")
    landscape = normed(folder, settings=connected({}, curve_points=5, opt_steps=6), seed=2)
    before = {name: value.clone() for name, value in landscape.net.state_dict().items()}
    numbers = looked(landscape)
    assert all(value.equal(before[name]) for name, value in landscape.net.state_dict().items())
    return numbers, landscape, folder


def batches_of(landscape):
    order = keyed_uniform(2, "statistics", torch.arange(45)).argsort()
    shuffled = landscape.inputs[order]
    return [*shuffled[:33].split(11), shuffled[33:]]


def test_stale_statistics_are_the_networks_at_the_ends(between_norms):
    _, landscape, folder = between_norms
    arrays, record = stored(folder, "mode/curves")
    for split, (inputs, targets) in {
        "train": (landscape.inputs, landscape.targets),
        "test": landscape.test,
    }.items():
        for end, net in ((0, with_norms(7)), (-1, landscape.net)):
            with torch.no_grad():
                outputs = net(inputs[: len(inputs)])
                losses = F.cross_entropy(outputs, targets, reduction="none")
            stale = f"linear_{split}_stale"
            assert arrays[f"{stale}_loss"][end] == pytest.approx(losses.mean().item(), rel=1e-14)
            assert arrays[f"{stale}_accuracy"][end] == (outputs.argmax(1) == targets).double().mean().item()
            assert arrays[f"{stale}_stderr"][end] == pytest.approx(losses.std().item() / math.sqrt(len(losses)))
            with fresh_statistics(net, batches_of(landscape)), torch.no_grad():
                anew = F.cross_entropy(net(inputs), targets).item()
            assert arrays[f"linear_{split}_loss"][end] == pytest.approx(anew, rel=1e-12)
            difference = record["anew_minus_stored_at_ends"][f"linear_{split}"][end]
            assert difference == pytest.approx(anew - losses.mean().item(), rel=1e-9) and abs(difference) > 1e-3


def test_the_middle_of_the_line_with_both_kinds_of_statistics(between_norms):
    numbers, landscape, folder = between_norms
    arrays, record = stored(folder, "mode/curves")
    start, end = with_norms(7).state_dict(), landscape.net.state_dict()
    middle = with_norms(0)
    middle.load_state_dict({k: (start[k] + end[k]) / 2 if end[k].is_floating_point() else end[k] for k in end})
    with torch.no_grad():
        stale = F.cross_entropy(middle(landscape.inputs), landscape.targets).item()
    with fresh_statistics(middle, batches_of(landscape)), torch.no_grad():
        anew = F.cross_entropy(middle(landscape.inputs), landscape.targets).item()
    assert arrays["linear_train_stale_loss"][2] == pytest.approx(stale, rel=1e-12)
    assert numbers["mode_linear_mid_loss"] == pytest.approx(anew, rel=1e-12) and abs(stale - anew) > 1e-3
    assert record["statistics"] == {"samples": 45, "batch": 11}

    def barrier(losses):
        chord = np.linspace(losses[0], losses[-1], 5)
        return max(0.0, (losses - chord).max())

    for split, ending in (("train", ""), ("test", "_test")):
        for curve in ("linear", "bezier"):
            mixed, fresh = (arrays[f"{curve}_{split}{kind}_loss"] for kind in ("_stale", ""))
            assert numbers[f"mode_{curve}_barrier{ending}"] == pytest.approx(barrier(fresh), abs=1e-12)
            assert numbers[f"mode_{curve}_barrier_stale{ending}"] == pytest.approx(barrier(mixed), abs=1e-12)
    plane, _ = stored(folder, "planes/three_point")
    assert plane["losses"][2, 2] == pytest.approx(anew, rel=1e-12)  # its cells have statistics of their own


def test_the_error_of_a_barrier_is_that_of_the_same_samples(between_norms):
    """Losses of a sample along the line move together: the error is that of their differences."""
    numbers, landscape, folder = between_norms
    start, end = with_norms(7).state_dict(), landscape.net.state_dict()
    net, (inputs, targets) = with_norms(0), landscape.test

    def losses(t):
        net.load_state_dict({k: (1 - t) * start[k] + t * end[k] if end[k].is_floating_point() else end[k] for k in end})
        with fresh_statistics(net, batches_of(landscape)), torch.no_grad():
            return F.cross_entropy(net(inputs), targets, reduction="none")

    at = stored(folder, "mode/curves")[1]["barrier_at"]["linear_test"]
    above = losses(at) - (1 - at) * losses(0) - at * losses(1)
    expected = above.std().item() / math.sqrt(len(above))
    assert numbers["mode_linear_barrier_stderr_test"] == pytest.approx(expected, rel=1e-9)
    curve = torch.stack([losses(t / 4) for t in range(5)])
    mean = (curve[1:] + curve[:-1]).sum(0) / 8
    assert numbers["mode_linear_mean_loss_test"] == pytest.approx(mean.mean().item(), rel=1e-12)
    assert numbers["mode_linear_mean_loss_stderr_test"] == pytest.approx(mean.std().item() / math.sqrt(21), rel=1e-9)


def test_a_curve_is_of_all_parameters(tmp_path):
    """Also where only some are looked at: else its ends would not be the networks."""
    whole = looked(normed(tmp_path / "a", settings=connected(curve_points=3, opt_steps=2)))
    part = connected(curve_points=3, opt_steps=2)
    part = looked(normed(tmp_path / "b", settings=replace(part, params=["0"])))
    assert whole == {key: pytest.approx(value, rel=1e-12) for key, value in part.items()}


def test_weight_decay_counts_along_the_curve(tmp_path):
    from plastiscope.landscape.settings import LossSettings

    flat = of_weights(lambda t: 1 + 0 * t.sum(), ENDS[0], tmp_path)
    start = SavedPoint("before", lambda: {"theta": ENDS[1].clone()})
    settings = replace(connected(curve_points=5, opt_steps=1), loss=LossSettings(include_weight_decay=True))
    looked(replace(flat, settings=settings, start=start, weight_decay=0.5))
    arrays, _ = stored(tmp_path, "mode/curves")
    t = np.linspace(0, 1, 5)
    assert arrays["linear_train_loss"] == pytest.approx(1 + 0.25 * (1 - 2 * t) ** 2, rel=1e-12)


@pytest.mark.parametrize("options", [{"curve_points": 7}, {"opt_steps": 3}, {"lr": 0.01}, {"bn_samples": 22}])
def test_every_setting_of_a_curve_counts(tmp_path, options):
    base = {"curve_points": 3, "opt_steps": 2}
    one = looked(normed(tmp_path / "a", settings=connected(**base)))
    other = looked(normed(tmp_path / "b", settings=connected(**base | options)))
    assert one["mode_bezier_mean_loss"] != other["mode_bezier_mean_loss"]
    assert stored(tmp_path / "a", "mode/curves")[1] != stored(tmp_path / "b", "mode/curves")[1]
