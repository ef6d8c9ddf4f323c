"""Learning time against the check values, brute force sample by sample, and what must not matter."""

import math

import numpy as np
import pytest

from plastiscope.error import DataError
from plastiscope.measure.learning_time import (
    LearningTime,
    RunningMean,
    learning_time,
    lt_censored,
    lt_first,
    lt_frac,
    lt_task,
    mean_threshold,
    running_mean,
    threshold,
)

G = np.array([(4, 2, 0, 0, 0), (1, 1, 1, 5, 0)], np.float64).T
EPOCHS, SAMPLES = 12, 120


def norms() -> np.ndarray:
    """Falling norms of different speed; many late samples, some holes, some that never are there."""
    rng = np.random.default_rng(3)
    values = rng.gamma(2.0, 1.0, (EPOCHS, SAMPLES)) * np.exp(
        -np.arange(EPOCHS)[:, None] * rng.uniform(-0.1, 0.6, SAMPLES)
    )
    values[: EPOCHS // 2, 40:80] = math.nan
    values[rng.random(values.shape) < 0.1] = math.nan
    values[:, 80:84] = math.nan
    return values


def brute(values: np.ndarray, squared: bool, window: int | None, tau: float | None) -> tuple[float, list, list]:
    """tau, lt_frac and lt_first by loops over samples and epochs."""
    means_of = []
    for sample in values.T.tolist():
        g = [v**2 if squared else v for v in sample if not math.isnan(v)]
        g = g if window is None else g[:window] if len(g) >= window else []
        means_of.append([math.fsum(g[: k + 1]) / (k + 1) for k in range(len(g))])
    every = [r for means in means_of for r in means]
    tau = math.fsum(every) / len(every) if tau is None else tau
    learned_of = [[r <= tau for r in means] for means in means_of]
    fraction = [1 - sum(learned) / len(learned) if learned else math.nan for learned in learned_of]
    first = [learned.index(True) + 1 if any(learned) else math.nan for learned in learned_of]
    return tau, fraction, first


@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("window", [None, 1, 5])
@pytest.mark.parametrize("tau", [None, 0.7])
def test_equals_brute_force(squared, window, tau):
    values = norms()
    expected_tau, fraction, first = brute(values, squared, window, tau)
    if tau is None:
        assert mean_threshold(values, squared, window) == pytest.approx(expected_tau, rel=1e-14)
    np.testing.assert_allclose(lt_frac(values, tau, squared, window), fraction, atol=1e-15)
    np.testing.assert_array_equal(lt_first(values, tau, squared, window), first)
    is_never = np.isnan(first) & ~np.isnan(fraction)
    np.testing.assert_array_equal(lt_censored(values, tau, squared, window), is_never)
    assert is_never.any() and not is_never.all()


def test_check_values():
    np.testing.assert_allclose(running_mean(G).T, [(4, 3, 2, 1.5, 1.2), (1, 1, 1, 2, 1.6)], rtol=1e-15)
    assert mean_threshold(G) == pytest.approx(1.83, rel=1e-14)
    np.testing.assert_allclose(lt_frac(G), [0.6, 0.2], rtol=1e-15)
    np.testing.assert_array_equal(lt_first(G, squared=False), [4, 1])
    np.testing.assert_allclose(lt_frac(G + 10), [0.6, 0.2], rtol=1e-15)


def test_the_paper_takes_the_square():
    values = np.array([(2.0, 1.0, 1.0), (1.0, 1.0, 1.0)]).T
    np.testing.assert_array_equal(lt_first(values, tau=2.0), [3, 1])
    np.testing.assert_array_equal(lt_first(values, tau=2.0, squared=False), [1, 1])
    assert lt_frac(values, tau=2.0)[0] == 0


@pytest.mark.parametrize("value", [0.1, 1 / 3, 0.0, 7e8])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("squared", [False, True])
def test_gradients_that_are_all_equal_are_learned_from_the_start(value, dtype, squared):
    rounding = 1 + np.random.default_rng(0).integers(-1, 2, (7, 40)) * np.finfo(np.float32).eps
    values = np.full((7, 40), value, dtype) * rounding.astype(dtype)
    np.testing.assert_array_equal(lt_frac(values, squared=squared), 0)
    np.testing.assert_array_equal(lt_first(values, squared=squared), 1)
    strict = lt_frac(values, squared=squared, tolerance=0)
    assert value == 0 or (strict > 0).any()  # what the tolerance is for


def test_never_learned_is_censored_and_not_first():
    values = np.array([(9.0, 9.0, 9.0), (1.0, 1.0, 1.0)]).T
    first = lt_first(values)
    assert math.isnan(first[0]) and first[1] == 1
    np.testing.assert_array_equal(lt_censored(values), [True, False])
    np.testing.assert_array_equal(lt_frac(values), [1, 0])


def test_time_counts_from_the_entry_of_a_sample():
    late = np.vstack([np.full((3, 2), math.nan), G])
    np.testing.assert_allclose(lt_frac(late), lt_frac(G), rtol=1e-15)
    np.testing.assert_array_equal(lt_first(late), lt_first(G))
    assert mean_threshold(late) == mean_threshold(G)
    assert np.isnan(running_mean(late)[:3]).all()


def test_a_window_is_the_same_for_all():
    longer = np.vstack([G, [[50.0, 50.0]]])
    np.testing.assert_allclose(lt_frac(longer, window=5), [0.6, 0.2], rtol=1e-15)
    short = np.column_stack([longer, [math.nan] * 2 + [1e3] * 4])
    np.testing.assert_allclose(lt_frac(short, window=5), [0.6, 0.2, math.nan], rtol=1e-15)
    assert math.isnan(lt_first(short, window=5)[2]) and not lt_censored(short, window=5)[2]


def test_tasks_start_anew():
    by_task = lt_task(np.vstack([G, 3 * G[::-1]]), [0] * 5 + [4] * 5)
    np.testing.assert_array_equal(by_task[0], lt_frac(G))
    np.testing.assert_array_equal(by_task[4], lt_frac(G[::-1]))
    assert list(by_task) == [0, 4]


@pytest.mark.parametrize("scale", [1e-3, 7.0])
def test_the_unit_of_the_gradient_does_not_matter(scale):
    np.testing.assert_array_equal(lt_frac(scale * norms(), squared=True), lt_frac(norms(), squared=True))


def test_permuting_the_samples_permutes_the_result():
    order, values = np.random.default_rng(1).permutation(SAMPLES), norms()
    np.testing.assert_array_equal(lt_frac(values[:, order]), lt_frac(values)[order])
    np.testing.assert_array_equal(lt_first(values[:, order]), lt_first(values)[order])


@pytest.mark.parametrize("window", [None, 4])
def test_rows_and_samples_in_pieces_give_the_same(window):
    values = norms()
    totals, parts = [], [np.arange(0, 50), np.arange(50, SAMPLES)]
    rows = np.split(np.arange(EPOCHS), [1, 5, 6])

    def feed(measure, part):
        for some in rows:
            for where in (np.arange(0, 20), np.arange(20, len(part))):
                measure.add(values[some][:, part[where]], where)
        return measure

    for part in parts:
        totals.append(feed(RunningMean(len(part), True, window), part).total())
    tau = threshold(totals)
    assert tau == pytest.approx(mean_threshold(values, True, window), rel=1e-14)
    whole = learning_time(values, squared=True, window=window)
    for part in parts:
        found = feed(LearningTime(len(part), tau, True, window), part)
        np.testing.assert_array_equal(found.fraction, whole.fraction[part])
        np.testing.assert_array_equal(found.first, whole.first[part])
        np.testing.assert_array_equal(found.censored, whole.censored[part])


def test_nothing_measured_is_nan():
    nothing = np.full((3, 2), math.nan)
    assert math.isnan(mean_threshold(nothing))
    assert np.isnan(lt_frac(nothing)).all() and np.isnan(lt_first(nothing)).all() and not lt_censored(nothing).any()


@pytest.mark.parametrize(
    ("values", "options", "said"),
    [([[-1.0]], {}, "negative"), ([1.0], {}, "not \\[epochs"), ([[1.0]], {"window": 0}, "window of 0")],
)
def test_what_cannot_be_is_refused(values, options, said):
    with pytest.raises(DataError, match=said):
        lt_frac(values, **options)
