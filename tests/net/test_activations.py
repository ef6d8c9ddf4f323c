"""Activations of our own: PReLU, maxout, CReLU."""

import copy

import pytest
import torch
from net_cases import CASES
from torch import Tensor, nn
from torch.nn import functional as F

from plastiscope.error import ConfigError
from plastiscope.net.activation import Activation, CReLU, MaxOut, undecayed
from plastiscope.net.convnet import ConvNet
from plastiscope.net.layers import Kind, Layers
from plastiscope.net.mlp import Mlp, Norm
from plastiscope.net.projection import PhiAt
from plastiscope.net.units import Site, Wire


def tensor(*values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def test_prelu_and_the_gradient_of_its_slope():
    prelu, z = Activation.prelu.module(1).double(), tensor([-2])
    y = prelu(z)
    y.sum().backward()
    assert (y.item(), prelu.weight.grad.item()) == (-0.5, -2.0)
    z = torch.linspace(-3, 3, 13, dtype=torch.float64)[:, None]
    for slope, expected in ((0.0, z.relu()), (1.0, z), (0.3, F.leaky_relu(z, 0.3))):
        with torch.no_grad():
            prelu.weight.fill_(slope)
        torch.testing.assert_close(prelu(z), expected, rtol=0, atol=1e-15)


def test_prelu_has_a_slope_for_each_unit_or_one_for_the_layer():
    for activation, sizes in ((Activation.prelu, [4, 6, 7]), (Activation.prelu_shared, [1, 1, 1])):
        net = ConvNet(channels=[4, 6], kernel_sizes=[3, 3], widths=[7], activation=activation).make((1, 14, 14), 2)
        slopes = [module.weight for module in net.modules() if isinstance(module, nn.PReLU)]
        assert [len(slope) for slope in slopes] == sizes
        assert all(bool((slope == 0.25).all()) for slope in slopes)
        assert undecayed(net) == set(slopes)
    assert not undecayed(CASES["mlp"].make())


def test_maxout_takes_the_largest_of_adjacent_pieces():
    z = tensor([1, -2, 0.5, 3]).requires_grad_()
    y = MaxOut(2)(z)
    assert y.tolist() == [[1.0, 3.0]]
    (y * tensor([5, 7])).sum().backward()
    assert z.grad.tolist() == [[5.0, 0.0, 0.0, 7.0]]
    maps = torch.randn(2, 6, 3, 2, dtype=torch.float64)
    expected = torch.stack([maps[:, 3 * i : 3 * i + 3].amax(1) for i in range(2)], dim=1)
    assert torch.equal(MaxOut(3)(maps), expected)


def test_maxout_of_ties_the_lowest_piece_wins():
    z = torch.ones(5, 4, dtype=torch.float64, requires_grad=True)
    MaxOut(2)(z).sum().backward()
    assert torch.equal(z.grad, tensor(1, 0, 1, 0).expand(5, 4))


def test_maxout_is_relu_of_a_piece_and_zero_and_linear_with_one_piece():
    z = torch.randn(6, 3, dtype=torch.float64)
    assert torch.equal(MaxOut(2)(torch.stack((z, 0 * z), 2).flatten(1)), z.relu())
    assert torch.equal(MaxOut(1)(z), z)


def test_maxout_counts_its_winners():
    z = tensor([1, -2, 0.5, 3], [2, 2, 4, 1], [0, 1, 5, 0])
    assert MaxOut(2).wins(z).tolist() == [[2, 1], [2, 1]]
    maps = torch.randn(4, 6, 3, 2)
    wins = MaxOut(3).wins(maps)
    assert wins.shape == (2, 3)
    for unit in range(2):
        winners = [
            int(maps[b, 3 * unit : 3 * unit + 3, i, j].argmax()) for b in range(4) for i in range(3) for j in (0, 1)
        ]
        assert wins[unit].tolist() == [winners.count(piece) for piece in range(3)]


@pytest.mark.parametrize("pieces", [1, 2, 3, 5])
def test_the_gain_of_maxout_keeps_the_mean_square(pieces):
    """Pre-activations of mean square gain^2 give units of mean square 1; 3 pieces: 1 + sqrt(3)/(2 pi)."""
    gain = Activation.maxout.gain_of(pieces)
    units = MaxOut(pieces)(gain * torch.randn(200_000, pieces)).square()
    assert units.mean().item() == pytest.approx(1.0, abs=6 * units.std().item() / 200_000**0.5)
    exact = {1: 1.0, 2: 1.0, 3: 1 + 3**0.5 / (2 * torch.pi)}
    if pieces in exact:
        assert gain**-2 == pytest.approx(exact[pieces], rel=1e-9)


def test_crelu_puts_both_signs_side_by_side():
    assert CReLU()(tensor([1, -2])).tolist() == [[1.0, 0.0, 0.0, 2.0]]
    for shape in ((5, 4), (5, 4, 3, 2)):
        z = torch.randn(*shape, dtype=torch.float64)
        y = CReLU()(z)
        assert torch.equal(y, torch.cat((z.relu(), (-z).relu()), 1))
        torch.testing.assert_close(y.flatten(1).norm(dim=1), z.flatten(1).norm(dim=1), rtol=1e-14, atol=0)


def test_layers_after_crelu_have_twice_the_inputs():
    net = Mlp(widths=[6, 5], activation=Activation.crelu).make((3,), 2)
    assert [net.linear_1.weight.shape, net.linear_2.weight.shape, net.head.weight.shape] == [(6, 3), (5, 12), (2, 10)]


def test_crelu_is_pooled_after_it_and_the_others_before():
    net = ConvNet(channels=[4], kernel_sizes=[3], widths=[], activation=Activation.crelu).make((1, 8, 8), 2).double()
    x = torch.randn(3, 1, 8, 8, dtype=torch.float64)
    z = F.conv2d(x, net.conv_1.weight, net.conv_1.bias)
    h = F.max_pool2d(torch.cat((z.relu(), (-z).relu()), 1), 2)
    torch.testing.assert_close(net(x), h.flatten(1) @ net.head.weight.T + net.head.bias, rtol=0, atol=1e-12)


def test_units_of_crelu_own_two_blocks_of_columns_and_are_silent_at_zero_only():
    case = CASES["convnet_crelu"]
    net = case.make(torch.float64).eval()
    units = net.unit_description().layers
    assert [layer.width for layer in units] == [4, 5, 7]
    assert units[0].site == Site("conv_activation_1.both")
    assert units[0].consumers == (Wire("conv_2.weight", 1, 1, 0), Wire("conv_2.weight", 1, 1, 4))
    pixels = net.linear_1.weight.shape[1] // 10
    assert units[1].consumers == (Wire("linear_1.weight", 1, pixels, 0), Wire("linear_1.weight", 1, pixels, 5 * pixels))
    got = []
    net.conv_activation_1.both.register_forward_hook(lambda _, __, both: got.append(both))
    net(case.inputs(6, torch.float64))
    assert got[0].shape[1:3] == (4, 2)
    assert (got[0].amax(2) > 0).all()


def test_units_of_maxout_own_adjacent_rows_of_weights_and_norm():
    net = Mlp(widths=[4], activation=Activation.maxout, norm=Norm.batch, layers=Layers(maxout_pieces=3)).make((5,), 2)
    (layer,) = net.unit_description().layers
    assert layer.width == 4
    assert layer.incoming == (Wire("linear_1.weight", 0, 3), Wire("linear_1.bias", 0, 3))
    assert layer.consumers == (Wire("head.weight", 1),)
    assert (net.linear_1.weight.shape, net.norm_1.weight.shape) == ((12, 5), (12,))


def test_weight_normalised_rows_carry_a_scale_that_starts_at_1():
    (layer, _) = CASES["mlp_weight_normalised"].make().unit_description().layers
    assert layer.incoming == (
        Wire("linear_1.weight", 0),
        Wire("linear_1.scale", 0, fresh=1.0),
        Wire("linear_1.bias", 0),
    )


@pytest.mark.parametrize("name", ["mlp_svd", "mlp_projection", "mlp_mapped", "convnet_svd", "convnet_projection"])
def test_units_that_cannot_be_replaced_say_why(name):
    words = {"svd": "factors of its weights", "projection": "projection", "mapped": "'FixedProjection'"}
    for layer in CASES[name].make().unit_description().layers:
        assert not layer.replaceable
        assert words[name.split("_")[1]] in layer.reason
        assert "svd" not in name or not layer.consumers


@pytest.mark.parametrize("activation", [Activation.maxout, Activation.crelu])
def test_activations_that_change_the_number_of_units_do_not_fit_between_map_and_projection(activation):
    layers = Layers(kind=Kind.projection, phi_at=PhiAt.map)
    for kind in (Mlp, ConvNet):
        with pytest.raises(ConfigError, match=f"^activation={activation.value}"):
            kind(activation=activation, layers=layers)


@pytest.mark.parametrize("activation", [Activation.prelu, Activation.maxout, Activation.crelu])
def test_copies_and_second_derivatives(activation):
    net = Mlp(widths=[6], activation=activation).make((4,), 3).double()
    x = torch.randn(5, 4, dtype=torch.float64)
    assert torch.equal(copy.deepcopy(net)(x), net(x))
    weight = net.head.weight
    (gradient,) = torch.autograd.grad(net(x).square().sum(), weight, create_graph=True)
    (second,) = torch.autograd.grad(gradient.sum(), weight)
    h = nn.Sequential(*list(net)[:-1])(x).detach()
    torch.testing.assert_close(second, (2 * h.T @ h).sum(0).expand(3, -1), rtol=1e-12, atol=1e-12)
