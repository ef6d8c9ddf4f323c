"""Areas and ratios of trainability curves: the values of the specification, and what is not finite."""

import math

import pytest
import torch

from plastiscope.measure.trainability import Curve, area, trainability

NAN, INF = float("nan"), float("inf")


def curve(*losses, steps=None, accuracy=None):
    values = torch.tensor(losses, dtype=torch.float64)
    at = torch.arange(len(losses)) if steps is None else torch.tensor(steps)
    return Curve.measured(at, values, None if accuracy is None else torch.tensor(accuracy, dtype=torch.float64))


def test_values_of_the_specification():
    numbers = trainability(curve(2, 2, 1), [curve(2, 1, 0.5)])
    assert (numbers["probe_auc"], numbers["probe_auc_fresh"]) == (1.75, 1.125)
    assert numbers["probe_ratio"] == pytest.approx(1.555556, abs=5e-7)
    assert (numbers["probe_final"], numbers["probe_final_fresh"], numbers["probe_not_finite"]) == (1.0, 0.5, 0.0)
    assert math.isnan(numbers["probe_auc_fresh_std"]) and "probe_acc_auc" not in numbers


def test_the_reference_is_the_mean_of_the_fresh_networks():
    """Areas 1 and 3: mean 2, standard deviation sqrt 2."""
    numbers = trainability(curve(4, 4), [curve(1, 1), curve(2, 4)])
    assert (numbers["probe_auc_fresh"], numbers["probe_ratio"]) == (2.0, 2.0)
    assert numbers["probe_auc_fresh_std"] == pytest.approx(math.sqrt(2), rel=1e-15)
    assert numbers["probe_final_fresh"] == 2.5


def test_accuracies_have_areas_and_a_ratio_of_their_own():
    aged = curve(1, 1, 1, accuracy=[0.0, 0.5, 0.5])
    fresh = [curve(1, 1, 1, accuracy=[0.5, 1.0, 1.0]), curve(1, 1, 1, accuracy=[0.25, 0.5, 0.75])]
    numbers = trainability(aged, fresh)
    assert numbers["probe_acc_auc"] == 0.375
    assert numbers["probe_acc_auc_fresh"] == pytest.approx((0.875 + 0.5) / 2, rel=1e-15)
    assert numbers["probe_acc_ratio"] == pytest.approx(0.375 / 0.6875, rel=1e-15)


def test_equal_curves_have_the_ratio_one():
    one = curve(2.3, 1.7, 0.3)
    assert trainability(one, [one])["probe_ratio"] == 1.0


def test_points_that_lie_apart_weigh_as_much_as_the_steps_between_them():
    """Straight lines between the points: (3 (4 + 1)/2 + 1 (1 + 0)/2) / 4."""
    assert area(torch.tensor([4.0, 1.0, 0.0]), torch.tensor([0, 3, 4])) == 2.0
    assert area(torch.tensor([4.0, 3.0, 2.0, 1.0, 0.0]), torch.tensor([0, 1, 2, 3, 4])) == 2.0


@pytest.mark.parametrize("bad", [NAN, INF])
def test_a_loss_that_is_not_finite_ends_the_curve_and_is_counted(bad):
    over = curve(2, bad, 1, accuracy=[0.1, 0.2, 0.3])
    assert over.loss.isnan().tolist() == [False, True, True] and over.accuracy.isnan().tolist() == [False, True, True]
    fine = curve(2, 1, 0.5, accuracy=[0.1, 0.2, 0.3])
    numbers = trainability(over, [fine, over])
    assert numbers["probe_not_finite"] == 2.0
    assert all(math.isnan(numbers[name]) for name in ("probe_auc", "probe_ratio", "probe_final", "probe_acc_ratio"))
    assert numbers["probe_auc_fresh"] == 1.125 and numbers["probe_acc_auc_fresh"] == pytest.approx(0.2, rel=1e-15)
    assert math.isnan(trainability(fine, [over])["probe_ratio"])
