from itertools import pairwise

import numpy as np
import pytest
import torch

from plastiscope.error import ConfigError
from plastiscope.measure.keyed import named_seed
from plastiscope.measure.loss import Loss, per_sample_loss
from plastiscope.task_shift_mode.drifting_values import DriftingValues, repelled, spaced, within_bounds


def brute_force_move(values: list[float], noise, strength: float, gap: float, lower: float, upper: float):
    """The published move written out, with the gap checked again after a compression."""
    v = [a + float(b) for a, b in zip(values, noise, strict=True)]
    for _ in range(4 * len(v)):
        close = False
        for i in range(len(v) - 1):
            if v[i] >= v[i + 1] - gap:
                close = True
                o = v[i] - v[i + 1] + gap
                v[i], v[i + 1] = v[i] - (o + gap) / 2 * strength, v[i + 1] + (o + gap) / 2 * strength
        if not close:
            break

    def sort_and_space(v):
        if any(a > b - gap for a, b in pairwise(v)):
            v = sorted(v)
            for i in range(1, len(v)):
                if v[i] < v[i - 1] + gap:
                    v[i] = v[i - 1] + gap
        return v

    v = sort_and_space(v)
    room = upper - lower - (len(v) - 1) * gap
    if v[-1] - v[0] > room:
        centre, factor = (v[-1] + v[0]) / 2, room / (v[-1] - v[0])
        v = sort_and_space([centre + (a - centre) * factor for a in v])
    if v[0] < lower:
        v = [a + (lower - v[0]) for a in v]
    if v[-1] > upper:
        v = [a - (v[-1] - upper) for a in v]
    return v


CONFIGS = {
    "shipped": DriftingValues(),
    "much drift": DriftingValues(std=0.6, repulsion=0.5),
    "tight bounds": DriftingValues(std=0.5, lower=-0.8, upper=0.9),
    "wide gaps": DriftingValues(std=0.3, min_gap=0.9, lower=-3, upper=3),
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_values_move_as_published(make_data, config):
    shift = config.make(make_data(), seed=2)
    expected = [0.0, 1, 2, 3, 4, 5]
    for k in range(40):
        noise = np.random.default_rng(named_seed(2, "drifting_values", k + 1)).normal(0, config.std, 6)
        expected = brute_force_move(expected, noise, config.repulsion, config.min_gap, config.lower, config.upper)
        assert np.allclose(shift.values(k), expected, rtol=0, atol=1e-12)
        expected = shift.values(k).tolist()  # rounding must not decide a later comparison
        assert np.diff(expected).min() >= config.min_gap - 1e-12
        assert config.lower - 1e-12 <= expected[0] and expected[-1] <= config.upper + 1e-12


def test_without_drift_valid_values_stay(make_data):
    shift = DriftingValues(std=0).make(make_data(num_classes=10), seed=2)
    assert np.array_equal(shift.values(50), np.arange(10.0))


def test_one_sweep_of_repulsion_by_hand():
    # o = 1 - 1.1 + 0.2 = 0.1; both move by (0.1 + 0.2) / 2 * 1 = 0.15, and are 0.4 apart: settled
    assert np.allclose(repelled(np.array([1.0, 1.1]), gap=0.2, strength=1.0), [0.85, 1.25], rtol=0, atol=1e-15)


def test_neighbours_exactly_a_gap_apart_repel_each_other():
    # v_0 = v_1 - gap: o = 0, so both move by (0 + 0.5) / 2 * 1 = 0.25 in the first sweep, and the second is settled
    assert repelled(np.array([0.0, 0.5]), gap=0.5, strength=1.0).tolist() == [-0.25, 0.75]
    assert repelled(np.array([0.0, 0.75]), gap=0.5, strength=1.0).tolist() == [0.0, 0.75]


def test_without_repulsion_values_are_sorted_and_spaced():
    assert np.allclose(repelled(np.array([2.0, 1.0, 1.1]), 0.2, 0.0), [1.0, 1.2, 2.0], rtol=0, atol=1e-15)
    assert np.array_equal(spaced(np.array([0.0, 0.5, 3.0]), 0.2), [0.0, 0.5, 3.0])


def test_a_compression_leaves_the_gaps():
    # room 4 - 3 * 0.5 = 2.5, factor 0.25: 0, 0.125, 0.25, 2.5 about the centre 5; spaced, then shifted down
    values = within_bounds(np.array([0.0, 0.5, 1.0, 10.0]), gap=0.5, lower=-2.0, upper=2.0)
    assert np.allclose(values, np.array([3.75, 4.25, 4.75, 6.25]) - 4.25, rtol=0, atol=1e-14)


def test_values_beyond_a_bound_are_shifted():
    assert np.allclose(within_bounds(np.array([-3.0, 0.0]), 0.2, -2, 5), [-2, 1], rtol=0, atol=1e-15)
    assert np.allclose(within_bounds(np.array([3.0, 6.0]), 0.2, -2, 5), [2, 5], rtol=0, atol=1e-15)


def test_targets_are_the_values_of_the_classes(make_data):
    data = make_data()
    shift = DriftingValues().make(data, seed=2)
    task = shift.task(3)
    values = shift.values(3)
    assert task.loss is Loss.mse and task.classes == () and shift.outputs == task.active_outputs == 1
    for samples, origin in ((task.train, data.train), (task.validation, data.validation), (task.test, data.test)):
        assert samples.targets.dtype == torch.float32
        assert samples.targets.tolist() == [float(np.float32(values[label])) for label in origin.labels.tolist()]
    assert task.numbers == {f"label_{i}_value": values[i] for i in range(6)}
    outputs = torch.zeros(len(task.train), 1)
    assert torch.equal(per_sample_loss(task.loss, outputs, task.train.targets), task.train.targets**2)


def test_a_hundred_values_fit_between_the_published_bounds(make_data):
    values = DriftingValues().make(make_data(num_classes=100, train=1, test=1), seed=2).values(5)
    assert np.diff(values).min() >= 0.2 - 1e-12 and values[0] >= -20 - 1e-12 and values[-1] <= 20 + 1e-12


def test_values_that_cannot_fit_are_refused(make_data):
    with pytest.raises(ConfigError, match=r"6 values, min_gap=8\.0 apart, do not fit"):
        DriftingValues(min_gap=8.0).make(make_data(), seed=0)
    with pytest.raises(ConfigError, match=r"lower=1\.0: must be less than upper=0\.0"):
        DriftingValues(lower=1.0, upper=0.0)
    with pytest.raises(ConfigError, match=r"std=-1\.0: must be 0 or more"):
        DriftingValues(std=-1.0)
