"""Raw outputs of convolutions and linear layers: which there are, and that they are what the modules give."""

import pytest
import torch
from net_cases import CASES
from torch import nn

from plastiscope.error import ConfigError
from plastiscope.net.capture import capture
from plastiscope.net.layers import COMPOSED
from plastiscope.net.module_outputs import module_outputs
from plastiscope.net.resnet18 import ResNet18
from plastiscope.net.units import width_of


def test_the_published_resnet_has_21_modules_with_4900_units_and_17_taps_with_3904():
    net = ResNet18().make((3, 32, 32), 100)
    raw, hidden = module_outputs(net, torch.zeros(2, 3, 32, 32)), net.unit_description().layers
    assert (len(raw), sum(layer.width for layer in raw)) == (21, 4900)
    assert (len(hidden), sum(layer.width for layer in hidden)) == (17, 3904)
    assert sum("downsample" in layer.name for layer in raw) == 3 and raw[-1].name == "fc"


@pytest.mark.parametrize("name", CASES)
def test_all_modules_are_there_in_order_of_execution(name):
    case = CASES[name]
    net, order = case.make(), []
    for path, module in net.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear, *COMPOSED)):
            module.register_forward_hook(lambda _, __, output, path=path: order.append((path, output.shape)))
    layers = module_outputs(net, case.inputs(2))
    assert [layer.name for layer in layers] == [path for path, _ in order]
    for layer, (path, shape) in zip(layers, order, strict=True):
        assert shape[layer.unit_axis] == layer.width == width_of(net, path)


class Twice(nn.Module):
    """A linear layer that is called twice, on rows and columns of [b, 3, 3]."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.shared(self.shared(x).mT).sum(1)


def test_a_module_that_is_called_twice_gives_two_layers():
    layers = module_outputs(Twice(), torch.randn(2, 3, 3))
    assert [(layer.name, layer.site.call, layer.unit_axis) for layer in layers] == [
        ("shared", 0, 2),
        ("shared_1", 1, 2),
    ]


class Attention(nn.Module):
    """nn.MultiheadAttention, whose output projection is never called as a module."""

    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=batch_first)
        self.head = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.attention(x, x, x)[0].mean(1))


def test_attention_gives_the_outputs_of_its_projection():
    net, x = Attention(batch_first=True).eval(), torch.randn(3, 5, 4)
    layers, seen = module_outputs(net, x), {}
    assert [(layer.name, layer.width, layer.unit_axis) for layer in layers] == [
        ("attention.out_proj", 4, 2),
        ("head", 2, 1),
    ]
    with torch.no_grad(), capture(net, [layers[0].site], lambda site, output: seen.update({site: output.clone()})):
        net(x)
        expected, _ = net.attention(x, x, x)
    assert seen[layers[0].site].equal(expected)


def test_attention_in_torchs_transformer_layer_is_seen_too():
    """Its fused path hides modules; hooks keep it off."""
    net = nn.TransformerEncoderLayer(4, 2, 6, batch_first=True).eval()
    layers = module_outputs(net, torch.randn(2, 5, 4))
    assert [layer.name for layer in layers] == ["self_attn.out_proj", "linear1", "linear2"]


class Idle(nn.Module):
    """A convolution that no forward calls."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.idle = nn.Conv2d(1, 2, 1), nn.Conv2d(1, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.used(x)


@pytest.mark.parametrize(
    ("net", "shape", "named"),
    [(Idle(), (2, 1, 3, 3), "idle"), (Attention(batch_first=False), (2, 5, 4), "attention.out_proj")],
)
def test_a_module_whose_outputs_cannot_be_seen_is_named(net, shape, named):
    with pytest.raises(ConfigError, match=named):
        module_outputs(net, torch.randn(shape))


def test_the_network_is_left_as_it_is():
    case = CASES["mlp_batch"]
    net = case.make().train()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    state = torch.get_rng_state()
    module_outputs(net, case.inputs(2))
    assert all(tensor.equal(before[name]) for name, tensor in net.state_dict().items())
    assert all(module.training and not module._forward_hooks for module in net.modules())
    assert torch.get_rng_state().equal(state)
