import math

import numpy as np
import pytest
import torch

from plastiscope.error import ConfigError
from plastiscope.measure.keyed import named_seed
from plastiscope.task_shift_mode.continuous_input_deformation import (
    IDENTITY,
    AtBounds,
    ContinuousInputDeformation,
    Drift,
    Sinusoid,
    affine_deformation,
    coverage,
)


def deformed(image: np.ndarray, theta: np.ndarray) -> np.ndarray:
    """Brute force, float64: pixel (i, j) is centred at ((2 j + 1) / w - 1, (2 i + 1) / h - 1); zero outside."""
    c, h, w = image.shape
    result = np.zeros((c, h, w))
    for i, j in np.ndindex(h, w):
        x, y = theta @ ((2 * j + 1) / w - 1, (2 * i + 1) / h - 1, 1)
        column, row = ((x + 1) * w - 1) / 2, ((y + 1) * h - 1) / 2
        for r in (math.floor(row), math.floor(row) + 1):
            for s in (math.floor(column), math.floor(column) + 1):
                if 0 <= r < h and 0 <= s < w:
                    result[:, i, j] += image[:, r, s] * (1 - abs(row - r)) * (1 - abs(column - s))
    return result


def matrix(*entries: float) -> np.ndarray:
    return np.array(entries, dtype=np.float64).reshape(2, 3)


@pytest.mark.parametrize("k", [0, 3])
def test_images_are_deformed_as_by_brute_force(make_data, k):
    data = make_data()
    shift = ContinuousInputDeformation(bounds=None).make(data, seed=1)
    batch = next(shift.task(k).train.batches(4))
    expected = [deformed(x.double().numpy(), shift.theta(k)) for x in data.train.source.inputs[:4]]
    # float32 positions up to 3 pixels (error 2e-7) times differences of neighbours up to 5, twice
    assert np.allclose(batch.inputs, expected, rtol=0, atol=5e-6) and not np.allclose(expected[0], 0, atol=0.1)


def test_the_identity_leaves_images_unchanged(make_data):
    x = make_data(shape=(3, 32, 32)).train.source.inputs
    y = affine_deformation(IDENTITY, (3, 32, 32), x.device)(x, torch.arange(len(x)))
    assert (x - y).abs().max() < 1e-5


def test_linear_drift_is_start_plus_n_moves_along_a_unit_direction(make_data):
    shift = ContinuousInputDeformation(bounds=None, max_drift=0.25).make(make_data(), seed=1)
    assert np.linalg.norm(shift.direction) == pytest.approx(1, abs=1e-15)
    assert np.all(np.abs(shift.start - IDENTITY) <= 0.1) and not np.array_equal(shift.start, IDENTITY)
    for k in range(30):
        assert np.array_equal(shift.theta(k), shift.start + (k + 1) * 0.25 * shift.direction)


def test_a_random_walk_is_the_sum_of_its_steps(make_data):
    shift = ContinuousInputDeformation(drift=Drift.random_walk, bounds=None, std=0.2).make(make_data(), seed=1)
    path = [shift.theta(k) for k in range(500)]
    steps = np.diff(path, axis=0)
    assert steps.std() == pytest.approx(0.2, rel=0.03) and abs(steps.mean()) < 0.02  # 2994 draws: 1.3 %, 0.0037
    theta = shift.start
    for n in range(1, 6):
        rng = np.random.default_rng(named_seed(1, "continuous_input_deformation", "walk", n))
        theta = theta + rng.normal(0, 0.2, (2, 3))
        assert np.array_equal(path[n - 1], theta)


def test_the_published_sinusoid_moves_all_entries_together(make_data):
    config = ContinuousInputDeformation(drift=Drift.sinusoidal, sinusoid=Sinusoid.shared, bounds=None)
    shift = config.make(make_data(), seed=1)
    for k in range(10):
        assert np.array_equal(shift.theta(k), IDENTITY + 5 * np.sin(0.1 * k))


def test_entries_of_a_sinusoid_have_their_own_amplitude_and_phase(make_data):
    config = ContinuousInputDeformation(drift=Drift.sinusoidal, bounds=None, amplitude=0.2, frequency=0.3)
    shift = config.make(make_data(), seed=1)
    x = np.array([shift.theta(k) - IDENTITY for k in range(40)])
    # A sin(f k + p) solves x(k + 1) + x(k - 1) = 2 cos(f) x(k), and A follows from two neighbours
    assert np.allclose(x[2:] + x[:-2], 2 * math.cos(0.3) * x[1:-1], rtol=0, atol=1e-15)
    amplitude = np.sqrt(x[0] ** 2 + ((x[1] - x[0] * math.cos(0.3)) / math.sin(0.3)) ** 2)
    assert np.all(amplitude <= 0.2) and len(np.unique(amplitude.round(6))) == 6
    assert len(np.unique((x[0] / amplitude).round(6))) == 6


def bounced(value: float, bound: float) -> float:
    while abs(value) > bound:
        value = math.copysign(2 * bound, value) - value
    return value


@pytest.mark.parametrize("at_bounds", AtBounds)
@pytest.mark.parametrize("drift", Drift)
def test_entries_stay_within_the_bounds(make_data, drift, at_bounds):
    config = ContinuousInputDeformation(drift=drift, at_bounds=at_bounds, std=0.5)
    free = ContinuousInputDeformation(drift=drift, bounds=None, std=0.5)
    shift, unbounded = config.make(make_data(), seed=1), free.make(make_data(), seed=1)
    before, inside = shift.start - IDENTITY, unbounded.start - IDENTITY
    bound = (lambda v: bounced(v, 0.3)) if at_bounds is AtBounds.reflect else (lambda v: min(max(v, -0.3), 0.3))
    for k in range(40):
        away, away_free = shift.theta(k) - IDENTITY, unbounded.theta(k) - IDENTITY
        # the walk is bounded at each step; the others have a path of their own, of which the bounded part is seen
        path = before + (away_free - inside) if drift is Drift.random_walk else away_free
        assert np.allclose(away, np.vectorize(bound)(path), rtol=0, atol=1e-12)
        assert np.all(np.abs(away) <= 0.3 + 1e-12)
        before, inside = away, away_free
    assert np.abs(away_free).max() > 0.3


COS = math.sqrt(0.5)


@pytest.mark.parametrize(
    ("theta", "share"),
    [
        (matrix(1, 0, 0, 0, 1, 0), 1),
        (matrix(2, 0, 0, 0, 3, 0), 1),  # zoomed out: all of it is seen
        (matrix(0.5, 0, 0, 0, 0.5, 0), 1 / 4),
        (matrix(1, 0, 0.5, 0, 1, 0), 3 / 4),
        (matrix(1, 0, 0.5, 0, 1, -1), 3 / 8),
        (matrix(1, 0, 2.5, 0, 1, 0), 0),
        (matrix(1, 0, 0, 0, 0, 0), 0),  # a line
        (matrix(-1, 0, 0, 0, 1, 0), 1),  # mirrored
        (matrix(COS, -COS, 0, COS, COS, 0), 2 * (math.sqrt(2) - 1)),  # an octagon
        (matrix(1, 1, 0, 0, 1, 0), 3 / 4),  # sheared: two corners of half a square each
    ],
)
def test_coverage_in_closed_form(theta, share):
    assert coverage(theta) == pytest.approx(share, abs=1e-14)


@pytest.mark.parametrize("seed", range(8))
def test_coverage_by_counting_points(seed):
    theta = IDENTITY + np.random.default_rng(seed).uniform(-0.6, 0.6, (2, 3))
    centres = (np.arange(400) + 0.5) / 200 - 1
    points = np.stack(np.meshgrid(centres, centres), -1).reshape(-1, 2)
    seen = np.linalg.solve(theta[:, :2], (points - theta[:, 2]).T)
    # cells that an edge crosses are at most 4 * 2 * 400 of 160,000, and half of them balance; 0.5 % is ample
    assert coverage(theta) == pytest.approx(np.mean(np.all(np.abs(seen) <= 1, axis=0)), abs=5e-3)


def test_a_task_reports_theta_and_coverage(make_data):
    shift = ContinuousInputDeformation().make(make_data(), seed=1)
    numbers, theta = shift.task(4).numbers, shift.theta(4)
    assert list(numbers) == ["coverage", "theta_11", "theta_12", "theta_13", "theta_21", "theta_22", "theta_23"]
    assert list(numbers.values()) == [coverage(theta), *theta.flatten().tolist()]
    assert 0 < numbers["coverage"] <= 1


def test_training_and_test_images_are_deformed_alike(make_data):
    data = make_data()
    task = ContinuousInputDeformation().make(data, seed=1).task(0)
    assert task.train.transforms == task.test.transforms == task.validation.transforms and len(task.classes) == 6


def test_flat_vectors_are_refused(make_data):
    with pytest.raises(ConfigError, match=r"needs images \[c, h, w\], these data are flat vectors"):
        ContinuousInputDeformation().make(make_data(shape=(64,)), seed=0)


@pytest.mark.parametrize("name", ["initial_range", "max_drift", "std", "amplitude", "frequency", "bounds"])
def test_settings_out_of_range_are_refused(name):
    with pytest.raises(ConfigError, match=f"{name}=-0.1: must be"):
        ContinuousInputDeformation(**{name: -0.1})
