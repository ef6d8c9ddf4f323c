"""Curves over seeds against brute force: mean, standard error, bootstrap interval, moving mean."""

import numpy as np
import pytest

from plastiscope.measure.over_seeds import POINTS_AT_ONCE, over_seeds, smoothed


def test_mean_and_standard_error_in_closed_form():
    band = over_seeds(np.array([[1.0, 2.0], [3.0, 2.0], [8.0, 2.0]]))
    assert band.n.tolist() == [3, 3]
    assert band.mean.tolist() == [4.0, 2.0]
    assert band.error == pytest.approx([np.sqrt((9 + 1 + 16) / 2 / 3), 0.0])
    assert band.low[1] == band.high[1] == 2.0


def test_the_interval_is_that_of_means_of_drawn_seeds():
    """All 27 samples of three values with replacement: the quantiles of their means, up to the draws."""
    values = np.array([0.0, 1.0, 5.0])
    means = [values[[i, j, k]].mean() for i in range(3) for j in range(3) for k in range(3)]
    band = over_seeds(values[:, None], level=0.8, resamples=200_000)
    low, high = np.quantile(means, [0.1, 0.9])
    assert band.low[0] == pytest.approx(low) and band.high[0] == pytest.approx(high)


def test_seeds_that_lack_points():
    values = np.array([[1.0, np.nan, np.nan], [3.0, 4.0, np.nan], [5.0, 6.0, np.nan]])
    band = over_seeds(values)
    assert band.n.tolist() == [3, 2, 0]
    assert band.mean[:2].tolist() == [3.0, 5.0] and band.error[1] == pytest.approx(1.0)
    assert 4.0 <= band.low[1] < 5.0 < band.high[1] <= 6.0
    assert np.isnan([band.mean[2], band.error[2], band.low[2], band.high[2]]).all()


def test_one_seed_has_no_error():
    band = over_seeds(np.array([[1.0, 2.0]]))
    assert band.mean.tolist() == [1.0, 2.0]
    assert np.isnan([band.error, band.low, band.high]).all()


def test_equal_input_gives_equal_bits_and_another_seed_others():
    values = np.random.default_rng(3).normal(size=(6, 4))
    first, again, other = over_seeds(values), over_seeds(values), over_seeds(values, seed=1)
    assert first.low.tolist() == again.low.tolist()
    assert first.low.tolist() != other.low.tolist()


def test_points_are_resampled_with_the_same_draws_in_whichever_portion_they_are():
    row = np.random.default_rng(4).normal(size=(5, 1))
    band = over_seeds(np.repeat(row, POINTS_AT_ONCE + 3, 1), resamples=50)
    assert len(set(band.low.round(12))) == len(set(band.high.round(12))) == 1


@pytest.mark.parametrize("window", [1, 2, 3, 5, 8, 30])
def test_moving_mean_against_brute_force(window):
    values = np.random.default_rng(0).normal(size=(2, 11))
    values[1, 3] = np.nan
    found = smoothed(values, window)
    for i in range(2):
        for j in range(11):
            room = min(j, 10 - j)
            part = values[i, j - min(window // 2, room) : j + min((window - 1) // 2, room) + 1]
            expected = np.nan if np.isnan(values[i, j]) else np.nanmean(part)
            assert found[i, j] == pytest.approx(expected, nan_ok=True)


def test_a_straight_line_stays_one():
    line = np.arange(20.0)
    assert smoothed(line, 7) == pytest.approx(line)
