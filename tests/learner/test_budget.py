"""How many units are due: eligible units, carried fractions, drawn fractions."""

from fractions import Fraction

import pytest

from plastiscope.learner.budget import Budget, Count, StepDraws


def walk(budget: Budget, steps: int, first: int = 1) -> list[int]:
    return [budget.due(step) for step in range(first, first + steps)]


def eligible_ages(replaced: list[int], width: int, maturity: int) -> list[int]:
    """Brute force: the number of eligible units at each step, each replaced one chosen among the eligible."""
    ages, counts = [0] * width, []
    for number in replaced:
        ages = [age + 1 for age in ages]
        mature = [i for i, age in enumerate(ages) if age > maturity]
        counts.append(len(mature))
        assert number <= len(mature)
        for i in mature[:number]:
            ages[i] = 0
    return counts


@pytest.mark.parametrize(("width", "rate", "maturity"), [(10, 0.1, 5), (7, 0.03, 2), (5, 1.0, 3), (4, 0.3, 0)])
def test_nothing_is_due_before_maturity_and_the_total_is_the_floor_of_the_sum(width, rate, maturity):
    due = walk(Budget(width, rate, maturity, Count.eligible, None), 200)
    assert due[:maturity] == [0] * maturity
    summed = Fraction(0)
    for step, count in enumerate(eligible_ages(due, width, maturity)):
        summed += Fraction(str(rate)) * count
        assert sum(due[: step + 1]) == int(summed)
    assert sum(due) > 0


def test_ten_units_at_rate_a_tenth_and_maturity_5():
    due = walk(Budget(10, 0.1, 5, Count.eligible, None), 12)
    assert due[:6] == [0, 0, 0, 0, 0, 1]


def test_the_fraction_that_is_left_is_carried_over():
    """Rate times eligible units is 0.75 at each step: six replacements in eight steps."""
    budget = Budget(6, 0.125, 0, Count.eligible, None)
    assert walk(budget, 8) == [0, 1, 1, 1, 0, 1, 1, 1]


def test_all_units_count_once_one_is_eligible_and_no_more_are_replaced_than_are():
    due = walk(Budget(10, 0.25, 3, Count.all, None), 40)
    counts = eligible_ages(due, 10, 3)
    assert due[:5] == [0, 0, 0, 2, 3]
    assert all(number <= count for number, count in zip(due, counts, strict=True))
    assert walk(Budget(10, 0.75, 3, Count.all, None), 6) == [0, 0, 0, 7, 3, 0]
    assert walk(Budget(10, 1.0, 3, Count.all, None), 9) == [0, 0, 0, 10, 0, 0, 0, 10, 0]


def test_without_accumulation_one_is_replaced_with_that_probability():
    draws = StepDraws(3, "replacement/linear_1")
    due = walk(Budget(10, 0.03, 4, Count.eligible, draws), 3000)
    counts = eligible_ages(due, 10, 4)
    assert due == [int(draws(step) < 0.03 * count) for step, count in enumerate(counts, start=1)]
    assert abs(sum(due) - 0.03 * sum(counts)) < 4 * (0.3 * 3000) ** 0.5


def test_without_accumulation_whole_units_are_replaced_and_the_rest_is_dropped():
    assert walk(Budget(10, 0.25, 0, Count.eligible, StepDraws(0, "")), 3) == [2, 2, 2]


def test_draws_depend_on_the_step_alone():
    draws, others = StepDraws(0, "a"), StepDraws(0, "a")
    expected = [draws(step) for step in range(2100)]
    assert [others(step) for step in (2000, 5, 1023, 1024)] == [expected[i] for i in (2000, 5, 1023, 1024)]
    assert len(set(expected)) == 2100 and min(expected) >= 0 and max(expected) < 1
    assert StepDraws(0, "b")(5) != expected[5] != StepDraws(1, "a")(5)


def test_a_rate_of_0_replaces_nothing():
    assert not any(walk(Budget(10, 0.0, 0, Count.eligible, None), 50))


def test_it_goes_on_from_its_state():
    whole, half = Budget(9, 0.07, 6, Count.eligible, None), Budget(9, 0.07, 6, Count.eligible, None)
    expected = walk(whole, 80)
    first = walk(half, 33)
    again = Budget(9, 0.07, 6, Count.eligible, None)
    again.load_state_dict(half.state_dict())
    assert first + walk(again, 47, first=34) == expected


def test_all_units_start_anew():
    budget = Budget(10, 0.1, 5, Count.eligible, None)
    walk(budget, 20)
    budget.start_anew(20)
    assert walk(budget, 6, first=21) == [0, 0, 0, 0, 0, 1]
