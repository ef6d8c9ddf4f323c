"""Capture: the right tensor, at the right moment, of every site."""

import pytest
import torch
from net_cases import CASES, shared_relu
from torch import nn

from plastiscope.error import ConfigError
from plastiscope.net.capture import capture, features, watch
from plastiscope.net.describe import describe
from plastiscope.net.units import Layer, Site


def test_features_are_those_of_a_forward_by_hand():
    case = CASES["convnet"]
    net, x = case.make(), case.inputs(4)
    found = features(net, describe(net, x).layers, x, torch.clone)
    h, expected = x, {}
    for i in (1, 2, 3):
        h = torch.nn.functional.max_pool2d(torch.relu(net.get_submodule(f"conv_{i}")(h)), 2)
        expected[f"conv_{i}"] = h.flatten(2)
    h = h.flatten(1)
    for i in (1, 2):
        h = torch.relu(net.get_submodule(f"linear_{i}")(h))
        expected[f"linear_{i}"] = h[:, :, None]
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert not any(feature.requires_grad for feature in found.values())


def test_in_place_net_gives_the_features_of_the_out_of_place_net():
    inplace, outplace = shared_relu(inplace=True).eval(), shared_relu().eval()
    x = torch.randn(6, 3, 8, 8)
    layers = describe(outplace, x).layers
    assert describe(inplace, x).layers == layers
    first, second = (features(net, layers, x, torch.clone) for net in (inplace, outplace))
    assert torch.equal(inplace(x), outplace(x))
    assert all(torch.equal(first[name], second[name]) for name in second)
    # what is kept instead of reduced is overwritten later in the forward
    kept = features(inplace, layers, x, lambda feature: feature)
    assert not torch.equal(kept["conv1"], second["conv1"])


def test_shared_relu_gives_one_feature_per_call():
    net, x = shared_relu().eval(), torch.randn(5, 3, 8, 8)
    got = {}
    sites = [Site("relu", 1), Site("relu", 0)]
    with torch.no_grad(), capture(net, sites, lambda site, feature: got.update({site: feature.clone()})):
        net(x)
        first = torch.relu(net.norm1(net.conv1(x)))
    assert torch.equal(got[sites[1]], first)
    assert torch.equal(got[sites[0]], torch.relu(net.conv2(first) + first))


def test_calls_are_counted_anew_in_each_forward():
    net, x = shared_relu().eval(), torch.randn(2, 3, 8, 8)
    got = []
    with capture(net, [Site("relu", 1), Site("", 0, "relu")], lambda site, _: got.append(site)):
        net(x)
        net(x)
    assert got == [Site("relu", 1), Site("", 0, "relu")] * 2


def test_functional_calls_inside_activation_modules_are_not_sites_of_their_own():
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2), nn.Tanh())
    got = []
    with watch(net, {"1": net[1]}, True, lambda site, _: got.append(site)):
        net(torch.randn(2, 3))
    assert got == [Site("1")]


def test_functional_calls_belong_to_the_module_whose_forward_they_run_in():
    class Inner(nn.Module):
        def forward(self, x):
            return torch.tanh(x).relu_()

    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Inner()

        def forward(self, x):
            return torch.sigmoid(self.inner(self.inner(nn.functional.relu(x))))

    got = []
    net = Outer()
    with watch(net, {}, True, lambda site, _: got.append(site)):
        net(torch.randn(2, 3))
    inner = [Site("inner", call, function) for call in (0, 1) for function in ("tanh", "relu")]
    assert got == [Site("", 0, "relu"), *inner, Site("", 0, "sigmoid")]


def test_nothing_stays_behind():
    net, x = shared_relu(), torch.randn(2, 3, 8, 8)
    with pytest.raises(RuntimeError, match="stop"), capture(net, [Site("relu"), Site("", 0, "relu")], stop):
        net(x)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())
    net(x)


def stop(site, feature):
    raise RuntimeError("stop")


def test_a_site_that_does_not_fire_is_an_error():
    class Branch(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.ReLU(), nn.ReLU()

        def forward(self, x):
            return self.used(x)

    net = Branch()
    with pytest.raises(ConfigError, match="unused"), capture(net, [Site("used"), Site("unused")], lambda *_: None):
        net(torch.zeros(1))
    layer = Layer("x", 1, Site("used", call=1), ())
    with pytest.raises(ConfigError, match="call=1"):
        features(net, [layer], torch.zeros(1, 1), torch.clone)


def test_a_site_of_another_net_is_an_error():
    with pytest.raises(ConfigError, match="no module 'absent'"), capture(nn.ReLU(), [Site("absent")], lambda *_: None):
        pass


def test_capture_works_while_training_and_leaves_gradients_alone():
    case = CASES["mlp_batch"]
    net, x = case.make(), case.inputs(4)
    layers = describe(net, x).layers
    torch.manual_seed(0)
    net(x).sum().backward()
    expected = [parameter.grad.clone() for parameter in net.parameters()]
    net = case.make()
    got = []
    torch.manual_seed(0)
    with capture(net, [layer.site for layer in layers], lambda _, feature: got.append(feature.mean(0))):
        net(x).sum().backward()
    assert len(got) == 2 and not got[0].requires_grad
    assert all(torch.equal(a, parameter.grad) for a, parameter in zip(expected, net.parameters(), strict=True))
