"""Weight magnitudes and unit margins against hand-made numbers."""

import math

import pytest
import torch
from torch import Tensor, nn

from plastiscope.measure.weight import (
    mean_magnitude,
    unit_margin,
    unit_margin_shares,
    weight_mag_all,
    weight_mag_layer,
    weight_mag_module,
    weight_mag_weights,
)


def linear_of_the_example() -> nn.Linear:
    linear = nn.Linear(2, 1)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([[3.0, -1.0]]))
        linear.bias.fill_(2.0)
    return linear


def test_example() -> None:
    linear = linear_of_the_example()
    assert weight_mag_all(linear) == weight_mag_weights(linear) == weight_mag_layer(linear.parameters()) == 2
    with_norm = nn.Sequential(linear, nn.BatchNorm1d(1))
    assert weight_mag_all(with_norm) == pytest.approx(1.4, rel=1e-15)
    assert weight_mag_weights(with_norm) == 2
    assert weight_mag_module(with_norm) == {"0.weight": 2}


def test_elements_are_pooled_and_shared_parameters_counted_once() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(1, 2, 3)
            self.second = nn.Linear(4, 5)
            self.tied = self.second
            self.norm = nn.GroupNorm(1, 5)

    net = Net()
    kernels = torch.cat([net.first.weight.flatten(), net.second.weight.flatten()]).detach().double()
    assert weight_mag_weights(net) == pytest.approx(kernels.abs().mean().item(), rel=1e-14)
    each = {f"{name}.weight": getattr(net, name).weight.double().abs().mean().item() for name in ("first", "second")}
    assert weight_mag_module(net) == pytest.approx(each, rel=1e-14)


def test_without_weights_there_is_no_mean() -> None:
    assert math.isnan(weight_mag_all(nn.ReLU()))
    assert math.isnan(weight_mag_weights(nn.LayerNorm(3)))
    assert weight_mag_module(nn.LayerNorm(3)) == {}


def test_large_layers_are_summed_in_double() -> None:
    assert mean_magnitude([torch.full((5000, 5000), 0.1)]) == pytest.approx(float(torch.tensor(0.1)), rel=1e-13)


@pytest.mark.parametrize(
    ("preactivations", "unit_axis"),
    [
        (torch.tensor([[-3.0, 0.05, 2.0], [-1.0, -2.0, 5.0]]), 1),
        (torch.tensor([[[-3.0, -1.0], [0.05, -2.0], [2.0, 5.0]]]), 1),
        (torch.tensor([[[-3.0, 0.05, 2.0], [-1.0, -2.0, 5.0]]]), 2),
    ],
)
def test_unit_margin(preactivations: Tensor, unit_axis: int) -> None:
    margin = unit_margin(preactivations, unit_axis)
    assert margin.equal(torch.tensor([-1.0, 0.05, 5.0]))
    assert unit_margin_shares(margin) == pytest.approx({"dead": 1 / 3, "at_risk": 2 / 3}, rel=1e-15)


def test_unit_margin_over_batches_and_at_its_bounds() -> None:
    batches = torch.randn(30, 4, 3, generator=torch.Generator().manual_seed(0))
    assert torch.maximum(unit_margin(batches[:10]), unit_margin(batches[10:])).equal(unit_margin(batches))
    assert unit_margin_shares(torch.tensor([0.0, 0.1], dtype=torch.float64)) == {"dead": 0.0, "at_risk": 0.5}
    assert all(map(math.isnan, unit_margin_shares(torch.tensor([1.0, math.nan])).values()))
