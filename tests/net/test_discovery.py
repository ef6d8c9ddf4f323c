"""Discovery on networks from elsewhere."""

import copy

import pytest
import torch
from net_cases import shared_relu
from torch import nn
from torch.nn import functional as F

from plastiscope.data.vision import vision
from plastiscope.net.capture import features
from plastiscope.net.describe import describe
from plastiscope.net.discover import discover
from plastiscope.net.units import TIED, Site, Wire


def test_hand_written_net():
    units = discover(shared_relu(), torch.zeros(2, 3, 8, 8))
    assert [(layer.name, layer.width, layer.site) for layer in units.layers] == [
        ("conv1", 6, Site("relu", 0)),
        ("conv2", 6, Site("relu", 1)),
        ("conv3", 5, Site("", 0, "relu")),
        ("fc", 7, Site("", 1, "relu")),
    ]
    conv1, conv2, conv3, fc = units.layers
    assert (conv1.norm, conv2.norm) == ("norm1", None)
    assert conv1.consumers == (Wire("conv2.weight", 1),)
    assert conv2.consumers == (Wire("conv3.weight", 1),)
    assert conv3.consumers == (Wire("fc.weight", 1, block=16),)
    assert fc.consumers == (Wire("classify.weight", 1),)
    assert conv1.residual_group == conv2.residual_group == "conv1"
    assert (conv1.reason, conv2.reason) == (TIED, TIED)
    assert [layer.replaceable for layer in units.layers] == [False, False, True, True]
    assert all(layer.activation == "relu" for layer in units.layers)
    assert units.head == "classify"


def test_torchvision_resnet18():
    net = vision().models.resnet18(num_classes=10)
    units = describe(net, torch.zeros(2, 3, 64, 64))
    assert [layer.width for layer in units.layers] == [64] * 5 + [128] * 4 + [256] * 4 + [512] * 4
    replaceable = [layer.name for layer in units.layers if layer.replaceable]
    assert replaceable == [f"layer{s}.{i}.conv1" for s in (1, 2, 3, 4) for i in (0, 1)]
    assert [layer.norm for layer in units.layers] == [layer.name.replace("conv", "bn") for layer in units.layers]
    assert units.layers[-1].site == Site("avgpool")
    assert units.layers[0].incoming == (Wire("conv1.weight", 0),)
    assert {wire.parameter for wire in units.layers[4].consumers} == {
        "layer2.0.conv1.weight",
        "layer2.0.downsample.0.weight",
    }
    assert units.head == "fc"


@pytest.mark.parametrize("name", ["mobilenet_v2", "densenet121", "vgg11_bn", "squeezenet1_1", "vit_b_16"])
def test_other_torchvision_models_have_sites_that_fire_and_heads(name):
    with torch.device("meta"):
        make = getattr(vision().models, name)
        net = make(num_classes=3, **({"image_size": 32} if name == "vit_b_16" else {}))
    net.to_empty(device="cpu")
    for parameter in net.parameters():
        parameter.data.zero_()
    inputs = torch.zeros(1, 3, 32, 32)
    units = discover(net.eval(), inputs)
    assert units.layers
    assert all(layer.replaceable or layer.reason for layer in units.layers)
    found = features(net, units.layers, inputs, lambda feature: feature[:, :, 0].clone())
    assert all(found[layer.name].shape == (1, layer.width) for layer in units.layers)
    assert net.get_submodule(units.head).weight.shape[0] == 3


class Untraceable(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(4, 6), nn.Linear(6, 5), nn.Linear(5, 2)
        self.tanh = nn.Tanh()

    def forward(self, x):
        h = torch.relu(self.first(x))
        if h.sum() > 0:
            h = h * 1
        return self.head(self.tanh(self.second(h)))


def test_a_net_that_torch_fx_cannot_trace_has_sites_but_nothing_replaceable():
    units = discover(Untraceable(), torch.ones(2, 4))
    assert [(layer.name, layer.width, layer.site) for layer in units.layers] == [
        ("relu", 6, Site("", 0, "relu")),
        ("tanh", 5, Site("tanh")),
    ]
    assert not any(layer.replaceable for layer in units.layers)
    assert all("torch.fx" in layer.reason for layer in units.layers)
    assert units.head == "head"


@pytest.mark.parametrize("activation", ["relu", nn.GELU()])
def test_torchs_transformer_shows_its_activations_past_the_fused_path(activation):
    torch.manual_seed(0)
    encoder = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, activation=activation, batch_first=True)
    net = nn.Sequential(nn.TransformerEncoder(encoder, 2, enable_nested_tensor=False), nn.Flatten(), nn.Linear(40, 3))
    inputs = torch.randn(2, 5, 8)
    units = discover(net, inputs)
    assert [layer.width for layer in units.layers] == [12, 12]
    assert not any(layer.replaceable for layer in units.layers)
    found = features(net.eval(), units.layers, inputs, torch.clone)
    assert all(feature.shape == (2, 12, 5) for feature in found.values())
    assert units.head == "2"


class Blocks(nn.Module):
    """One forward of your choice over a few layers."""

    def __init__(self, forward, **modules):
        super().__init__()
        self.compute = forward
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x):
        return self.compute(self, x)


def reasons(net: nn.Module, *shape: int) -> dict[str, str]:
    return {layer.name: layer.reason for layer in discover(net, torch.randn(2, *shape)).layers}


def test_wirings_that_are_not_understood_say_why():
    a, b, head = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 2)
    gated = Blocks(lambda s, x: s.head(torch.relu(s.a(x)) * 2), a=a, head=head)
    assert "'mul'" in reasons(gated, 4)["a"]
    twice = Blocks(lambda s, x: s.head(torch.relu(s.b(torch.relu(s.b(torch.relu(s.a(x))))))), a=a, b=b, head=head)
    assert reasons(twice, 4) == dict.fromkeys(("a", "b", "b_2"), "b is called 2 times")
    unread = Blocks(lambda s, x: (torch.relu(s.a(x)), s.head(s.b(torch.tanh(s.a(x)))))[1], a=a, b=b, head=head)
    assert "called 2 times" in reasons(unread, 4)["a"]
    late_norm = Blocks(lambda s, x: s.head(s.n(torch.relu(s.a(x)))), a=a, n=nn.BatchNorm1d(6), head=head)
    assert "'BatchNorm1d'" in reasons(late_norm, 4)["a"]
    two = Blocks(lambda s, x: s.head(torch.relu(s.a(x) + s.c(x))), a=a, c=nn.Linear(4, 6), head=head)
    assert reasons(two, 4) == {"a": "its units sum the outputs of two layers"}
    tied = Blocks(lambda s, x: s.head(F.silu(s.c(F.silu(s.b(x))))), b=b, c=nn.Linear(6, 6), head=head)
    tied.c.weight = b.weight
    assert "no plain parameter of its own" in reasons(tied, 6)["b"]
    outputs = Blocks(lambda s, x: (lambda h: (h, s.head(h)))(F.silu(s.a(x))), a=a, head=head)
    assert "among the outputs" in reasons(outputs, 4)["a"]
    cat = Blocks(lambda s, x: s.h(torch.cat([torch.relu(s.a(x)), x], 1)), a=a, h=nn.Linear(10, 2))
    assert "'cat'" in reasons(cat, 4)["a"]
    weight_normed = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 6)), nn.ReLU(), nn.Linear(6, 2))
    assert "no plain parameter" in reasons(weight_normed, 4)["0"]
    into_normed = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.utils.parametrizations.weight_norm(nn.Linear(6, 2)))
    assert "no plain parameter" in reasons(into_normed, 4)["0"]
    depthwise = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=4), nn.Flatten())
    assert "grouped" in reasons(depthwise, 3, 5, 5)["0"]
    tokens = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Flatten(), nn.Linear(18, 2))
    assert "'flatten'" in reasons(tokens, 3, 4)["0"]
    shuffled = Blocks(
        lambda s, x: s.h(torch.relu(s.a(x)).mean(1)), a=nn.Conv2d(3, 4, 1), h=nn.Linear(4, 2)
    )  # the mean over channels, where there happen to be as many columns
    assert "'mean'" in reasons(shuffled, 3, 4, 4)["a"]


def test_wirings_that_are_understood():
    conv, head = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)
    mean = Blocks(lambda s, x: s.head(F.relu(s.conv(x)).mean((2, 3))), conv=conv, head=head)
    assert reasons(mean, 3, 5, 5) == {"conv": ""}
    squeezed = Blocks(lambda s, x: s.head(F.adaptive_avg_pool2d(F.relu(s.conv(x)), 1).flatten(1)), conv=conv, head=head)
    assert reasons(squeezed, 3, 5, 5) == {"conv": ""}
    reshaped = Blocks(lambda s, x: s.h(F.gelu(s.conv(x)).reshape(x.shape[0], -1)), conv=conv, h=nn.Linear(36, 2))
    (layer,) = discover(reshaped, torch.randn(2, 3, 5, 5)).layers
    assert (layer.consumers, layer.activation) == ((Wire("h.weight", 1, block=9),), "gelu")
    tokens = nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 2))
    (layer,) = discover(tokens, torch.randn(2, 3, 4)).layers
    assert (layer.unit_axis, layer.width, layer.replaceable) == (2, 6, True)
    sequence = nn.Sequential(nn.Conv1d(3, 4, 1), nn.ReLU(), nn.Conv1d(4, 2, 1), nn.Flatten(), nn.Linear(10, 2))
    (layer,) = discover(sequence, torch.randn(2, 3, 5)).layers
    assert (layer.unit_axis, layer.width, layer.replaceable) == (1, 4, True)


def test_an_activation_of_the_outputs_is_no_hidden_layer():
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2), nn.Sigmoid())
    units = discover(net, torch.randn(2, 4))
    assert [layer.name for layer in units.layers] == ["0"]
    assert units.head == "2"


def test_discovery_leaves_the_net_as_it_was():
    net = shared_relu().train()
    before, modes = copy.deepcopy(net.state_dict()), [module.training for module in net.modules()]
    torch.manual_seed(7)
    state = torch.get_rng_state()
    discover(net, torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in net.modules()] == modes
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())
