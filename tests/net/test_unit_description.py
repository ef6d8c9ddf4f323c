"""The unit description against brute force on the networks themselves."""

import pytest
import torch
from net_cases import CASES, Case, randomise, shared_relu
from torch import Tensor, nn

from plastiscope.net.capture import capture
from plastiscope.net.describe import describe
from plastiscope.net.discover import discover
from plastiscope.net.resnet18 import ResNet18
from plastiscope.net.units import Layer, Site, Wire, by_unit, columns, norm_rows, rows, width_of


def prepared(name: str) -> tuple[nn.Module, Tensor]:
    """A network in float64 and inputs for it."""
    if name in CASES:
        samples = 16 if name.startswith("vgg") else 64
        return CASES[name].make(torch.float64), CASES[name].inputs(samples, torch.float64)
    inputs = torch.randn(64, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return shared_relu().double(), inputs


every_net = pytest.mark.parametrize("name", [*CASES, "foreign"])


def part(net: nn.Module, wire: Wire, unit: int) -> Tensor:
    """The columns of a unit in the parameter (or buffer) of a wire, as a view."""
    start = wire.offset + unit * wire.block
    return net.state_dict()[wire.parameter].narrow(wire.axis, start, wire.block)


def feature_of(net: nn.Module, layer: Layer, inputs: Tensor) -> Tensor:
    got: list[Tensor] = []
    with torch.no_grad(), capture(net, [layer.site], lambda _, feature: got.append(feature.clone())):
        net(inputs)
    return by_unit(got[0], layer.unit_axis)


def disturb(net: nn.Module, wires: tuple[Wire, ...], unit: int) -> None:
    generator = torch.Generator().manual_seed(5)
    for wire in wires:
        piece = part(net, wire, unit)
        piece.add_(torch.randn(piece.shape, generator=generator, dtype=torch.float64) + 1.0)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_discovery_agrees_with_what_the_net_says(case: Case):
    net, inputs = case.make(), case.inputs(2)
    own, found = describe(net, inputs), discover(net, inputs)
    assert found.layers == own.layers
    assert found.head == own.head


def has_layer_norm(net: nn.Module, layer: Layer) -> bool:
    """Whether every unit of the layer sees the incoming weights of every other one."""
    return layer.norm is not None and isinstance(net.get_submodule(layer.norm), nn.LayerNorm | nn.GroupNorm)


@every_net
def test_without_its_consumer_columns_a_unit_does_not_matter(name):
    net, inputs = prepared(name)
    randomise(net)
    layers = [layer for layer in describe(net, inputs).layers if layer.replaceable]
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    for layer in layers:
        if has_layer_norm(net, layer):
            continue
        mattered = []
        for unit in (0, layer.width // 2, layer.width - 1):
            net.load_state_dict(state)
            full = net(inputs)
            for wire in layer.consumers:
                part(net, wire, unit).zero_()
            without = net(inputs)
            disturb(net, layer.incoming, unit)
            assert torch.equal(net(inputs), without)
            mattered.append(not torch.equal(full, without))
        assert any(mattered)  # some unit may be dormant


@every_net
def test_incoming_rows_and_norm_of_a_unit_change_its_feature_alone(name):
    net, inputs = prepared(name)
    randomise(net)
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    for layer in describe(net, inputs).layers:
        before = feature_of(net, layer, inputs)
        assert before.shape[:2] == (len(inputs), layer.width)
        norms = [norm_rows(net, layer)] if layer.norm else []
        norms += [rows(net, layer.shortcut_norm)] if layer.shortcut_norm else []
        weights = [] if has_layer_norm(net, layer) else [wires for wires in (layer.incoming, layer.shortcut) if wires]
        for wires in weights + norms:
            unit = layer.width // 3
            disturb(net, wires, unit)
            changed = (feature_of(net, layer, inputs) != before).any(dim=2).any(dim=0)
            assert changed.nonzero().flatten().tolist() == [unit]
            net.load_state_dict(state)


def test_every_consumer_of_the_resnet_group_together_hides_a_channel():
    """Tied channels are one unit: without all consumers of the group no incoming weight of it matters."""
    case = CASES["resnet18"]
    net = randomise(case.make(torch.float64))
    inputs = case.inputs(8, torch.float64)
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    layers = describe(net, inputs).layers
    groups = {layer.residual_group for layer in layers} - {None}
    assert groups == {"conv1", "layer2.0.conv2", "layer3.0.conv2", "layer4.0.conv2"}
    for group in groups:
        members = [layer for layer in layers if layer.residual_group == group]
        net.load_state_dict(state)
        for wire in members[0].consumers:  # those of one member alone do not hide it
            part(net, wire, 1).zero_()
        partly = net(inputs)
        for layer in members:
            disturb(net, layer.incoming + layer.shortcut, 1)
        if len(members) > 1:
            assert not torch.equal(net(inputs), partly)
        net.load_state_dict(state)
        for layer in members:
            for wire in layer.consumers:
                part(net, wire, 1).zero_()
        without = net(inputs)
        for layer in members:
            disturb(net, layer.incoming + layer.shortcut, 1)
        assert torch.equal(net(inputs), without)


def test_published_resnet_has_17_sites_3904_units_and_8_replaceable_groups():
    units = ResNet18().make((3, 32, 32), 100).unit_description()
    assert [layer.width for layer in units.layers] == [64] * 5 + [128] * 4 + [256] * 4 + [512] * 4
    assert units.num_units == 3904
    replaceable = [layer for layer in units.layers if layer.replaceable]
    assert [layer.name for layer in replaceable] == [f"layer{s}.{i}.conv1" for s in (1, 2, 3, 4) for i in (0, 1)]
    assert all(layer.reason for layer in units.layers if not layer.replaceable)
    assert [layer.norm for layer in units.layers] == [layer.name.replace("conv", "bn") for layer in units.layers]
    assert len({layer.site for layer in units.layers}) == 17
    assert units.layers[0].site == Site("relu")
    assert units.layers[1].site == Site("layer1.0.relu", 0)
    assert units.layers[2].site == Site("layer1.0.relu", 1)
    assert units.layers[-1].site == Site("output_pool")
    assert units.head == "fc"
    shortcuts = [layer.name for layer in units.layers if layer.shortcut]
    assert shortcuts == ["layer2.0.conv2", "layer3.0.conv2", "layer4.0.conv2"]


def test_a_channel_owns_a_block_of_columns_where_a_convolution_feeds_a_linear_layer():
    units = describe(CASES["convnet"].make(), CASES["convnet"].inputs(2)).layers
    assert units[2].consumers == (Wire("linear_1.weight", axis=1, block=2 * 1),)  # 32 x 24 pixels become 2 x 1
    assert units[1].consumers == (Wire("conv_3.weight", axis=1, block=1),)


def test_vit_attention_and_norm_outputs_are_sites_too():
    case = CASES["vit"]
    net, inputs = case.make().eval(), case.inputs(3)
    units = describe(net, inputs)
    assert [layer.name for layer in units.attention_outputs] == ["blocks.0.attention", "blocks.1.attention"]
    assert len(units.norm_outputs) == 5
    for layer in units.attention_outputs + units.norm_outputs:
        assert feature_of(net, layer, inputs).shape == (3, 8, 7)
        assert not layer.replaceable and layer.reason


def test_rows_columns_and_widths():
    net = nn.Sequential(nn.Linear(3, 4, bias=False), nn.Conv2d(2, 5, 3))
    assert rows(net, "0") == (Wire("0.weight", 0),)
    assert rows(net, "1") == (Wire("1.weight", 0), Wire("1.bias", 0))
    assert columns("1", 4) == Wire("1.weight", 1, 4)
    assert (width_of(net, "0"), width_of(net, "1")) == (4, 5)


def test_by_unit_puts_units_second_and_positions_last():
    conv = torch.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    assert torch.equal(by_unit(conv, 1), conv.reshape(2, 3, 20))
    tokens = torch.arange(2 * 7 * 3).reshape(2, 7, 3)
    assert torch.equal(by_unit(tokens, 2), tokens.transpose(1, 2))
    flat = torch.arange(6).reshape(2, 3)
    assert torch.equal(by_unit(flat, 1), flat[:, :, None])
