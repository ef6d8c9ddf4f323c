"""Dormancy rules against loops over every value, and the checks of each definition."""

import math

import pytest
import torch
from torch import Tensor, nn

from measure.dormant_cases import FEATURES, brute_force
from plastiscope.measure.dormant import DORMANCY_RULES, activity, dormant_redo, dormant_share, total_shares

each_layer = pytest.mark.parametrize(("features", "activation", "unit_axis"), FEATURES.values(), ids=FEATURES.keys())
each_rule = pytest.mark.parametrize("rule", DORMANCY_RULES)


@each_layer
@each_rule
def test_equals_brute_force(rule: str, features: Tensor, activation: str, unit_axis: int) -> None:
    expected = brute_force(rule, features, activation, unit_axis)
    units = activity(features, activation, unit_axis)
    assert DORMANCY_RULES[rule](units).tolist() == expected
    assert dormant_share(units, DORMANCY_RULES[rule]) == sum(expected) / len(expected)


@each_rule
def test_every_rule_tells_units_apart(rule: str) -> None:
    found = {dormant for case in FEATURES.values() for dormant in brute_force(rule, *case)}
    assert found == {False, True}


@each_layer
@pytest.mark.parametrize("size", [1, 7, 64])
def test_sums_over_batches_are_those_of_the_data_set(
    size: int, features: Tensor, activation: str, unit_axis: int
) -> None:
    whole = activity(features, activation, unit_axis)
    first, *rest = (activity(batch, activation, unit_axis) for batch in features.split(size))
    total = sum(rest, start=first)
    assert (total.samples, total.values) == (whole.samples, whole.values)
    for name in ("non_zero", "tiny", "active_samples", "unsaturated"):
        assert getattr(total, name).equal(getattr(whole, name))
    assert total.absolute.tolist() == pytest.approx(whole.absolute.tolist(), rel=1e-13)


@pytest.mark.parametrize("kind", ["linear", "conv"])
@pytest.mark.parametrize("off", [0, 1, 3, 8])
def test_units_forced_off_by_their_bias_are_counted_exactly(kind: str, off: int) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(6, 8) if kind == "linear" else nn.Conv2d(6, 8, 3)
    inputs = torch.randn(50, 6) if kind == "linear" else torch.randn(50, 6, 5, 5)
    with torch.no_grad():
        layer.bias[:off] = -1e6
        units = activity(layer(inputs).relu(), "relu")
    for name in ("dormant_rate", "dormant_dead", "dormant_rl", "dormant_redo", "saturated", "dead_aj"):
        assert dormant_share(units, DORMANCY_RULES[name]) == off / 8, name


def test_a_silent_layer_is_all_dormant_without_nan() -> None:
    units = activity(torch.zeros(10, 4), "relu")
    assert all(dormant_share(units, rule) == 1 for rule in DORMANCY_RULES.values())


def test_a_constant_minus_one_is_saturated_but_not_dormant() -> None:
    units = activity(torch.full((10, 3), -1.0), "tanh")
    assert [name for name, rule in DORMANCY_RULES.items() if rule(units).any()] == ["dormant_rl", "saturated"]


def test_thresholds_at_equality() -> None:
    h = torch.zeros(1000, 1)
    h[:10] = 1
    units = activity(h, "relu")
    assert not DORMANCY_RULES["dormant_rate"](units)
    assert DORMANCY_RULES["dormant_rl"](units)
    h[:50] = 1
    assert not DORMANCY_RULES["dead_aj"](activity(h, "relu"))
    assert dormant_redo(activity(torch.tensor([[1.0, 7.0]])), tau=0.25).tolist() == [True, False]
    assert dormant_redo(activity(torch.tensor([[1.0, 7.0]])), tau=0.24).tolist() == [False, False]


@each_rule
def test_features_that_are_not_finite_have_no_share(rule: str) -> None:
    assert math.isnan(dormant_share(activity(torch.tensor([[1.0, math.nan]]), "relu"), DORMANCY_RULES[rule]))
    assert math.isnan(dormant_share(activity(torch.tensor([[1.0, math.inf]]), "relu"), DORMANCY_RULES[rule]))


def test_totals() -> None:
    assert total_shares([0.5, 0.0], [2, 6]) == (0.125, 0.25)
    assert math.isnan(total_shares([0.5, math.nan], [2, 6])[0])
    assert all(math.isnan(total) for total in total_shares([], []))


def test_half_precision_is_summed_in_double() -> None:
    units = activity(torch.full((70_000, 1), 1.0, dtype=torch.float16))
    assert units.absolute.item() == 70_000
