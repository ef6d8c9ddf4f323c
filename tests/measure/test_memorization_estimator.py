"""The estimators against loops over models and samples."""

import math

import numpy as np
import pytest

from plastiscope.measure.memorization import draw_subset, influence, memorization, subset_mask, subset_random

MASK = np.array(
    [
        [1, 1, 0, 1],
        [1, 0, 1, 1],
        [0, 1, 1, 1],
        [1, 0, 0, 1],
        [0, 1, 1, 1],
    ],
    bool,
)
CORRECT = np.array(
    [
        [1, 1, 0, 1],
        [1, 0, 1, 1],
        [0, 1, 1, 0],
        [1, 1, 0, 1],
        [1, 1, 0, 1],
    ],
    bool,
)
OUTCOMES = np.random.default_rng(3).random((5, 2))


def brute_force(mask: np.ndarray, outcomes: np.ndarray, i: int, j: int) -> float:
    sides = [[outcomes[m, j] for m in range(len(mask)) if mask[m, i] == side] for side in (True, False)]
    return float("nan") if not all(sides) else sum(sides[0]) / len(sides[0]) - sum(sides[1]) / len(sides[1])


def test_memorization_equals_brute_force():
    found = memorization(MASK, CORRECT)
    np.testing.assert_allclose(found.values, [brute_force(MASK, CORRECT, i, i) for i in range(4)], rtol=1e-15)
    np.testing.assert_allclose(found.values, [3 / 3 - 1 / 2, 3 / 3 - 1 / 2, 2 / 3 - 0, math.nan], rtol=1e-15)


def test_a_sample_in_all_models_or_in_none_is_unknown():
    found = memorization(MASK, CORRECT)
    assert math.isnan(found.values[3])
    assert found.trained_with.tolist() == [3, 3, 3, 5]
    assert found.trained_without.tolist() == [2, 2, 2, 0]
    assert np.isnan(memorization(~MASK, CORRECT).values).tolist() == [False, False, False, True]
    np.testing.assert_allclose(memorization(~MASK, CORRECT).values[:3], -found.values[:3])


def test_influence_equals_brute_force():
    found = influence(MASK, OUTCOMES)
    wanted = [[brute_force(MASK, OUTCOMES, i, j) for j in range(2)] for i in range(4)]
    np.testing.assert_allclose(found.values, wanted, rtol=1e-12)
    assert np.isnan(found.values[3]).all()
    assert (found.trained_with.tolist(), found.trained_without.tolist()) == ([3, 3, 3, 5], [2, 2, 2, 0])


def test_influence_of_a_sample_on_itself_is_its_memorization():
    on_training = influence(MASK, CORRECT).values
    np.testing.assert_allclose(np.diagonal(on_training), memorization(MASK, CORRECT).values, rtol=1e-15)


def test_random_outcomes_are_not_memorized():
    models, n = 200, 2_000
    mask = subset_mask(n, models)
    correct = np.random.default_rng(0).random((models, n)) < 0.4
    found = memorization(mask, correct)
    inside, outside = found.trained_with, found.trained_without
    error = math.sqrt((0.4 * 0.6 * (1 / inside + 1 / outside)).sum()) / n
    assert abs(found.values.mean()) < 4 * error
    always = memorization(mask, mask)  # right only when it was seen
    np.testing.assert_array_equal(always.values, np.ones(n))


def test_subsets_are_drawn_as_the_protocol_says():
    random = subset_random(3)
    subset = draw_subset(random, 1797)
    ours = np.random.RandomState(5003)
    np.testing.assert_array_equal(subset, ours.choice(1797, 1257, replace=False))
    np.testing.assert_array_equal(random.permutation(1257), ours.permutation(1257))  # the orders go on from there
    assert len(np.unique(subset)) == 1257 == int(0.7 * 1797)
    mask = subset_mask(100, 4, share=0.5)
    assert mask.sum(1).tolist() == [50] * 4
    assert set(np.flatnonzero(mask[2])) == set(draw_subset(subset_random(2), 100, 0.5))


def test_shapes_and_values_that_cannot_be():
    with pytest.raises(ValueError, match=r"needs outcomes of shape \(5, 4\)"):
        memorization(MASK, CORRECT[:, :3])
    with pytest.raises(ValueError, match="needs outcomes"):
        influence(MASK, CORRECT[:4])
    with pytest.raises(ValueError, match="must be bool"):
        memorization(MASK.astype(int), CORRECT)
    with pytest.raises(ValueError, match="not finite"):
        memorization(MASK, np.where(CORRECT, np.nan, 1.0))
