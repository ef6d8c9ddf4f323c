"""Weight-normalised, SVD-parametrised and projected layers: their formulas, starts and what they promise learners."""

import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from plastiscope.error import ConfigError
from plastiscope.net.layers import Head, Init, Kind, Layers
from plastiscope.net.mlp import Mlp
from plastiscope.net.projection import (
    FixedProjection,
    PhiAt,
    ProjectedConv2d,
    ProjectedLinear,
    Projection,
    SquareConv2d,
    draw_projection,
)
from plastiscope.net.svd import Inner, Orthogonal, Sign, SvdConv2d, SvdLinear, SvdSettings, orthonormal
from plastiscope.net.weight_normalised import InputStatistic, WeightNormConv2d, WeightNormLinear

ROOT2 = math.sqrt(2.0)


def tensor(*values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def put(module: nn.Module, **values: Tensor) -> None:
    """Set parameters and buffers."""
    with torch.no_grad():
        for name, value in values.items():
            getattr(module, name).copy_(value)


def numerical(function: Callable[[], Tensor], parameter: Tensor, h: float = 1e-6) -> Tensor:
    """Central differences of a scalar function by each entry of a parameter."""
    found, flat = torch.zeros_like(parameter.data), parameter.data.view(-1)
    for i in range(len(flat)):
        start = flat[i].item()
        ends = []
        for shift in (h, -h):
            flat[i] = start + shift
            ends.append(function().item())
        flat[i] = start
        found.view(-1)[i] = (ends[0] - ends[1]) / (2 * h)
    return found


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


# weight-normalised


def two_by_two() -> WeightNormLinear:
    layer = WeightNormLinear(2, 2, gain=ROOT2).double()
    put(layer, weight=tensor([3, 4], [0, 2]), scale=tensor(2, 0.5))
    return layer


def test_weight_normalised_rows_and_outputs():
    layer, x = two_by_two(), tensor([1, -1])
    expected = tensor([1.697056, 2.262742], [0, 0.707107])
    torch.testing.assert_close(layer.effective_weight(), expected, rtol=0, atol=5e-7)
    torch.testing.assert_close(layer(x), tensor([-0.565685, -0.707107]), rtol=0, atol=5e-7)
    norms = layer.effective_weight().norm(dim=1)
    torch.testing.assert_close(norms, ROOT2 * tensor(2, 0.5), rtol=1e-14, atol=0)
    put(layer, bias=tensor(1, 2))
    torch.testing.assert_close(layer(x), x @ layer.effective_weight().T + tensor(1, 2), rtol=0, atol=1e-15)


@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_the_length_of_v_does_not_matter_but_to_the_gradient(kind):
    if kind == "linear":
        layer, x = WeightNormLinear(5, 4, gain=1.3).double(), torch.randn(7, 5, dtype=torch.float64)
    else:
        layer, x = WeightNormConv2d(3, 4, 2).double(), torch.randn(2, 3, 4, 4, dtype=torch.float64)
    put(layer, scale=torch.rand(4) + 0.5)
    longer = copy.deepcopy(layer)
    put(longer, weight=10 * layer.weight)
    for module in (layer, longer):
        module(x).square().sum().backward()
    torch.testing.assert_close(longer(x), layer(x), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(longer.weight.grad, layer.weight.grad / 10, rtol=1e-11, atol=1e-12)
    along = (layer.weight * layer.weight.grad).flatten(1).sum(1)
    torch.testing.assert_close(along, torch.zeros(4, dtype=torch.float64), rtol=0, atol=1e-12 * x.numel())
    found = numerical(lambda: layer(x).square().sum(), layer.weight)
    torch.testing.assert_close(layer.weight.grad, found, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("groups", "stride", "padding"), [(1, 1, 0), (2, 2, 1)])
def test_a_weight_normalised_convolution_is_one_with_the_assembled_kernel(groups, stride, padding):
    layer = WeightNormConv2d(4, 6, 3, stride, padding, groups, gain=1.7).double()
    put(layer, scale=torch.randn(6), bias=torch.randn(6))
    lengths = torch.stack([v.norm() for v in layer.weight.flatten(1)])[:, None, None, None]
    kernel = 1.7 * layer.scale[:, None, None, None] * layer.weight / lengths
    x = torch.randn(2, 4, 7, 6, dtype=torch.float64)
    expected = F.conv2d(x, kernel, layer.bias, stride, padding, groups=groups)
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("layer", [WeightNormLinear(3, 2), WeightNormConv2d(3, 2, 1)], ids=["linear", "conv"])
def test_a_row_of_zeros_gives_the_bias(layer):
    layer = layer.double()
    put(layer, weight=torch.zeros_like(layer.weight), bias=tensor(0.5, -2))
    x = torch.randn(4, 3, *(() if isinstance(layer, nn.Linear) else (2, 2)), dtype=torch.float64)
    y = layer(x)
    assert torch.equal(y.movedim(1, -1).reshape(-1, 2), tensor(0.5, -2).expand(y.numel() // 2, 2))
    y.sum().backward()
    assert all(p.grad.isfinite().all() for p in layer.parameters())


BATCH = ((1.0, 3.0), (3.0, 1.0), (2.0, 2.0), (2.0, 2.0))


@pytest.mark.parametrize("rate", [0.01, 0.3])
@pytest.mark.parametrize(("statistic", "value"), [(InputStatistic.variance, 0.5), (InputStatistic.second_moment, 4.5)])
def test_the_statistic_of_equal_batches_is_theirs_after_any_number(statistic, value, rate):
    layer = WeightNormLinear(2, 1, gain=ROOT2, statistic=statistic, rate=rate).double()
    put(layer, weight=tensor([3, 4]))
    torch.testing.assert_close(layer.statistic(), tensor(1.0)[0], rtol=0, atol=0)
    for _ in range(4):
        layer(tensor(*BATCH))
        assert layer.statistic().item() == pytest.approx(value, rel=1e-12)
    if statistic is InputStatistic.variance:
        torch.testing.assert_close(layer.effective_weight(), tensor([1.2, 1.6]), rtol=0, atol=1e-7)


def test_the_statistic_is_the_average_over_batches_and_takes_no_gradient():
    layer = WeightNormConv2d(2, 3, 2, statistic=InputStatistic.variance, rate=0.25).double()
    batches = [torch.randn(4, 2, 3, 3, dtype=torch.float64) * (i + 1) for i in range(3)]
    expected, share = 0.0, 0.0
    for x in batches:
        layer(x)
        channels = x.movedim(1, 0).flatten(1)
        found = ((channels - channels.mean(1, keepdim=True)) ** 2).mean(1).mean().item()
        expected, share = 0.75 * expected + 0.25 * found, 0.75 * share + 0.25
    assert layer.statistic().item() == pytest.approx(expected / share, rel=1e-12)
    x = batches[0].clone().requires_grad_()
    constant = layer.eval().effective_weight().detach()
    layer(x).square().sum().backward()
    (by_constant,) = torch.autograd.grad(F.conv2d(x, constant, layer.bias).square().sum(), x)
    torch.testing.assert_close(x.grad, by_constant, rtol=0, atol=1e-12)


@pytest.mark.parametrize("statistic", [InputStatistic.variance, InputStatistic.second_moment])
@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_evaluation_uses_the_statistic_and_never_changes_it(statistic, kind):
    shape = (5, 3) if kind == "linear" else (5, 3, 4, 4)
    layer = (
        WeightNormLinear(3, 2, statistic=statistic)
        if kind == "linear"
        else WeightNormConv2d(3, 2, 2, statistic=statistic)
    )
    layer, x = layer.double(), torch.randn(*shape, dtype=torch.float64)
    before = layer.eval()(x)
    torch.testing.assert_close(before, layer(x), rtol=0, atol=0)
    assert layer.updates.item() == 0
    training = layer.train()(x)
    buffers = {name: buffer.clone() for name, buffer in layer.named_buffers()}
    torch.testing.assert_close(layer.eval()(x), training, rtol=0, atol=1e-12)
    layer(3 * x + 1)
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in layer.named_buffers())
    assert not torch.allclose(before, training)


@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_forgetting_inputs_keeps_the_other_effective_weights(kind):
    layer = (WeightNormLinear(5, 4) if kind == "linear" else WeightNormConv2d(5, 4, 3)).double()
    put(layer, scale=torch.randn(4), bias=torch.randn(4))
    before = layer.effective_weight().detach()
    layer.forget_inputs(torch.tensor([1, 3]))
    after = layer.effective_weight().detach()
    kept = torch.tensor([0, 2, 4])
    torch.testing.assert_close(after[:, kept], before[:, kept], rtol=0, atol=1e-12)
    assert not after[:, [1, 3]].any()


def test_fresh_rows_start_with_scale_1_and_leave_the_others():
    layer = WeightNormLinear(3, 4).double()
    put(layer, scale=torch.randn(4), bias=torch.randn(4))
    before, values = copy.deepcopy(layer), torch.randn(2, 3, dtype=torch.float64)
    layer.fresh_rows(torch.tensor([2, 0]), values)
    assert torch.equal(layer.weight[[2, 0]], values)
    assert torch.equal(layer.scale[[2, 0]], torch.ones(2, dtype=torch.float64)) and not layer.bias[[2, 0]].any()
    others = torch.tensor([1, 3])
    torch.testing.assert_close(layer.effective_weight()[others], before.effective_weight()[others], rtol=0, atol=0)
    assert torch.equal(layer.bias[others], before.bias[others])


def test_stacked_parameters_give_the_weights_of_each():
    """A leading axis of replicas: norms, effective weights and the kept scale go over the axes of a row only."""
    layers = [WeightNormConv2d(3, 4, 2, gain=1.1).double() for _ in range(2)]
    stacked = copy.deepcopy(layers[0])
    for name in ("weight", "scale"):
        setattr(stacked, name, nn.Parameter(torch.stack([getattr(layer, name).detach() for layer in layers])))
    expected = torch.stack([layer.effective_weight() for layer in layers])
    torch.testing.assert_close(stacked.effective_weight(), expected, rtol=0, atol=0)
    stacked.forget_inputs(torch.tensor([2]))
    for layer in layers:
        layer.forget_inputs(torch.tensor([2]))
    expected = torch.stack([layer.effective_weight() for layer in layers])
    torch.testing.assert_close(stacked.effective_weight(), expected, rtol=0, atol=1e-15)


# factors


@pytest.mark.parametrize(
    ("sign", "inner", "expected"),
    [
        (Sign.signed, Inner.identity, (0.707107, 2.121320)),
        (Sign.abs, Inner.identity, (2.121320, 0.707107)),
        (Sign.signed, Inner.relu, (1.414214, 1.414214)),
    ],
)
@pytest.mark.parametrize("orthogonal", [Orthogonal.parametrised, Orthogonal.none])
def test_svd_layer_computes_its_formula(sign, inner, expected, orthogonal):
    layer = SvdLinear(2, 2, settings=SvdSettings(sign=sign, inner=inner, orthogonal=orthogonal)).double()
    layer.gain = 1.0
    put(layer, left=tensor([1, 1], [1, -1]) / ROOT2, right=torch.eye(2), singular=tensor(2, -0.5))
    torch.testing.assert_close(layer(tensor([1, 2])), tensor(expected), rtol=0, atol=5e-7)
    torch.testing.assert_close(layer.singular_values(), tensor(2, 0.5), rtol=0, atol=1e-15)
    if inner is Inner.identity:
        torch.testing.assert_close(torch.linalg.svdvals(layer.product()), tensor(2, 0.5), rtol=0, atol=1e-12)
        torch.testing.assert_close(layer(tensor([1, 2])), tensor([1, 2]) @ layer.product().T, rtol=0, atol=1e-12)


@pytest.mark.parametrize("inner", [kind for kind in Inner if kind is not Inner.identity])
def test_the_inner_non_linearity_is_the_function_of_its_name(inner):
    z = torch.linspace(-2, 2, 9)
    assert torch.equal(inner.function(z), getattr(F, inner.value)(z))


def test_softplus_singular_values():
    layer = SvdLinear(6, 4, settings=SvdSettings(sign=Sign.softplus)).double()
    expected = layer.gain * torch.log1p(torch.exp(layer.singular))
    torch.testing.assert_close(layer.singular_values(), expected.detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(torch.linalg.svdvals(layer.product()), expected.sort(descending=True).values)


@pytest.mark.parametrize("sign", Sign)
def test_svd_convolution_is_one_with_the_assembled_kernel(sign):
    settings = SvdSettings(sign=sign)
    layer = SvdConv2d(3, 8, 3, stride=2, padding=1, gain=ROOT2, settings=settings)
    put(layer, bias=torch.randn(8))
    layer = layer.double()
    sizes = {Sign.abs: layer.singular.abs(), Sign.signed: layer.singular}.get(sign, F.softplus(layer.singular))
    left, _, right = layer.factors()
    torch.testing.assert_close((left, right), (layer.left, layer.right), rtol=0, atol=1e-6)  # drawn in float32
    kernel = ROOT2 * (left @ torch.diag(sizes) @ right.T).reshape(8, 3, 3, 3)  # c = gain sqrt(8/8)
    x = torch.randn(2, 3, 9, 8, dtype=torch.float64)
    torch.testing.assert_close(layer(x), F.conv2d(x, kernel, layer.bias, 2, 1), rtol=0, atol=1e-12)


def test_an_svd_convolution_with_an_inner_non_linearity_is_two_convolutions():
    settings = SvdSettings(rank=4, sign=Sign.signed, inner=Inner.tanh, orthogonal=Orthogonal.none)
    layer = SvdConv2d(3, 8, 3, stride=2, padding=1, gain=1.5, settings=settings).double()
    put(layer, bias=torch.randn(8), left=torch.randn(8, 4), right=torch.randn(27, 4))
    x = torch.randn(2, 3, 9, 8, dtype=torch.float64)
    patches = F.unfold(x, 3, padding=1, stride=2)  # [b, channel-row-column, positions]
    inner = torch.tanh(layer.singular[:, None] * torch.einsum("ir,bip->brp", layer.right, patches))
    expected = 1.5 * 2**0.5 * torch.einsum("or,brp->bop", layer.left, inner) + layer.bias[:, None]
    torch.testing.assert_close(layer(x).flatten(2), expected, rtol=0, atol=1e-12)


def test_a_singular_value_of_zero_lowers_the_rank_and_its_columns_do_nothing():
    layer = SvdConv2d(3, 5, 2).double()
    assert torch.linalg.matrix_rank(layer.product()) == 5
    put(layer, singular=tensor(1, 0.8, 0, 1.2, 0.9))
    assert torch.linalg.matrix_rank(layer.product()) == 4
    left, s, right = layer.factors()
    kept = [0, 1, 3, 4]
    without = layer.gain * (left[:, kept] * s[kept]) @ right[:, kept].T
    x = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    expected = F.conv2d(x, without.reshape(5, 3, 2, 2), layer.bias)
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("inputs", "outputs"), [(32, 8), (8, 32)])
def test_svd_layers_keep_the_mean_square_times_the_gain(inputs, outputs):
    """E ||W||_F^2/out over draws is gain^2 E s^2 = 2 (1 + .1^2); s varies by .2/sqrt(8) of its mean in each draw."""
    sizes = []
    for _ in range(200):
        layer = SvdLinear(inputs, outputs, gain=ROOT2)
        sizes.append(layer.product().square().sum().item() / outputs)
    assert sum(sizes) / len(sizes) == pytest.approx(2 * 1.01, rel=5 * 0.2 / math.sqrt(8 * 200))
    assert layer.gain == pytest.approx(ROOT2 * math.sqrt(outputs / 8), rel=1e-12)


def test_the_rank_is_what_is_asked_or_what_there_is():
    ranks = [SvdLinear(6, 4, settings=SvdSettings(rank=rank)).singular.shape[0] for rank in (None, 2, 9)]
    assert ranks == [4, 2, 4]


def train(net: nn.Module, steps: int, inputs: int, lr: float = 0.05) -> None:
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9)
    generator = torch.Generator().manual_seed(3)
    for _ in range(steps):
        optimizer.zero_grad()
        x = torch.randn(32, inputs, generator=generator)
        F.mse_loss(net(x), x[:, :3].sin()).backward()
        for module in net.modules():
            if isinstance(module, SvdLinear):
                module.add_penalty_gradient()
        optimizer.step()


def worst_departure(net: nn.Module) -> float:
    found = [a.detach() for layer in net.modules() if isinstance(layer, SvdLinear) for a in layer.factors()[::2]]
    return max((a.T @ a - torch.eye(a.shape[1])).abs().max().item() for a in found)


def test_factors_are_orthonormal_after_training_where_that_is_promised():
    departures = {}
    for orthogonal, penalty in ((Orthogonal.parametrised, 1e-4), (Orthogonal.penalty, 0.5), (Orthogonal.none, 1e-4)):
        torch.manual_seed(0)
        layers = Layers(kind=Kind.svd, orthogonal=orthogonal)
        layers.orthogonal_penalty = penalty
        net = Mlp(widths=[16, 12], layers=layers).make((10,), 3)
        train(net, 100, 10)
        departures[orthogonal] = worst_departure(net)
    assert departures[Orthogonal.parametrised] <= 1e-5
    assert departures[Orthogonal.none] > 0.01
    assert departures[Orthogonal.penalty] < departures[Orthogonal.none] / 2


def test_the_penalty_and_its_gradient():
    settings = SvdSettings(orthogonal=Orthogonal.penalty, penalty=0.3)
    layer = SvdLinear(4, 3, settings=settings).double()
    put(layer, left=torch.randn(3, 3), right=torch.randn(4, 3))
    squares = sum(((a.T @ a - torch.eye(3)) ** 2).sum() for a in (layer.left, layer.right))
    assert layer.penalty().item() == pytest.approx(0.3 * squares.item(), rel=1e-12)
    for a in (layer.left, layer.right):
        a.grad = torch.ones_like(a)
    layer.add_penalty_gradient()
    for a in (layer.left, layer.right):
        torch.testing.assert_close(a.grad - 1, numerical(layer.penalty, a), rtol=1e-6, atol=1e-6)
    assert SvdLinear(4, 3).penalty().item() == 0.0


def test_orthonormal_factors_keep_what_is_orthonormal_and_take_stacks():
    a = torch.randn(2, 6, 4, dtype=torch.float64)
    q = orthonormal(a)
    torch.testing.assert_close(q.mT @ q, torch.eye(4, dtype=torch.float64).expand(2, 4, 4), rtol=0, atol=1e-14)
    torch.testing.assert_close(orthonormal(q), q, rtol=0, atol=1e-14)
    torch.testing.assert_close(q[1], orthonormal(a[1]), rtol=0, atol=1e-14)
    coordinates = q.mT @ a  # triangular with a positive diagonal: the same span, column by column
    assert coordinates.tril(-1).abs().max() < 1e-13
    assert (coordinates.diagonal(dim1=-2, dim2=-1) > 0).all()


# projections


def test_projected_layer_computes_its_formula():
    layer = ProjectedLinear(3, 2).double()
    put(layer, weight=torch.diag(tensor(1, 2, 3)), projection=tensor([1, 0, 0], [0, 0.6, 0.8]), bias=tensor(0.5, -4))
    torch.testing.assert_close(layer.projection @ layer.weight, tensor([1, 0, 0], [0, 1.2, 2.4]), rtol=0, atol=1e-15)
    z = layer(torch.ones(1, 3, dtype=torch.float64))
    torch.testing.assert_close(z, tensor([1.5, -0.4]), rtol=0, atol=1e-12)
    torch.testing.assert_close(z.relu(), tensor([1.5, 0]), rtol=0, atol=1e-12)
    assert layer.numbers() == {"smallest_singular_value": pytest.approx(1.0, abs=1e-12)}
    for _ in range(5):
        other = ProjectedLinear(7, 4).double()
        assert torch.linalg.matrix_rank(other.projection @ other.weight) == 4


@pytest.mark.parametrize(("inputs", "outputs"), [(7, 4), (4, 7), (5, 5)])
def test_projections_have_orthonormal_rows_or_columns(inputs, outputs):
    p = draw_projection(inputs, outputs, Projection.random).double()
    gram = p @ p.T if outputs <= inputs else p.T @ p
    torch.testing.assert_close(gram, torch.eye(min(inputs, outputs), dtype=torch.float64), rtol=0, atol=1e-6)


def test_coordinates_are_the_first_ones_and_the_rest_gets_no_gradient():
    layer = ProjectedLinear(5, 3, projection=Projection.coordinates)
    assert torch.equal(layer.projection, torch.eye(5)[:3])
    layer(torch.randn(4, 5)).relu().square().sum().backward()
    assert torch.equal(layer.weight.grad[3:], torch.zeros(2, 5)) and layer.weight.grad[:3].any()
    with pytest.raises(ConfigError, match=r"coordinates.*grows from 3 to 5"):
        ProjectedLinear(3, 5, projection=Projection.coordinates)


@pytest.mark.parametrize(("inputs", "outputs"), [(3, 6), (6, 3)])
def test_a_projected_convolution_is_one_with_the_projected_kernel(inputs, outputs):
    layer = ProjectedConv2d(inputs, outputs, 3, stride=2, padding=1).double()
    kernel = torch.einsum("oc,cikl->oikl", layer.projection, layer.weight)
    x = torch.randn(2, inputs, 7, 6, dtype=torch.float64)
    torch.testing.assert_close(layer(x), F.conv2d(x, kernel, layer.bias, 2, 1), rtol=0, atol=1e-12)


@pytest.mark.parametrize("phi_at", PhiAt)
def test_a_projection_net_computes_its_formula_and_never_trains_its_projections(phi_at):
    net = Mlp(widths=[6, 8], layers=Layers(kind=Kind.projection, phi_at=phi_at)).make((7,), 3)
    before = {name: buffer.clone() for name, buffer in net.named_buffers()}
    assert len(before) == 3
    train(net, 5, 7)
    assert all(torch.equal(buffer, before[name]) for name, buffer in net.named_buffers())
    h = x = torch.randn(4, 7)
    for i in (1, 2):
        square = net.get_submodule(f"linear_{i}")
        if phi_at is PhiAt.map:
            projected = net.get_submodule(f"project_{i}")
            h = (h @ square.weight.T).relu() @ projected.projection.T + projected.bias
        else:
            h = ((h @ square.weight.T) @ square.projection.T + square.bias).relu()
        assert square.weight.shape[0] == square.weight.shape[1]
    expected = (h @ net.head.weight.T) @ net.head.projection.T + net.head.bias
    torch.testing.assert_close(net(x), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("module", [ProjectedLinear(4, 16), ProjectedLinear(16, 4), SquareConv2d(2, 8, 2)], ids=str)
def test_square_maps_start_as_plain_ones_times_the_growth(module):
    """Uniform within growth/sqrt(fan_in): the root of the growth in width where there is one, else 1."""
    outputs = getattr(module, "out_features", 8)
    inputs = module.weight.shape[1]
    fan_in = module.weight[0].numel()
    growth = max(1.0, math.sqrt(outputs / inputs))
    drawn = torch.stack([type(module)(inputs, outputs, *module.weight.shape[2:3]).weight for _ in range(50)])
    bound = growth / math.sqrt(fan_in)
    assert 0.98 * bound < drawn.abs().max().item() <= bound


def test_projections_of_maps_stand_along_axis_1():
    layer = FixedProjection(5, 3, bias=True, projection=Projection.random).double()
    x = torch.randn(2, 5, 4, 3, dtype=torch.float64)
    expected = torch.einsum("oc,bchw->bohw", layer.projection, x) + layer.bias[:, None, None]
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(layer(x[:, :, 0, 0]), expected[:, :, 0, 0], rtol=0, atol=1e-12)


# settings


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"statistic_rate": 1.0}, "layers.statistic_rate=1.0"),
        ({"kind": Kind.svd, "rank": 0}, "layers.rank=0"),
        ({"kind": Kind.svd, "orthogonal_penalty": -1.0}, "layers.orthogonal_penalty=-1.0"),
        ({"maxout_pieces": 0}, "layers.maxout_pieces=0"),
        ({"rank": 3}, "layers.rank=3: belongs to net.layers.kind=svd"),
        ({"kind": Kind.svd, "phi_at": PhiAt.map}, "layers.phi_at=map: belongs to net.layers.kind=projection"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, words):
    with pytest.raises(ConfigError, match=f"^{words}"):
        Layers(**settings)


def test_the_head_may_stay_plain():
    for kind in Kind:
        net = Mlp(widths=[4], layers=Layers(kind=kind, head=Head.plain)).make((3,), 2)
        assert type(net.head) is nn.Linear
        same = Mlp(widths=[4], layers=Layers(kind=kind)).make((3,), 2)
        assert type(same.head) is type(same.linear_1)


def test_gains_are_those_of_the_activation_and_1_before_the_outputs():
    for kind in (Kind.weight_normalised, Kind.svd):
        net = Mlp(widths=[4], layers=Layers(kind=kind)).make((4,), 4)
        assert net.linear_1.gain == pytest.approx(ROOT2)
        assert net.head.gain == pytest.approx(1.0)
        assert not net.linear_1.bias.any() and not net.head.bias.any()


def test_kaiming_uniform_reaches_raw_rows_and_square_maps():
    wide = Mlp(widths=[60], init=Init.kaiming_uniform, layers=Layers(kind=Kind.projection)).make((30,), 5)
    bound = ROOT2 * math.sqrt(3 / 30) * ROOT2  # gain, and the growth from 30 to 60
    assert 0.98 * bound < wide.linear_1.weight.abs().max().item() <= bound
    assert not wide.linear_1.bias.any()
    normed = Mlp(widths=[60], init=Init.kaiming_uniform, layers=Layers(kind=Kind.weight_normalised)).make((30,), 5)
    assert 0.98 * math.sqrt(3 / 60) < normed.head.weight.abs().max().item() <= math.sqrt(3 / 60)
    with pytest.raises(ConfigError, match=r"^init=kaiming_uniform"):
        Mlp(init=Init.kaiming_uniform, layers=Layers(kind=Kind.svd))
