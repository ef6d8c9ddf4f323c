"""Rows of planes of networks that begin with a linear layer: the same numbers, with two products of it for a row."""

from collections.abc import Callable

import pytest
import torch
from landscape_cases import DOUBLE, frozen_loss
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from plastiscope.measure.landscape.first_layer import first_layer
from plastiscope.measure.landscape.frozen import FrozenLoss
from plastiscope.measure.landscape.plane import Plane, offsets, robust_loss
from plastiscope.measure.landscape.preserved import moved, put
from plastiscope.measure.landscape.space import choose


class Siamese(nn.Module):
    """Meets its input twice, and reads the weight of its first layer elsewhere, too."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(12, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        hidden = self.first(x) * torch.tanh(self.first(x)) + self.first(x.flip(0))
        return self.last(hidden) + self.first.weight.square().sum()


def mlp(**options) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 6, **options), nn.ReLU(inplace=True), nn.Linear(6, 3))


NETS: dict[str, tuple[Callable[[], nn.Module], bool]] = {  # a net, and whether it begins with a linear layer
    "mlp": (mlp, True),
    "without biases": (lambda: mlp(bias=False), True),
    "siamese": (Siamese, True),
    "norm behind": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(12, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)), True),
    "one layer": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(12, 3)), True),
    "norm before": (lambda: nn.Sequential(nn.Flatten(), nn.BatchNorm1d(12), nn.Linear(12, 3)), False),
    "convolution": (lambda: nn.Sequential(nn.Conv2d(3, 4, 2), nn.Flatten(), nn.Linear(4, 3)), False),
    "parametrised": (
        lambda: nn.Sequential(nn.Flatten(), nn.utils.parametrizations.weight_norm(nn.Linear(12, 3))),
        False,
    ),
    "by pixel": (lambda: nn.Sequential(nn.Linear(2, 4), nn.Flatten(), nn.Linear(24, 3)), False),
}


def case(name: str = "mlp", which: str | list[str] = "all", n: int = 9, micro_batch: int = 4) -> FrozenLoss:
    torch.manual_seed(0)
    net = NETS[name][0]().double()
    inputs, targets = torch.randn(n, 3, 2, 2, dtype=DOUBLE), torch.randint(3, (n,))
    return frozen_loss(net, inputs, targets, 3, micro_batch=micro_batch, space=choose(net, which))


def plane_of(frozen: FrozenLoss, b: Tensor | None = None) -> Plane:
    first, second = (frozen.space.normals(0, "plane", k).double() for k in (0, 1))
    return Plane(frozen, first, second, offsets(0.5, 3), offsets(1.0, 7) if b is None else b)


def by_hand(plane: Plane, i: int, at: Callable[[], Tensor]) -> Tensor:
    """The cells of a row, each with weights that are written at once."""
    frozen, found = plane.frozen, []
    theta = frozen.space.values(frozen.net)
    for b in plane.b:
        with torch.no_grad(), moved(frozen.net, frozen.space) as parameters:
            put(parameters, frozen.space.parts(theta + plane.a[i] * plane.first + b * plane.second))
            found.append(at())
    return torch.stack(found)


@pytest.mark.parametrize("name", NETS)
def test_rows_of_every_net(name: str) -> None:
    frozen = case(name)
    before = {key: value.clone() for key, value in frozen.net.state_dict().items()}
    plane = plane_of(frozen)
    for i in range(3):
        assert (plane.row(i) - by_hand(plane, i, frozen.value)).abs().max() <= 1e-13
    assert plane.row(1)[3] == frozen.value(), "the middle is not the weights themselves, bit for bit"
    assert (first_layer(frozen, {}) is not None) is NETS[name][1]
    assert all(value.equal(before[key]) for key, value in frozen.net.state_dict().items())
    for module in frozen.net.modules():
        assert "forward" not in vars(module) and not module._forward_pre_hooks


@pytest.mark.parametrize("which", [["1.weight"], ["1.bias"], ["3"], ["1"]])
def test_chosen_parameters_alone_move(which: list[str]) -> None:
    plane = plane_of(case(which=which))
    assert (plane.row(0) - by_hand(plane, 0, plane.frozen.value)).abs().max() <= 1e-13


def test_a_row_has_two_products_of_the_first_layer() -> None:
    frozen = case(n=8)
    plane = plane_of(frozen)
    first, rest = 2 * 8 * 12 * 6, 2 * 8 * 6 * 3
    assert plane._first_layer is not None
    with FlopCounterMode(display=False) as whole:
        plane.row(0)
    assert whole.get_total_flops() == 2 * first + 7 * rest
    with FlopCounterMode(display=False) as again:
        plane.row(2)
    assert again.get_total_flops() == first + 7 * rest


def test_what_is_changed_in_place_is_not_what_is_known() -> None:
    plane = plane_of(case(), torch.tensor([0.0, 0.0, 0.5, 0.0, 0.5], dtype=DOUBLE))
    row = plane.row(1)
    assert row[0] == row[1] == row[3] == plane.frozen.value()
    assert row[2] == row[4]


def test_gradients_and_robust_losses_are_those_of_the_place() -> None:
    frozen = case()
    plane = plane_of(frozen)
    for at in (frozen.gradient, lambda: robust_loss(frozen, 0.3), lambda: robust_loss(frozen, 0.3, steps=2)):
        assert (plane.row(0, at) - by_hand(plane, 0, at)).abs().max() <= 1e-12


def test_other_samples_at_a_place_are_multiplied() -> None:
    frozen = case()
    plane, other = plane_of(frozen), torch.randn(5, 3, 2, 2, dtype=DOUBLE)
    for inputs in (other, frozen.inputs[:3], frozen.inputs[1:5], frozen.inputs[:4].transpose(2, 3)):
        found, expected = (
            rows(0, lambda x=inputs: frozen.net(x)) for rows in (plane.row, lambda i, at: by_hand(plane, i, at))
        )
        assert (found - expected).abs().max() <= 1e-12


def test_the_same_memory_read_another_way_is_multiplied() -> None:
    frozen = case(n=12, micro_batch=12)
    turned = frozen.inputs.flatten(1).T
    assert turned.data_ptr() == frozen.inputs.data_ptr() and turned.shape == (12, 12)
    plane = plane_of(frozen)
    found, expected = plane.row(0, lambda: frozen.net(turned)), by_hand(plane, 0, lambda: frozen.net(turned))
    assert (found - expected).abs().max() <= 1e-12


def test_other_weights_in_a_functional_call_count() -> None:
    frozen = case()
    plane, x = plane_of(frozen), frozen.inputs[:4]
    others = {name: torch.ones_like(value) for name, value in frozen.net.named_parameters()}
    expected = torch.func.functional_call(frozen.net, others, (x,))
    for found in plane.row(0, lambda: torch.func.functional_call(frozen.net, others, (x,))):
        assert found.equal(expected)


def test_an_error_leaves_the_net_as_it_was() -> None:
    frozen = case()

    def fails() -> Tensor:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        plane_of(frozen).row(0, fails)
    assert all("forward" not in vars(module) for module in frozen.net.modules())


def test_batches_that_were_halved_in_between_are_multiplied() -> None:
    frozen = case()
    plane = plane_of(frozen)
    expected = by_hand(plane, 0, frozen.value)

    def halves() -> Tensor:
        value = frozen.value()
        frozen.adaptation.largest = max(1, frozen.batch_size // 2)
        return value

    assert (plane.row(0, halves) - expected).abs().max() <= 1e-13
    assert (plane.row(0) - expected).abs().max() <= 1e-13


def test_large_outputs_are_not_held(monkeypatch: pytest.MonkeyPatch) -> None:
    frozen = case()
    monkeypatch.setattr("plastiscope.measure.landscape.first_layer.HELD", 9 * 6 * 8 - 1)
    assert first_layer(frozen, {}) is None
    monkeypatch.setattr("plastiscope.measure.landscape.first_layer.HELD", 9 * 6 * 8)
    assert first_layer(frozen, {}) is not None
