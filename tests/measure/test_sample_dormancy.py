"""Per-sample dormancy rules against loops over Python numbers, at their boundaries, and in every memory format."""

import math

import pytest
import torch
from dormant_cases import FEATURES
from torch import Tensor

from plastiscope.measure.sample_dormancy import Rule, Thresholds, dormant_units, largest_absolute, sum_of_absolute
from plastiscope.net.units import by_unit


def brute_force(rule: Rule, h: Tensor, t: Thresholds, scale: float) -> list[list[bool]]:
    """Which units are dormant on each sample."""
    eps = t.eps * scale if t.relative else t.eps

    def is_dormant(unit: list[float]) -> bool:
        sizes = [abs(value) for value in unit]
        return {
            Rule.persample_strict: max(sizes) <= eps,
            Rule.persample_rate: sum(size > eps for size in sizes) / len(sizes) < t.theta,
            Rule.persample_redo: math.fsum(sizes) / len(sizes) <= t.tau * scale,
            Rule.persample_module: max(unit) <= t.eps,
        }[rule]

    return [[is_dormant(unit) for unit in sample] for sample in h.tolist()]


def layer_mean(h: Tensor) -> float:
    values = h.double().flatten().tolist()
    return math.fsum(map(abs, values)) / len(values)


THRESHOLDS = {
    "published": Thresholds(),
    "other": Thresholds(eps=0.3, theta=0.4, tau=0.6),
    "relative": Thresholds(eps=0.5, relative=True, theta=0.55, tau=0.1),
}


@pytest.mark.parametrize("thresholds", THRESHOLDS)
@pytest.mark.parametrize("case", FEATURES)
def test_every_rule_is_its_definition(case, thresholds):
    features, _, unit_axis = FEATURES[case]
    h, t = by_unit(features, unit_axis).double(), THRESHOLDS[thresholds]
    scale = layer_mean(h)
    found = dormant_units(h, Rule, t, scale)
    assert found.keys() == set(Rule)
    for rule in Rule:
        expected = brute_force(rule, h, t, scale)
        assert found[rule].per_sample.tolist() == [sum(sample) for sample in expected], rule
        assert found[rule].silent.tolist() == [sum(unit) for unit in zip(*expected, strict=True)], rule
        assert dormant_units(h, [rule], t, scale)[rule].per_sample.equal(found[rule].per_sample)


def test_the_cases_tell_the_rules_apart():
    """No two rules give the same answers (with the published thresholds two of them do, at up to 100 positions)."""
    t, answers = THRESHOLDS["other"], []
    for rule in Rule:
        layers = [by_unit(features, axis).double() for features, _, axis in FEATURES.values()]
        answers.append([dormant_units(h, [rule], t, layer_mean(h))[rule].per_sample.tolist() for h in layers])
    assert all(one != other for i, one in enumerate(answers) for other in answers[:i])


def test_thresholds_are_where_they_are_said_to_be():
    """<= eps, < theta, <= tau, at exactly these values."""
    t = Thresholds(eps=0.5, theta=0.25, tau=0.5)
    h = torch.tensor([0.5, -0.5, 0.5000001, -0.6])[None, :, None]
    assert dormant_units(h, [Rule.persample_strict], t)[Rule.persample_strict].silent.tolist() == [1, 1, 0, 0]
    assert dormant_units(h, [Rule.persample_module], t)[Rule.persample_module].silent.tolist() == [1, 1, 0, 1]
    shares = torch.zeros(1, 2, 8)  # active at 2 and at 1 of 8 positions; 2/8 = theta is active
    shares[0, 0, :2] = shares[0, 1, 0] = 1
    assert dormant_units(shares, [Rule.persample_rate], t)[Rule.persample_rate].silent.tolist() == [0, 1]
    means = torch.tensor([[[0.5, 1.5], [1.0, 1.25]]])  # means 1 and 1.125; tau times 2 is 1
    assert dormant_units(means, [Rule.persample_redo], t, 2.0)[Rule.persample_redo].silent.tolist() == [1, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("positions", [100, 300])
def test_a_share_of_exactly_theta_is_active_for_any_theta_and_number_of_positions(positions, dtype):
    for active in range(1, positions):
        h = torch.zeros(1, 1, positions, dtype=dtype)
        h[..., :active] = 1
        theta = active / positions
        found = dormant_units(h, [Rule.persample_rate], Thresholds(theta=theta))[Rule.persample_rate]
        assert found.per_sample.item() == 0


def test_a_silent_layer_is_dormant_and_no_nan():
    h = torch.zeros(3, 5, 4)
    for found in dormant_units(h, Rule, scale=0.0).values():
        assert found.per_sample.tolist() == [5, 5, 5] and found.silent.tolist() == [3] * 5


def test_a_constant_minus_one_is_not_dormant():
    """As tanh far left gives; only the published rule, which has no |.|, calls it so."""
    h = torch.full((2, 3, 4), -1.0)
    found = dormant_units(h, Rule, scale=1.0)
    assert {rule: units.per_sample.tolist() for rule, units in found.items()} == {
        Rule.persample_strict: [0, 0],
        Rule.persample_rate: [0, 0],
        Rule.persample_redo: [0, 0],
        Rule.persample_module: [3, 3],
    }


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_nan_of_its_sample_alone_and_not_dormant(bad):
    h = torch.zeros(3, 4, 5)
    h[1, 2, 3] = bad
    for rule, found in dormant_units(h, Rule, scale=1.0).items():
        assert found.per_sample.isnan().tolist() == [False, True, False], rule
        assert found.per_sample[[0, 2]].tolist() == [4, 4]
    for rule in (Rule.persample_strict, Rule.persample_redo):
        assert dormant_units(h, [rule], scale=1.0)[rule].silent.tolist() == [3, 3, 2, 3]


@pytest.mark.parametrize("scale", [math.nan, math.inf])
def test_without_a_finite_scale_the_rules_that_need_it_give_nan(scale):
    h = torch.ones(2, 3, 4)
    found = dormant_units(h, Rule, scale=scale)
    assert [rule for rule in Rule if found[rule].per_sample.isnan().all()] == [Rule.persample_redo]
    relative = dormant_units(h, Rule, Thresholds(relative=True), scale)
    assert [rule for rule in Rule if not relative[rule].per_sample.isnan().any()] == [Rule.persample_module]


@pytest.mark.parametrize(
    "shape", [(3, 4, 8, 8), (3, 5, 7, 7), (3, 16, 4, 6), (2, 40, 3, 3), (3, 5, 1, 1), (2, 3, 1, 5)]
)
def test_memory_formats_give_the_same(shape):
    """Few channels side by side are reduced in two steps; prime numbers of positions in one."""
    h = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    h[0, 1] = 0
    by_hand = [[max(abs(value) for value in unit) for unit in sample] for sample in h.flatten(2).tolist()]
    plain = dormant_units(h.flatten(2), Rule, Thresholds(eps=1.0, theta=0.3, tau=0.9), 0.8)
    for form in (h, h.to(memory_format=torch.channels_last), h.permute(2, 3, 0, 1).contiguous().permute(2, 3, 0, 1)):
        assert largest_absolute(by_unit(form, 1)).tolist() == by_hand
        found = dormant_units(by_unit(form, 1), Rule, Thresholds(eps=1.0, theta=0.3, tau=0.9), 0.8)
        for rule in Rule:
            assert found[rule].per_sample.equal(plain[rule].per_sample) and found[rule].silent.equal(plain[rule].silent)


def test_activations_are_only_read():
    h = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(0))
    kept = h.clone()
    dormant_units(h, Rule, scale=1.0)
    dormant_units(h[:, :, :1], Rule, scale=1.0)
    assert h.equal(kept)


def test_sum_of_absolute_is_summed_in_float64():
    """A float32 sum would keep 7 digits."""
    h = torch.randn(300, 200, 1, generator=torch.Generator().manual_seed(0))
    assert sum_of_absolute(h).item() == pytest.approx(math.fsum(map(abs, h.flatten().tolist())), rel=1e-13)
