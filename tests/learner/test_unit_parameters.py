"""Units as slices of tensors: against each unit's own rows and columns; what does not fit is refused by name."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from plastiscope.error import ConfigError
from plastiscope.learner.unit_parameters import ByIndex, ByMask, ResidualMode, Slices, unit_sets
from plastiscope.net.convnet import ConvNet
from plastiscope.net.describe import describe
from plastiscope.net.mlp import Mlp, Norm
from plastiscope.net.net import NetConfig
from plastiscope.net.resnet18 import ResNet18
from plastiscope.net.units import Layer, Site, UnitDescription, Wire
from plastiscope.net.vit import Vit

NETS: dict[str, tuple[NetConfig, tuple[int, ...]]] = {
    "mlp": (Mlp(widths=[5, 4], norm=Norm.batch), (6,)),
    "convnet": (ConvNet(channels=[4, 5], kernel_sizes=[3, 3], widths=[6]), (1, 14, 14)),
    "resnet18": (ResNet18(width=4), (3, 8, 8)),
    "vit": (Vit(depth=1, width=8, heads=2, hidden=12, patch=4), (1, 8, 8)),
}


def make(name: str) -> tuple[nn.Module, UnitDescription]:
    config, shape = NETS[name]
    net = config.make(shape, 3)
    return net, describe(net, torch.zeros(2, *shape))


@pytest.mark.parametrize("lead", [0, 1])
@pytest.mark.parametrize(("axis", "block", "offset"), [(0, 1, 0), (1, 1, 0), (1, 4, 0), (1, 2, 3), (0, 2, 1)])
@pytest.mark.parametrize("positions", [(), (2, 3)])
def test_a_view_holds_each_units_own_part(axis, block, offset, positions, lead):
    tensor = torch.arange(13 * 15 * (6 if positions else 1)).reshape(13, 15, *positions)
    stacked = torch.stack([tensor, -tensor]) if lead else tensor
    width = 3
    view = Slices("w", stacked, axis, width, block, offset, lead).view()
    for unit in range(width):
        own = tensor.narrow(axis, offset + unit * block, block)
        found = view[0, unit] if lead else view[unit]
        assert sorted(found.flatten().tolist()) == sorted(own.flatten().tolist())
        if lead:
            assert torch.equal(view[1, unit], -found)
    view.zero_()
    expected = tensor.clone()
    expected.narrow(axis, offset, block * width).zero_()
    assert torch.equal(stacked[0] if lead else stacked, expected)


def test_channels_last_weights_have_views_too():
    weight = torch.randn(6, 4, 3, 3).to(memory_format=torch.channels_last)
    Slices("w", weight, 1, 4).view()[2] = 7.0
    assert (weight[:, 2] == 7.0).all() and not (weight[:, [0, 1, 3]] == 7.0).any()


def test_at_a_linear_layer_channel_c_owns_a_block_of_columns():
    """Two by two pixels are left: channel c owns columns 4c .. 4c + 3."""
    net, units = make("convnet")
    last = unit_sets(net, units, ResidualMode.inner_only)[1].parts[0]
    last.consumers[0].weight.view()[3] = 100.0
    assert (net.linear_1.weight == 100.0).any(0).nonzero().flatten().tolist() == [12, 13, 14, 15]
    assert (net.linear_1.weight[:, 12:16] == 100.0).all()


def test_the_output_layer_is_no_unit():
    for name in NETS:
        net, units = make(name)
        for mode in ResidualMode:
            incoming = [s.name for u in unit_sets(net, units, mode) for p in u.parts for s in p.incoming]
            assert incoming and not [name for name in incoming if name.startswith(units.head)]


def test_published_residual_units_are_17_layers_with_3904_units_and_their_own_norms():
    net = ResNet18().make((3, 32, 32), 100)
    sets = unit_sets(net, net.unit_description(), ResidualMode.legacy)
    assert len(sets) == 17
    assert sum(units.width for units in sets) == 3904
    convolutions = [name for name, module in net.named_modules() if isinstance(module, nn.Conv2d)]
    in_order = [name for name in convolutions if "downsample" not in name]
    assert [units.parts[0].weights[0].name for units in sets] == [f"{name}.weight" for name in in_order]
    readers = [consumer.weight.name for units in sets for consumer in units.parts[0].consumers]
    assert readers == [f"{name}.weight" for name in [*in_order[1:], "fc"]]
    for units in sets:
        (part,) = units.parts
        assert {slices.name.rpartition(".")[0] for slices, _ in part.norm} == {part.layer.name.replace("conv", "bn")}
        assert len(part.norm) == 4


def test_inner_channels_alone_or_with_tied_groups():
    net, units = make("resnet18")
    inner = unit_sets(net, units, ResidualMode.inner_only)
    assert [u.name for u in inner] == [f"layer{s}.{i}.conv1" for s in (1, 2, 3, 4) for i in (0, 1)]
    groups = [u for u in unit_sets(net, units, ResidualMode.group) if u.name not in [v.name for v in inner]]
    assert {u.name: (u.width, len(u.parts)) for u in groups} == {
        "conv1": (4, 3),
        "layer2.0.conv2": (8, 2),
        "layer3.0.conv2": (16, 2),
        "layer4.0.conv2": (32, 2),
    }
    stage = groups[1]
    read = {consumer.weight.name for part in stage.parts for consumer in part.consumers}
    assert read == {"layer2.1.conv1.weight", "layer3.0.conv1.weight", "layer3.0.downsample.0.weight"}
    made = {slices.name for slices in stage.parts[0].incoming}
    assert made == {
        f"layer2.0.{name}" for name in ("conv2.weight", "conv2.bias", "downsample.0.weight", "downsample.0.bias")
    }
    norms = {slices.name.rpartition(".")[0] for slices, _ in stage.parts[0].norm}
    assert norms == {"layer2.0.bn2", "layer2.0.downsample.1"}


def test_batch_norm_takes_constants_away_and_layer_norm_does_not():
    for norm, expected in ((Norm.batch, [True, False]), (Norm.layer, [False, False]), (Norm.none, [False, False])):
        net = Mlp(widths=[4, 3], norm=norm).make((2,), 2)
        sets = unit_sets(net, net.unit_description(), ResidualMode.inner_only)
        assert [units.parts[0].consumers[0].is_normalised for units in sets] == expected
        assert [slices.name for slices, _ in sets[0].parts[0].norm][:2] == (
            [] if norm is Norm.none else ["norm_1.weight", "norm_1.bias"]
        )


def described(**changes: Any) -> UnitDescription:
    layer = Layer(
        name="hidden",
        width=4,
        site=Site("1"),
        incoming=(Wire("0.weight", 0), Wire("0.bias", 0)),
        consumers=(Wire("2.weight", 1),),
    )
    return UnitDescription((replace(layer, **changes),), head="2")


MISFITS = {
    "no such parameter": ({"incoming": (Wire("7.weight", 0),)}, "layer hidden names the parameter '7.weight'"),
    "too wide": ({"width": 5}, "layer hidden needs 5 entries of axis 0 of 0.weight"),
    "block": ({"consumers": (Wire("2.weight", 1, block=2),)}, "layer hidden needs 8 entries of axis 1 of 2.weight"),
    "offset": ({"consumers": (Wire("2.weight", 1, offset=1),)}, "layer hidden needs 5 entries of axis 1 of 2.weight"),
    "no such axis": ({"consumers": (Wire("2.weight", 2),)}, "layer hidden needs 4 entries of axis 2 of 2.weight"),
    "nobody reads it": ({"consumers": ()}, "layer hidden has no consumer"),
    "nothing makes it": ({"incoming": ()}, "layer hidden has no weights that make its units"),
    "bias alone": ({"incoming": (Wire("0.bias", 0),)}, "layer hidden has no weights that make its units"),
    "no such norm": ({"norm": "9"}, "layer hidden has the normalisation '9'"),
    "norm of another width": ({"norm": "3"}, "layer hidden has 4 units, 3.weight"),
    "no such site": ({"site": Site("1.nowhere")}, "layer hidden has its features at '1.nowhere'"),
}


@pytest.mark.parametrize(("changes", "words"), MISFITS.values(), ids=MISFITS)
def test_a_description_that_does_not_fit_is_refused_by_name(changes, words):
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2), nn.BatchNorm1d(3))
    assert unit_sets(net, described(), ResidualMode.inner_only)
    with pytest.raises(ConfigError, match="the unit description does not fit the network") as raised:
        unit_sets(net, described(**changes), ResidualMode.inner_only)
    assert words in str(raised.value)


@pytest.mark.parametrize("mode", ResidualMode)
def test_units_that_cannot_be_replaced_completely_are_refused_with_the_reason(mode):
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    with pytest.raises(ConfigError, match="layer hidden of this network cannot be replaced: its units are shared"):
        unit_sets(net, described(replaceable=False, reason="its units are shared"), mode)


def test_a_network_without_hidden_units_is_refused():
    net = nn.Sequential(nn.Linear(3, 4))
    with pytest.raises(ConfigError, match="no unit that can be replaced"):
        unit_sets(net, UnitDescription((), head="0"), ResidualMode.inner_only)


def test_tied_units_whose_group_is_not_understood_are_refused_as_a_group():
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.head = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = torch.relu(self.a(x))
            return self.head(torch.relu(h + torch.softmax(h, 1)) + torch.relu(self.b(h)))

    net = Odd()
    units = describe(net, torch.zeros(2, 3))
    with pytest.raises(ConfigError, match=r"layer \S+ of this network cannot be replaced"):
        unit_sets(net, units, ResidualMode.group)


@pytest.mark.parametrize("lead", [0, 1])
def test_indices_and_masks_choose_the_same_units(lead):
    shape = (2, 5, 3) if lead else (5, 3)
    view = torch.randn(*shape)
    ids = torch.tensor([[0, 3], [4, 1]]) if lead else torch.tensor([3, 0])
    mask = torch.zeros(shape[:-1], dtype=torch.bool).scatter_(-1, ids, True)
    by_index, by_mask = ByIndex(ids), ByMask(mask)
    values = torch.randn(shape)
    one, other = view.clone(), view.clone()
    by_index.put(one, by_index.take(values))
    by_mask.put(other, values)
    assert torch.equal(one, other)
    assert torch.equal(one != view, mask.unsqueeze(-1).expand(shape))
    by_index.put(one, 0.5)
    by_mask.put(other, 0.5)
    assert torch.equal(one, other) and (one[mask] == 0.5).all()
    own = by_mask.kept(values).sum(-2)
    torch.testing.assert_close(own, by_index.kept(by_index.take(values)).sum(-2))
    assert by_mask.ids.shape == mask.shape
