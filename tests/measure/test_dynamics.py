"""Training dynamics against the check values, brute force sample by sample, and what must not matter."""

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest

from plastiscope.error import DataError
from plastiscope.measure import dynamics

LOSSES = [[1.0, 2.0], [3.0, 4.0], [0.0, 6.0]]
EPOCHS = [1, 2, 5, 6, 7, 20, 21, 40, 41]
TASKS = np.array([0, 0, 0, 1, 1, 1, 1, 2, 2])


def column(*values: float) -> np.ndarray:
    return np.array(values)[:, None]


def active(values: list[float]) -> list[float]:
    return [v for v in values if not math.isnan(v)]


def all_or_nan(values: list[float]) -> float:
    return math.fsum(values) if len(active(values)) == len(values) else math.nan


def mean(values: list[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan


def brute_trapz(x: list[float]) -> float:
    areas = [(EPOCHS[k + 1] - EPOCHS[k]) * (x[k] + x[k + 1]) / 2 for k in range(len(x) - 1)]
    return all_or_nan(areas)


def brute_variability(x: list[float]) -> float:
    p = [math.exp(-v) for v in active(x)]
    return math.sqrt(mean([(v - mean(p)) ** 2 for v in p])) if p else math.nan


def brute_first_learn(x: list[float]) -> float:
    c = active(x)
    return math.nan if not c else float(c.index(1.0)) if 1.0 in c else float(len(c))


def brute_learn_forever(x: list[float]) -> float:
    c = active(x)
    return min((float(t) for t in range(len(c) + 1) if all(c[t:])), default=0.0) if c else math.nan


def brute_forgetting(x: list[float]) -> float:
    c = active(x)
    if not c or not any(c):
        return float(len(c)) if c else math.nan
    return float(sum(a == 1 and b == 0 for a, b in pairwise(c)))


OF_LOSSES: dict[str, tuple[Callable, Callable[[list[float]], float]]] = {
    "csl_sum": (dynamics.csl_sum, all_or_nan),
    "csl_mean": (dynamics.csl_mean, lambda x: all_or_nan(x) / len(x)),
    "csl_trapz": (lambda x: dynamics.csl_trapz(x, EPOCHS), brute_trapz),
    "csl_active_sum": (dynamics.csl_active_sum, lambda x: math.fsum(active(x)) if active(x) else math.nan),
    "csl_active_mean": (dynamics.csl_active_mean, lambda x: mean(active(x))),
    "n_active": (dynamics.n_active, lambda x: len(active(x))),
    "csl_first": (
        lambda x: dynamics.csl_first(x, 4),
        lambda x: math.fsum(active(x)[:4]) if len(active(x)) >= 4 else math.nan,
    ),
    "csl_task": (lambda x: dynamics.csl_task(x, TASKS)[1], lambda x: all_or_nan(x[3:7])),
    "loss_final": (dynamics.loss_final, lambda x: (active(x) or [math.nan])[-1]),
    "confidence": (dynamics.confidence, lambda x: mean([math.exp(-v) for v in active(x)])),
    "variability": (dynamics.variability, brute_variability),
    "aum": (lambda x: dynamics.aum(x - 1), lambda x: mean([v - 1 for v in active(x)])),
    "csg": (dynamics.csg, lambda x: all_or_nan([v * v for v in x])),
}
OF_CORRECT: dict[str, tuple[Callable, Callable[[list[float]], float]]] = {
    "correctness": (dynamics.correctness, lambda x: mean(active(x))),
    "cum_error": (dynamics.cum_error, lambda x: 1 - mean(active(x))),
    "first_learn": (dynamics.first_learn, brute_first_learn),
    "learn_forever": (dynamics.learn_forever, brute_learn_forever),
    "forgetting_events": (dynamics.forgetting_events, brute_forgetting),
    "never_learned": (dynamics.never_learned, lambda x: float(bool(active(x)) and not any(active(x)))),
}
ALL = OF_LOSSES | OF_CORRECT


def matrix(name: str, samples: int = 200) -> np.ndarray:
    """Random rows; a fifth of the samples whole, some never there, some late, some with holes."""
    rng = np.random.default_rng(7)
    values = rng.gamma(1.0, 1.0, (len(EPOCHS), samples))
    values[rng.random(values.shape) < 0.1] = 0.0
    if name in OF_CORRECT:
        values = (values > rng.uniform(0, 3, samples)).astype(np.float64)
    values[rng.random(values.shape) < np.linspace(0, 0.6, samples)] = math.nan
    values[:6, 5:20] = math.nan
    values[:, 20:25] = math.nan
    values[:, : samples // 5] = np.nan_to_num(values[:, : samples // 5])
    return values


@pytest.mark.parametrize("name", ALL)
def test_equals_brute_force(name):
    measure, brute = ALL[name]
    values = matrix(name)
    expected = [brute(sample) for sample in values.T.tolist()]
    np.testing.assert_allclose(measure(values), expected, rtol=1e-13, atol=1e-15)
    assert np.isfinite(expected).sum() > 30


@pytest.mark.parametrize("name", ALL)
def test_permuting_the_samples_permutes_the_result(name):
    measure, values = ALL[name][0], matrix(name)
    order = np.random.default_rng(1).permutation(values.shape[1])
    np.testing.assert_array_equal(measure(values[:, order]), np.asarray(measure(values))[order])


@pytest.mark.parametrize("name", ALL)
def test_float32_gives_float64_sums(name):
    measure, values = ALL[name][0], matrix(name).astype(np.float32)
    np.testing.assert_allclose(measure(values), measure(values.astype(np.float64)), rtol=2e-7, atol=1e-7)
    many = np.full((4000, 1), np.float32(0.1))
    assert dynamics.csl_sum(many)[0] == pytest.approx(4000 * float(np.float32(0.1)), rel=1e-14)


@pytest.mark.parametrize("cuts", [[1, 2, 3, 4, 5, 6, 7, 8], [4], [2, 7]])
def test_rows_in_pieces_give_the_same(cuts):
    losses, correct = matrix("csl_sum"), matrix("first_learn")
    weights = dynamics.trapezoid_weights(EPOCHS)
    found = dynamics.LossDynamics(losses.shape[1], len(losses), 4)
    steps = dynamics.CorrectDynamics(losses.shape[1], len(losses))
    for rows in np.split(np.arange(len(EPOCHS)), cuts):
        for where in (np.arange(0, 150), np.arange(150, 200)[::-1]):
            found.add(losses[rows][:, where], where, weights[rows])
            steps.add(correct[rows][:, where], where)
    whole, whole_steps = dynamics.of_losses(losses, 4, EPOCHS), dynamics.of_correct(correct)
    for name in ("csl_trapz", "csl_first", "loss_final", "confidence", "variability", "sum_of_all", "mean_of_active"):
        np.testing.assert_allclose(getattr(found, name), getattr(whole, name), rtol=1e-13, atol=1e-15, err_msg=name)
    for name in ("first_learn", "learn_forever", "forgetting_events", "never_learned", "cum_error"):
        np.testing.assert_array_equal(getattr(steps, name), getattr(whole_steps, name), err_msg=name)


def test_csl_by_hand():
    np.testing.assert_array_equal(dynamics.csl_sum(LOSSES), [4, 12])
    np.testing.assert_array_equal(dynamics.csl_mean(LOSSES), [4 / 3, 4])
    np.testing.assert_array_equal(dynamics.csl_trapz(LOSSES, [0, 1, 3]), [2 + 3, 3 + 10])
    np.testing.assert_array_equal(dynamics.csl_first(LOSSES, 2), [4, 6])
    np.testing.assert_array_equal(dynamics.loss_final(LOSSES), [0, 6])


def test_a_loss_of_zero_counts():
    assert dynamics.n_active([[0.0], [0.0]])[0] == 2
    assert dynamics.csl_active_mean([[0.0], [4.0]])[0] == 2
    assert dynamics.csl_first([[0.0], [4.0], [5.0]], 2)[0] == 4


def test_two_tasks_of_which_one_class_enters_late():
    nan = math.nan
    losses = [[4.0, nan], [2.0, nan], [1.0, 3.0], [1.0, 0.0]]
    np.testing.assert_array_equal(dynamics.csl_sum(losses), [8, nan])
    np.testing.assert_array_equal(dynamics.csl_active_sum(losses), [8, 3])
    np.testing.assert_array_equal(dynamics.csl_active_mean(losses), [2, 1.5])
    np.testing.assert_array_equal(dynamics.n_active(losses), [4, 2])
    np.testing.assert_array_equal(dynamics.csl_first(losses, 2), [6, 3])
    np.testing.assert_array_equal(dynamics.csl_first(losses, 3), [7, nan])
    by_task = dynamics.csl_task(losses, [0, 0, 1, 1])
    np.testing.assert_array_equal(by_task[0], [6, nan])
    np.testing.assert_array_equal(by_task[1], [2, 3])


def test_a_constant_per_epoch_adds_epochs_times_it_and_keeps_ranks():
    losses = matrix("csl_sum")
    losses = losses[:, ~np.isnan(losses).any(0)]
    for measure, gained in ((dynamics.csl_sum, len(EPOCHS)), (lambda x: dynamics.csl_trapz(x, EPOCHS), 40)):
        before, after = measure(losses), measure(losses + 10)
        np.testing.assert_allclose(after - before, 10 * gained, rtol=1e-13)
        np.testing.assert_array_equal(np.argsort(before), np.argsort(after))


def test_trapezoids():
    np.testing.assert_array_equal(dynamics.trapezoid_weights([3, 4, 8]), [0.5, 2.5, 2])
    assert math.isnan(dynamics.csl_trapz([[5.0]], [3])[0])
    np.testing.assert_array_equal(dynamics.csl_trapz([[5.0]] * 4, [0, 200, 600, 800]), [4000])
    with pytest.raises(DataError, match=r"\[3, 3\] do not ascend"):
        dynamics.csl_trapz([[5.0], [5.0]], [3, 3])


@pytest.mark.parametrize(
    ("series", "events", "first", "forever"),
    [((1, 0, 1, 0), 2, 0, 4), ((0, 1, 1, 1), 0, 1, 1), ((0, 0, 0, 0), 4, 4, 4), ((1, 1, 0, 1), 1, 0, 3),
     ((1, 1, 1, 1), 0, 0, 0), ((0, 1, math.nan, 0), 1, 1, 3), ((math.nan, 0, math.nan, 1), 0, 1, 1)],
)  # fmt: skip
def test_learning_and_forgetting_by_hand(series, events, first, forever):
    values = column(*series)
    assert dynamics.forgetting_events(values)[0] == events
    assert dynamics.first_learn(values)[0] == first
    assert dynamics.learn_forever(values)[0] == forever
    assert dynamics.never_learned(values)[0] == (1 not in series)


def test_margins_and_probabilities_by_hand():
    assert dynamics.aum(column(2, -1, 5))[0] == 2
    losses = -np.log(column(0.2, 0.6, 0.7))
    assert dynamics.confidence(losses)[0] == pytest.approx(0.5, abs=1e-15)
    assert dynamics.variability(losses)[0] == pytest.approx(0.216025, abs=5e-7)
    assert dynamics.variability(np.full((7, 1), 0.3))[0] == pytest.approx(0, abs=1e-15)
    assert dynamics.csg(column(3, 4))[0] == 25


@pytest.mark.parametrize("values", [[1.0, 2.0], np.empty((0, 3)), np.ones((2, 2, 2))])
def test_what_is_no_matrix_is_refused(values):
    with pytest.raises(DataError, match=r"not \[epochs, samples\]"):
        dynamics.csl_sum(values)
    with pytest.raises(DataError, match="first 0 epochs"):
        dynamics.csl_first([[1.0]], 0)
