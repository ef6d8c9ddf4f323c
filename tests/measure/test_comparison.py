"""Coefficients against scipy, scikit-learn and numbers made by hand."""

import math

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score
from sklearn.metrics.pairwise import cosine_similarity

from plastiscope.measure.comparison import auroc, cosine, finite_pairs, pearson, ranks, shuffled, spearman

NAN = float("nan")
RNG = np.random.default_rng(0)
CASES = {
    "normal": (RNG.normal(size=200), RNG.normal(size=200)),
    "ties": (RNG.integers(0, 5, 200), RNG.integers(0, 3, 200)),
    "float32": (RNG.random(200).astype(np.float32), RNG.random(200).astype(np.float32)),
    "far_from_zero": (1e6 + RNG.random(200), 1e6 + RNG.random(200)),
    "tiny": (1e-200 * RNG.random(200), 1e-200 * RNG.random(200)),
    "huge": (1e200 * RNG.random(200), 1e200 * RNG.random(200)),
}


@pytest.mark.parametrize("case", CASES)
def test_coefficients_equal_those_of_scipy_and_scikit_learn(case):
    x, y = CASES[case]
    assert spearman(x, y).value == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-12)
    small = [values / np.abs(values).max() for values in (x.astype(np.float64), y.astype(np.float64))]
    assert pearson(x, y).value == pytest.approx(stats.pearsonr(*small).statistic, abs=1e-9)
    assert cosine(x, y).value == pytest.approx(cosine_similarity(*(v[None] for v in small)).item(), abs=1e-12)
    positive = y > np.median(y)
    found = auroc(x, positive)
    assert found.value == pytest.approx(roc_auc_score(positive, x), abs=1e-12)
    assert (found.positives, found.negatives) == (positive.sum(), (~positive).sum())


def test_ranks_share_the_mean_of_ties():
    assert ranks(np.array([3.0, 1.0, 3.0, 2.0, 3.0])).tolist() == [4, 1, 4, 2, 4]
    values = RNG.integers(0, 7, 50)
    np.testing.assert_array_equal(ranks(values), stats.rankdata(values))


def test_numbers_made_by_hand():
    x, y = np.array([1.0, 2.0, 3.0, 4.0]), np.array([1.0, 3.0, 2.0, 4.0])
    assert pearson(x, y) == (pytest.approx(0.8), 4)
    assert spearman(x, 10 * y**3) == (pytest.approx(0.8), 4)
    assert cosine(np.array([1.0, 0.0]), np.array([1.0, 1.0])) == (pytest.approx(math.sqrt(0.5)), 2)
    # positives 2 and 3 against negatives 1 and 2: of four pairs three are won and one is a tie
    assert auroc(np.array([1.0, 2.0, 2.0, 3.0]), np.array([False, False, True, True])) == (0.875, 2, 2)


def test_only_pairs_that_are_finite_count():
    x, y = np.array([1.0, 2.0, NAN, 4.0, 5.0, np.inf]), np.array([2.0, 1.0, 7.0, 3.0, NAN, 1.0])
    assert [len(values) for values in finite_pairs(x, y)] == [3, 3]
    for measure in (pearson, spearman, cosine):
        assert measure(x, y) == measure(np.array([1.0, 2, 4]), np.array([2.0, 1, 3]))
        assert measure(x, y).n == 3
    assert auroc(x, y > 1.5) == auroc(np.array([1.0, 2, 4, 5]), np.array([True, False, True, False]))


def test_what_has_no_meaning_is_nan():
    three, constant = np.array([1.0, 2.0, 4.0]), np.full(3, 0.1)
    assert math.isnan(pearson(three, constant).value)
    assert math.isnan(spearman(constant, three).value)
    assert math.isnan(cosine(three, np.zeros(3)).value)
    assert cosine(three, constant).value == pytest.approx(7 / math.sqrt(3 * 21))
    for measure in (pearson, spearman, cosine):
        assert math.isnan(measure(three, np.full(3, NAN)).value)
        assert measure(three, np.full(3, NAN)).n == 0
    assert math.isnan(auroc(three, np.zeros(3, bool)).value)
    with pytest.raises(ValueError, match="not pairs"):
        pearson(three, np.ones(4))


def test_a_shuffled_score_has_a_cosine_but_no_correlation():
    x = 1 + RNG.random(20_000)
    y = x**2
    assert pearson(x, y).value > 0.99
    assert abs(shuffled(pearson, x, y).value) < 4 / math.sqrt(20_000)
    assert abs(shuffled(spearman, x, y).value) < 4 / math.sqrt(20_000)
    floor = x.mean() * y.mean() / math.sqrt((x**2).mean() * (y**2).mean())
    assert shuffled(cosine, x, y).value == pytest.approx(floor, abs=0.005)
    assert shuffled(pearson, x, y) == shuffled(pearson, x, y)
    assert shuffled(pearson, x, y) != shuffled(pearson, x, y, seed=1)


def test_auroc_of_an_inverted_score_is_one_less():
    x, positive = RNG.integers(0, 10, 300), RNG.random(300) < 0.3
    assert auroc(-x, positive).value == pytest.approx(1 - auroc(x, positive).value, abs=1e-15)
