"""The reset of a unit: compensation, fresh weights, silence, norms, optimiser state; each against its formula."""

import copy
import math

import pytest
import torch
from learning import batches, start, state_of
from torch import Tensor, nn

from plastiscope.learner.continual_backprop import ContinualBackprop
from plastiscope.learner.optimizer import Optimizer
from plastiscope.learner.replacement import FreshWeights, Init, compensate, gain_of, replace_units, scale_of
from plastiscope.learner.unit_parameters import ByIndex, ByMask, Chosen, ResidualMode, Slices, UnitSet, unit_sets
from plastiscope.net.activation import Activation
from plastiscope.net.convnet import ConvNet
from plastiscope.net.mlp import Mlp, Norm
from plastiscope.net.resnet18 import ResNet18


def sets_of(net: nn.Module, mode: ResidualMode = ResidualMode.inner_only) -> dict[str, UnitSet]:
    return {units.name: units for units in unit_sets(net, net.unit_description(), mode)}


def replace(
    net: nn.Module, due: dict[str, list[int]], mode: ResidualMode = ResidualMode.inner_only, by_mask: bool = False
) -> None:
    """Replace units of some sets, without compensation."""
    sets = sets_of(net, mode)
    parts = [part for units in sets.values() for part in units.parts]
    fresh = FreshWeights(0, Init.kaiming, lambda k: net, parts)
    generations = {name: torch.zeros(units.width, dtype=torch.int64) for name, units in sets.items()}
    chosen: list[tuple[UnitSet, Chosen]] = []
    for name, ids in due.items():
        mask = torch.zeros(sets[name].width, dtype=torch.bool).index_fill(0, torch.tensor(ids), True)
        chosen.append((sets[name], ByMask(mask) if by_mask else ByIndex(torch.tensor(ids))))
    with torch.no_grad():
        replace_units(chosen, fresh, generations, None)
    for name, ids in due.items():
        assert generations[name].nonzero().flatten().tolist() == sorted(ids)


def fitted(net: nn.Module) -> nn.Module:
    """The network in float64 with all weights and statistics away from where they start."""
    generator = torch.Generator().manual_seed(3)
    for tensor in net.double().state_dict().values():
        if tensor.is_floating_point():
            tensor.add_(torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype) * 0.3)
    return net.eval()


def mlp(norm: Norm = Norm.none) -> nn.Module:
    torch.manual_seed(0)
    return fitted(Mlp(widths=[6, 5], norm=norm, activation=Activation.leaky_relu).make((4,), 3))


def convnet() -> nn.Module:
    torch.manual_seed(0)
    return fitted(ConvNet(channels=[4, 5], kernel_sizes=[3, 2], widths=[6]).make((2, 13, 13), 3))


def mean_features(net: nn.Module, path: str, x: Tensor) -> Tensor:
    """E over samples and positions of a module's output."""
    seen: list[Tensor] = []
    handle = net.get_submodule(path).register_forward_hook(lambda _, __, output: seen.append(output.detach()))
    with torch.no_grad():
        net(x)
    handle.remove()
    return seen[0].mean([d for d in range(seen[0].ndim) if d != 1])


SITES = {
    "linear_1": "activation_1",
    "linear_2": "activation_2",
    "conv_1": "conv_activation_1",
    "conv_2": "conv_activation_2",
}


@pytest.mark.parametrize(
    ("make", "name"), [(mlp, "linear_1"), (mlp, "linear_2"), (convnet, "conv_1"), (convnet, "conv_2")]
)
def test_constant_units_are_replaced_without_a_change_of_the_output(make, name):
    """Inputs are the same in all samples and positions, so activations are constant and the bias takes them over."""
    net = make()
    x = torch.full((3, 2, 13, 13) if "conv" in name else (3, 4), 0.7, dtype=torch.float64)
    (part,) = sets_of(net)[name].parts
    before = net(x).detach()
    bias = part.consumers[0].bias
    old_bias, columns = bias.detach().clone(), part.consumers[0].weight.view()[[0, 2]].clone()
    mean = mean_features(net, SITES[name], x)
    assert (mean[[0, 2]] != 0).all()
    with torch.no_grad():
        compensate(part, ByIndex(torch.tensor([0, 2])), mean, at_norms=False)
    expected = torch.einsum("k,ko->o", mean[[0, 2]], columns.flatten(2).sum(2))
    torch.testing.assert_close(bias - old_bias, expected, rtol=0, atol=1e-12)
    replace(net, {name: [0, 2]})
    torch.testing.assert_close(net(x), before, rtol=0, atol=1e-10)


def test_replaced_units_are_silent_have_fresh_weights_and_no_bias():
    net = mlp()
    old = state_of(net)
    replace(net, {"linear_1": [1, 4], "linear_2": [0]})
    assert not net.linear_2.weight[:, [1, 4]].any() and not net.head.weight[:, 0].any()
    assert not net.linear_1.bias[[1, 4]].any() and net.linear_2.bias[0] == 0
    assert (net.linear_1.weight[[1, 4]] != old["linear_1.weight"][[1, 4]]).all()
    fresh = net.linear_2.weight[0, [0, 2, 3, 5]]
    assert (fresh != old["linear_2.weight"][0, [0, 2, 3, 5]]).all() and (fresh != 0).all()
    assert fresh.abs().max() <= math.sqrt(2) * math.sqrt(3 / 6)
    for name, others in {"linear_1": [0, 2, 3, 5], "linear_2": [1, 2, 3, 4]}.items():
        kept = net.get_submodule(name).bias[others]
        assert torch.equal(kept, old[f"{name}.bias"][others])
    assert torch.equal(net.linear_2.weight[1:][:, [0, 2, 3, 5]], old["linear_2.weight"][1:][:, [0, 2, 3, 5]])


@pytest.mark.parametrize("make", [mlp, convnet])
def test_a_mask_replaces_as_indices_do(make):
    one, other = make(), make()
    due = {name: [0, units.width - 1] for name, units in sets_of(one).items()}
    replace(one, due)
    replace(other, due, by_mask=True)
    other_state = state_of(other)
    assert all(torch.equal(tensor, other_state[name]) for name, tensor in state_of(one).items())


def test_a_channel_before_a_linear_layer_loses_all_its_columns():
    net = convnet()
    pixels = net.linear_1.weight.shape[1] // 5
    assert pixels == 4
    replace(net, {"conv_2": [2]})
    assert (net.linear_1.weight == 0).all(0).nonzero().flatten().tolist() == [8, 9, 10, 11]


def test_norms_of_a_replaced_unit_start_anew():
    for norm in (Norm.batch, Norm.layer):
        net = mlp(norm)
        old = state_of(net)
        replace(net, {"linear_2": [3]})
        fresh = {"weight": 1.0, "bias": 0.0, "running_mean": 0.0, "running_var": 1.0}
        for name, tensor in net.norm_2.state_dict().items():
            if name in fresh:
                assert tensor[3] == fresh[name]
                others = [0, 1, 2, 4]
                assert torch.equal(tensor[others], old[f"norm_2.{name}"][others])
        assert all(torch.equal(tensor, old[f"norm_1.{name}"]) for name, tensor in net.norm_1.state_dict().items())


def test_where_batch_norm_follows_a_constant_is_not_compensated_unless_asked_for():
    net = mlp(Norm.batch)
    (part,) = sets_of(net)["linear_1"].parts
    bias = net.linear_2.bias.detach().clone()
    with torch.no_grad():
        compensate(part, ByIndex(torch.tensor([1])), torch.ones(6).double(), at_norms=False)
        assert torch.equal(net.linear_2.bias, bias)
        compensate(part, ByIndex(torch.tensor([1])), torch.ones(6).double(), at_norms=True)
    torch.testing.assert_close(net.linear_2.bias, bias + net.linear_2.weight[:, 1])


def test_an_inner_channel_without_activation_changes_no_block_output():
    torch.manual_seed(0)
    net = fitted(ResNet18(width=4).make((3, 8, 8), 3))
    x = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        net.layer2[0].bn1.weight[5], net.layer2[0].bn1.bias[5] = 0.0, -1.0
    before = net(x).detach()
    replace(net, {"layer2.0.conv1": [5]})
    assert torch.equal(net(x), before)


def test_an_inner_channel_of_constant_activation_can_be_taken_over_up_to_the_padding():
    """In evaluation mode with its mean in the bias the block's interior is unchanged."""
    torch.manual_seed(0)
    net = fitted(ResNet18(width=4).make((3, 8, 8), 3))
    x = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    block = net.layer1[0]
    with torch.no_grad():
        block.bn1.weight[2], block.bn1.bias[2] = 0.0, 1.5
    (part,) = sets_of(net)["layer1.0.conv1"].parts
    before = block(net.relu(net.bn1(net.conv1(x)))).detach()
    with torch.no_grad():
        compensate(part, ByIndex(torch.tensor([2])), torch.full((4,), 1.5).double(), at_norms=True)
    replace(net, {"layer1.0.conv1": [2]})
    after = block(net.relu(net.bn1(net.conv1(x))))
    torch.testing.assert_close(after[..., 1:-1, 1:-1], before[..., 1:-1, 1:-1], rtol=0, atol=1e-12)


@pytest.mark.parametrize("group", ["conv1", "layer2.0.conv2", "layer4.0.conv2"])
def test_a_replaced_unit_of_a_group_is_read_by_nobody(group):
    torch.manual_seed(0)
    net = fitted(ResNet18(width=4).make((3, 8, 8), 3))
    x = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    replace(net, {group: [3]}, ResidualMode.group)
    before = net(x).detach()
    with torch.no_grad():
        for part in sets_of(net, ResidualMode.group)[group].parts:
            for slices in part.incoming:
                slices.view()[3] += 1.0
    assert torch.equal(net(x), before)


def test_as_published_a_block_output_is_still_seen_over_the_identity_path():
    torch.manual_seed(0)
    net = fitted(ResNet18(width=4).make((3, 8, 8), 3))
    old = state_of(net)
    replace(net, {"layer1.1.conv2": [3]}, ResidualMode.legacy)
    assert not net.layer2[0].conv1.weight[:, 3].any()
    assert torch.equal(net.layer2[0].downsample[0].weight, old["layer2.0.downsample.0.weight"])


# Fresh weights.


def conv_slices() -> Slices:
    return Slices("w", torch.zeros(8, 5, 3, 2), 0, 8)


@pytest.mark.parametrize(
    ("init", "activation", "expected"),
    [
        (Init.kaiming, "relu", math.sqrt(2) * math.sqrt(3 / 30)),
        (Init.kaiming, "tanh", 5 / 3 * math.sqrt(3 / 30)),
        (Init.kaiming, "", math.sqrt(3 / 30)),
        (Init.kaiming, "silu", math.sqrt(2) * math.sqrt(3 / 30)),
        (Init.kaiming, "elu", math.sqrt(2) * math.sqrt(3 / 30)),
        (Init.kaiming, "selu", math.sqrt(3 / 30)),
        (Init.normal, "selu", math.sqrt(3 / 30)),
        (Init.default, "selu", math.sqrt(3 / 30)),
        (Init.lecun, "relu", math.sqrt(3 / 30)),
        (Init.xavier, "relu", math.sqrt(2) * math.sqrt(6 / (30 + 48))),
        (Init.default, "relu", math.sqrt(1 / 30)),
        (Init.normal, "relu", math.sqrt(2) / math.sqrt(30)),
    ],
)
def test_scales_of_fresh_weights(init, activation, expected):
    assert scale_of(init, conv_slices(), activation) == pytest.approx(expected, rel=1e-12)


def test_gains_are_those_of_the_networks():
    assert {kind.value: gain_of(kind.value) for kind in Activation} == {kind.value: kind.gain for kind in Activation}
    assert gain_of("") == 1.0 and gain_of("mish") == math.sqrt(2.0)


def drawn(
    init: Init, activation: str = "relu", seed: int = 0, units: int = 400, net: nn.Module | None = None
) -> Tensor:
    net = net or Mlp(widths=[units]).make((50,), 3)
    (part,) = sets_of(net)["linear_1"].parts
    fresh = FreshWeights(seed, init, lambda k: net, [part])
    ids = torch.arange(units)
    return fresh.values(part.weights[0], activation, ids, torch.zeros_like(ids))


def test_fresh_weights_have_their_distribution():
    bound = math.sqrt(2) * math.sqrt(3 / 50)
    uniform = drawn(Init.kaiming)
    assert uniform.abs().max() <= bound and uniform.abs().max() > 0.999 * bound
    n = uniform.numel()
    assert abs(uniform.mean()) < 4 * bound / math.sqrt(3 * n)
    assert uniform.var().item() == pytest.approx(bound**2 / 3, rel=0.03)
    normal = drawn(Init.normal)
    assert normal.std().item() == pytest.approx(math.sqrt(2 / 50), rel=0.02)
    assert (normal.pow(4).mean() / normal.var() ** 2).item() == pytest.approx(3.0, abs=0.15)


def test_fresh_weights_as_the_network_started_are_drawn_from_its_first_weights():
    net = Mlp(widths=[400]).make((50,), 3)
    with torch.no_grad():
        net.linear_1.weight.copy_(torch.where(torch.rand(400, 50) < 0.25, 3.0, -1.0))
    fresh = drawn(Init.network, net=net)
    assert set(fresh.unique().tolist()) == {3.0, -1.0}
    share = (net.linear_1.weight == 3.0).float().mean().item()
    assert (fresh == 3.0).float().mean().item() == pytest.approx(share, abs=0.015)


def test_a_fresh_vector_belongs_to_seed_parameter_unit_and_generation_alone():
    net = Mlp(widths=[8, 8]).make((8,), 3)
    sets = sets_of(net)
    parts = [sets[name].parts[0] for name in ("linear_1", "linear_2")]
    fresh = FreshWeights(5, Init.kaiming, lambda k: net, parts)
    slices = parts[0].weights[0]
    ids, generation = torch.tensor([3, 6, 0]), torch.tensor([0, 2, 1])
    together = fresh.values(slices, "relu", ids, generation)
    for unit, g, row in zip(ids, generation, together, strict=True):
        assert torch.equal(fresh.values(slices, "relu", unit[None], g[None])[0], row)
    all_rows = [fresh.values(slices, "relu", torch.arange(8), torch.full((8,), g)) for g in range(3)]
    all_rows.append(fresh.values(parts[1].weights[0], "relu", torch.arange(8), torch.zeros(8, dtype=torch.int64)))
    other = FreshWeights(6, Init.kaiming, lambda k: net, parts)
    all_rows.append(other.values(slices, "relu", torch.arange(8), torch.zeros(8, dtype=torch.int64)))
    values = torch.cat(all_rows).flatten()
    assert len(values.unique()) > 0.999 * len(values)


@pytest.mark.parametrize("init", [Init.kaiming, Init.normal])
def test_runs_that_advance_together_draw_as_each_alone(init):
    net = Mlp(widths=[8]).make((6,), 3)
    (part,) = sets_of(net)["linear_1"].parts
    single = part.weights[0]
    stacked = Slices(single.name, torch.stack([single.tensor] * 3), 0, 8, lead=1)
    ids, generation = torch.tensor([[1, 4], [0, 7], [1, 4]]), torch.tensor([[0, 0], [3, 1], [0, 2]])
    together = FreshWeights([5, 9, 6], init, lambda k: net, []).values(stacked, "relu", ids, generation)
    for r, seed in enumerate((5, 9, 6)):
        alone = FreshWeights(seed, init, lambda k: net, []).values(single, "relu", ids[r], generation[r])
        assert torch.equal(together[r], alone)


# What the optimiser knew.


@pytest.mark.parametrize("optimizer", Optimizer)
@pytest.mark.parametrize("norm", [Norm.none, Norm.batch])
def test_with_zero_gradient_the_next_step_leaves_a_fresh_unit_as_it_is(optimizer, norm):
    config = ContinualBackprop(optimizer=optimizer, lr=0.1, replacement_rate=0.0)
    learner = start(config, Mlp(widths=[6, 5], norm=norm), (4,))
    for batch in batches((4,), [8] * 5):
        learner.step(batch)
    due = [(units, ByIndex(torch.tensor([2, 4]))) for units in learner.sets]
    with torch.no_grad():
        learner.replace(due)
    fresh = state_of(learner.net)
    for parameter in learner.net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    learner.optimizer.step()
    moved = state_of(learner.net)
    for units, _ in due:
        (part,) = units.parts
        for slices in [*part.incoming, part.consumers[0].weight, *(s for s, _ in part.norm)]:
            own = slices.view(moved[slices.name])
            assert torch.equal(own[[2, 4]], slices.view(fresh[slices.name])[[2, 4]]), slices.name
        rows = part.weights[0]
        assert (rows.view(moved[rows.name]) != rows.view(fresh[rows.name])).any()


def test_optimiser_state_is_kept_on_request():
    config = ContinualBackprop(replacement_rate=0.0, reset_optimizer_state=False, optimizer=Optimizer.adam)
    learner = start(config, Mlp(widths=[6]), (4,))
    for batch in batches((4,), [8] * 3):
        learner.step(batch)
    before = copy.deepcopy(learner.optimizer.state_dict())
    with torch.no_grad():
        learner.replace([(learner.sets[0], ByIndex(torch.tensor([2])))])
    after = learner.optimizer.state_dict()
    for key, state in before["state"].items():
        assert all(torch.equal(value, after["state"][key][name]) for name, value in state.items())
    assert type(learner.optimizer) is torch.optim.Adam
